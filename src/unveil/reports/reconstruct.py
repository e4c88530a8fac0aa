"""Figures of reconstructions.

    original | masked, reconstruction, visible patches pasted in | the same columns for a higher mask ratio | ...

B images, C H W, N patches. A higher ratio masks the patches of a lower ratio and more, so a row goes from easy to hard.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unveil.blocks.masks import as_bool, random_mask, visible_count
from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.errors import UnveilError
from unveil.models.vit_config import ViTConfig
from unveil.protocols import Reconstructs, SamplesMasks
from unveil.reports.image_grid import ImageGrid, channel_note, to_rgb
from unveil.reports.style import MASK_GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_RATIOS = (0.5, 0.75, 0.9)
COLUMN_LABELS = ("masked", "reconstruction", "visible patches\npasted in")
VISIBLE_NOTE = "The loss compares masked patches only, so the reconstruction of visible patches is arbitrary."
NORMALISED_NOTE = "The target is normalised per patch: each reconstructed patch gets the mean and the variance of the true patch."


def reconstruction_figure(
    learner: nn.Module,
    images: Float[Tensor, "B C H W"],
    *,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    names: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    with_notes: bool = True,
) -> "Figure":
    """Draws images and their reconstructions, one row each. With a single ratio, the figure fits a column of text or a phone.

    Args:
        learner: A trained learner that reconstructs images, such as a masked autoencoder with its decoder, in eval mode.
        images: Normalised images.
        ratios: Mask ratios, each with a group of columns. They are not used if the learner reconstructs from full images.
        names: Names of the images.
        seed: Random seed of the masks.
        mean: The mean with which the images were normalised; by default that of the encoder's config.
        std: The standard deviation with which the images were normalised; by default that of the encoder's config.
        with_notes: Whether to write `reconstruction_notes` below.

    Raises:
        UnveilError: If the learner cannot reconstruct images.
    """
    model, vit = require_reconstruct(learner), vit_config(require_reconstruct(learner))
    device = next(learner.parameters()).device
    mean, std = mean or vit.mean, std or vit.std
    images = images.to(device)
    ratios = ratios if model.reconstructs_hidden else (0.0,)
    groups = (1, *(3 if ratio else 1 for ratio in ratios))
    grid = ImageGrid(len(images), groups, vit.image_size, names=names, notes=reconstruction_notes(model) if with_notes else ())
    originals = to_rgb(images, mean, std)
    for row, image in enumerate(originals):
        grid.add_image(row, 0, image, "original" if row == 0 else "")
    for group, ratio in enumerate(ratios):
        first = 1 + 3 * group
        if not ratio:
            for row, image in enumerate(to_rgb(model.reconstruct(images).pixels, mean, std)):
                grid.add_image(row, first, image, COLUMN_LABELS[1] if row == 0 else "")
            continue
        hidden = masks_to_show(model, len(images), ratio, seed).to(device)
        result = model.reconstruct(images, hidden)
        masked = np.where(mask_of_pixels(hidden, vit), MASK_GREY, originals)
        columns = (masked, to_rgb(result.pixels, mean, std), to_rgb(result.pasted, mean, std))
        for i, (label, column) in enumerate(zip(COLUMN_LABELS, columns, strict=True)):
            for row, image in enumerate(column):
                grid.add_image(row, first + i, image, label if row == 0 else "")
        remark = ", as in training" if ratio == trained_ratio(model) else ""
        share = 100 * float(hidden.float().mean())  # the ratio in whole patches
        grid.add_heading(first, first + 2, f"{share:.0f} % masked{remark}")
    return grid.figure


def require_reconstruct(learner: object) -> Reconstructs:
    """Returns the learner. Raises `UnveilError` if it cannot reconstruct images."""
    if not isinstance(learner, Reconstructs):
        name = type(learner).__name__
        raise UnveilError(f"{name} cannot reconstruct images: use a masked autoencoder with its decoder, or a dVAE")
    return learner


def vit_config(model: Reconstructs) -> ViTConfig:
    config: ViTConfig = model.encoder.config
    return config


def trained_ratio(model: Reconstructs) -> float:
    """The mask ratio of training, or that of the MAE paper if the learner has none."""
    ratio = model.figure_facts()["mask_ratio"]
    return 0.75 if ratio is None else float(ratio)


def reconstruction_notes(model: Reconstructs) -> list[str]:
    """Notes that explain the reconstructions."""
    facts = model.figure_facts()
    normalised = NORMALISED_NOTE if facts["uses_true_patch_statistics"] else None
    arbitrary = VISIBLE_NOTE if model.reconstructs_hidden and not facts["loss_on_all"] else None
    return [note for note in (normalised, arbitrary, channel_note(vit_config(model).channels)) if note]


def masks_to_show(model: Reconstructs, count: int, ratio: float, seed: int) -> Bool[Tensor, "B N"]:
    """The masked patches of each image. At the ratio of training, masks are sampled as in training, else at random."""
    keys, patches = sample_keys(seed, 0, count), math.prod(vit_config(model).grid)
    own_sampling = model.figure_facts()["sampling"] not in (None, "random")
    if isinstance(model, SamplesMasks) and own_sampling and ratio == trained_ratio(model):
        hide = model.mask(keys)[1]
    else:
        hide = random_mask(uniform(keys, patches, stream=Stream.MASK), ratio)[1]
    return as_bool(hide, patches)


def mask_of_pixels(hidden: Bool[Tensor, "B N"], vit: ViTConfig) -> Bool[np.ndarray, "B H W 1"]:
    """True at each pixel of a masked patch."""
    (rows, columns), (height, width) = vit.grid, vit.patch_size
    patches = hidden.reshape(-1, rows, columns, 1)
    return patches.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2).cpu().numpy()


def suitable_ratios(model: Reconstructs) -> tuple[float, ...]:
    """Three mask ratios to show, including that of training; fewer if the images have too few patches."""
    if not model.reconstructs_hidden:
        return (0.0,)
    patches, trained = math.prod(vit_config(model).grid), trained_ratio(model)
    nearest = min(DEFAULT_RATIOS, key=lambda ratio: abs(ratio - trained))
    possible = []
    for ratio in (trained if ratio == nearest else ratio for ratio in DEFAULT_RATIOS):
        try:
            masks_some = visible_count(patches, ratio) < patches
        except UnveilError:
            continue
        if masks_some:
            possible.append(ratio)
    return tuple(possible)
