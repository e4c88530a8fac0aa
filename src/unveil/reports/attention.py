"""Where the class token of an encoder looks in its last block."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from unveil.errors import UnveilError
from unveil.reports.image_grid import Sheet, channel_note, displayable

Weights = Float[np.ndarray, "rows columns"]
Image = Float[np.ndarray, "H W 3"]
WIDEST = 5
"""Cells in a line, so that a line can be read on a phone."""
NOTE = (
    "Brightness runs from no attention to each map's own maximum; the number says how many times more that is than "
    "every patch would get if all got the same."
)


def figure(
    encoder: nn.Module,
    images: Float[Tensor, "B C H W"],
    *,
    names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    noted: bool = True,
) -> Figure:
    """Images, the attention of the class token averaged over heads upon each, and that of each head.

    Args:
        encoder: A Vision Transformer, in eval mode.
        images: Normalised images.
        names: Of the images.
        mean: What the images were normalised with; what the encoder's config says by default.
        std: Likewise.
        noted: Whether `notes` are written below.

    Raises:
        UnveilError: For an encoder that has no class token to look with.
    """
    looks = getattr(encoder, "attention", None)
    if looks is None:
        raise UnveilError(f"{type(encoder).__name__} has no class token whose attention could be shown")
    config: Any = encoder.config
    images = images.to(next(encoder.parameters()).device)
    weights = looks(images).float().cpu().numpy()  # (B, h, N)
    maps = weights.reshape(*weights.shape[:2], *config.grid)  # (B, h, rows, columns)
    heads = maps.shape[1]
    lines = -(-(2 + heads) // WIDEST)
    across = -(-(2 + heads) // lines)
    sheet = Sheet(
        len(images) * lines,
        (across,),
        (images.shape[2], images.shape[3]),
        names=[name for name in names for name in (name, *[""] * (lines - 1))] if names else None,
        notes=notes(config.channels) if noted else (),
        headed=False,
        label_rows=range(len(images) * lines),
        side=0.78,
    )
    originals = displayable(images, mean or config.mean, std or config.std)
    for i, (image, looking) in enumerate(zip(originals, maps, strict=True)):
        average = looking.mean(axis=0)
        cells = [("image", image), (f"all heads\n{peak(average)}", overlaid(image, average))]
        cells += [(f"head {head}\n{peak(one)}", coloured(one, image)) for head, one in enumerate(looking, start=1)]
        for place, (label, cell) in enumerate(cells):
            sheet.show(i * lines + place // across, place % across, cell, label)
    return sheet.figure


def notes(channels: int) -> list[str]:
    """What a reader has to know to judge the maps."""
    return [note for note in (NOTE, channel_note(channels)) if note]


def peak(weights: Weights) -> str:
    """The largest weight, as a multiple of their mean."""
    return f"{weights.max() / max(weights.mean(), 1e-12):.1f}\N{MULTIPLICATION SIGN}"


def enlarged(weights: Weights, image: Image) -> Float[np.ndarray, "H W"]:
    """The weights from 0 to 1 at the size of the image, each patch a flat square."""
    scaled = weights / max(weights.max(), 1e-12)
    return np.kron(scaled, np.ones((image.shape[0] // weights.shape[0], image.shape[1] // weights.shape[1])))


def coloured(weights: Weights, image: Image) -> Image:
    """The weights as colours at the size of the image."""
    return np.asarray(colormaps["magma"](enlarged(weights, image)))[..., :3]


def overlaid(image: Image, weights: Weights) -> Image:
    """The image in grey, lit where the weights are large."""
    grey = image.mean(axis=2, keepdims=True)
    share = 0.75 * enlarged(weights, image)[..., None]
    lit: Image = 0.8 * grey * (1 - share) + coloured(weights, image) * share
    return lit
