"""What a masked autoencoder sees, and what it makes of it.

    original | masked, reconstruction, visible patches pasted in | the same with more hidden | ...

B images, C H W, N patches. Each ratio hides all that a smaller one
hides, and more, so that a row reads from easy to hard.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from unveil.blocks.masks import as_bool, random_mask, visible_count
from unveil.blocks.stateless_random import sample_keys, uniform
from unveil.blocks.targets import NormalisedTarget
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.models.vit import ViTConfig
from unveil.reports.image_grid import Sheet, channel_note, displayable
from unveil.reports.style import HIDDEN

RATIOS = (0.5, 0.75, 0.9)
LABELS = ("masked", "reconstruction", "visible patches\npasted in")
UNTRAINED = "Training compares hidden patches alone: what is painted over visible ones means nothing."
BORROWED = "The target is normalised per patch: each reconstructed patch borrows the true patch's mean and variance."


def figure(
    mae: Learner,
    images: Float[Tensor, "B C H W"],
    *,
    ratios: Sequence[float] = RATIOS,
    names: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    noted: bool = True,
) -> Figure:
    """Images and their reconstructions, a row each; with a single ratio it fits a column of text, or a phone.

    Args:
        mae: A trained masked autoencoder with its decoder, in eval mode.
        images: Normalised images.
        ratios: Shares of patches to hide, a group of columns each; nothing is hidden from a learner that sees whole images.
        names: Of the images.
        seed: Of what is hidden.
        mean: What the images were normalised with; what the encoder's config says by default.
        std: Likewise.
        noted: Whether `notes` are written below.

    Raises:
        UnveilError: For a learner that draws no images, with the reason.
    """
    paint = painter(mae)
    vit = shape(mae)
    mean, std = mean or vit.mean, std or vit.std
    images = images.to(next(mae.parameters()).device)
    ratios = ratios if hides_some(mae) else (0.0,)
    groups = (1, *(3 if ratio else 1 for ratio in ratios))
    sheet = Sheet(len(images), groups, vit.image_size, names=names, notes=notes(mae) if noted else ())
    originals = displayable(images, mean, std)
    for row, image in enumerate(originals):
        sheet.show(row, 0, image, "original" if row == 0 else "")
    for group, ratio in enumerate(ratios):
        if not ratio:
            for row, image in enumerate(displayable(paint(images).pixels, mean, std)):
                sheet.show(row, 1 + 3 * group, image, LABELS[1] if row == 0 else "")
            continue
        hidden = masks(mae, len(images), ratio, seed)
        made = paint(images, hidden)
        masked = np.where(hidden_pixels(hidden, vit), HIDDEN, originals)
        columns = (masked, displayable(made.pixels, mean, std), displayable(made.pasted, mean, std))
        for i, (label, stacked) in enumerate(zip(LABELS, columns, strict=True)):
            for row, image in enumerate(stacked):
                sheet.show(row, 1 + 3 * group + i, image, label if row == 0 else "")
        trained = ", as in training" if ratio == trained_ratio(mae) else ""
        share = 100 * float(hidden.float().mean())  # what was asked for, in whole patches
        sheet.heading(1 + 3 * group, 3 + 3 * group, f"{share:.0f} % hidden{trained}")
    return sheet.figure


def painter(learner: Learner) -> Any:
    """The learner's `reconstruct`. Raises `UnveilError` for a learner that has none."""
    paint = getattr(learner, "reconstruct", None)
    if paint is None:
        raise UnveilError(f"{type(learner).__name__} draws no images: only a masked autoencoder with its decoder can reconstruct")
    return paint


def hides_some(learner: Learner) -> bool:
    """Whether what the learner reconstructs was hidden in part."""
    return bool(getattr(learner, "hides", True))


def shape(mae: Learner) -> ViTConfig:
    """The config of the learner's encoder."""
    encoder: Any = mae.encoder
    config: ViTConfig = encoder.config
    return config


def trained_ratio(mae: Learner) -> float:
    """The share of patches that was hidden in training; the paper's where the learner does not say."""
    return float(getattr(getattr(mae, "config", None), "mask_ratio", 0.75))


def notes(mae: Learner) -> list[str]:
    """What a reader has to know to judge the reconstructions."""
    borrowed = BORROWED if isinstance(getattr(mae, "target", None), NormalisedTarget) else None
    knobs = getattr(mae, "config", None)
    untrained = UNTRAINED if getattr(knobs, "loss_on_all", None) is False else None
    return [note for note in (borrowed, untrained, channel_note(shape(mae).channels)) if note]


def masks(mae: Learner, count: int, ratio: float, seed: int) -> Bool[Tensor, "B N"]:
    """What is hidden of each image: at random, or in the method's own way at the ratio that it was trained with."""
    knobs, keys = getattr(mae, "config", None), sample_keys(seed, 0, count)
    own: Any = getattr(mae, "mask", None)
    patches = math.prod(shape(mae).grid)
    if own and getattr(knobs, "sampling", "random") != "random" and ratio == trained_ratio(mae):
        hide = own(keys)[1]
    else:
        hide = random_mask(uniform(keys, patches, stream=1), ratio)[1]
    return as_bool(hide, patches).to(next(mae.parameters()).device)


def hidden_pixels(hidden: Bool[Tensor, "B N"], vit: ViTConfig) -> Bool[np.ndarray, "B H W 1"]:
    """True at each pixel of a hidden patch."""
    (rows, columns), (height, width) = vit.grid, vit.patch_size
    patches = hidden.reshape(-1, rows, columns, 1)
    return patches.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2).cpu().numpy()


def suitable_ratios(mae: Learner) -> tuple[float, ...]:
    """Three ratios to show, one of them the trained one; fewer where there are too few patches to hide that many."""
    if not hides_some(mae):
        return (0.0,)
    patches, trained = math.prod(shape(mae).grid), trained_ratio(mae)
    nearest = min(RATIOS, key=lambda ratio: abs(ratio - trained))
    wanted = [trained if ratio == nearest else ratio for ratio in RATIOS]
    possible = []
    for ratio in wanted:
        try:
            reconstructs_hidden = visible_count(patches, ratio) < patches
        except UnveilError:
            continue
        if reconstructs_hidden:
            possible.append(ratio)
    return tuple(possible)
