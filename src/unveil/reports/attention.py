"""Figures of the attention of the class token in the last block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from unveil.errors import UnveilError
from unveil.protocols import HasAttention
from unveil.reports.image_grid import ImageGrid, channel_note, to_rgb
from unveil.reports.style import apply_colormap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = Float[np.ndarray, "rows columns"]
RGBImage = Float[np.ndarray, "H W 3"]
MAX_COLUMNS = 5
"""Maximum number of cells in a row, for small screens."""
SCALE_NOTE = (
    "Brightness goes from no attention to the maximum of each map. The number compares this maximum to uniform attention, which "
    "would be 1\N{MULTIPLICATION SIGN} everywhere."
)


def attention_figure(
    encoder: nn.Module,
    images: Float[Tensor, "B C H W"],
    *,
    names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    with_notes: bool = True,
) -> "Figure":
    """Draws images, the attention of the class token averaged over heads, and the attention of each head.

    Args:
        encoder: A Vision Transformer, in eval mode.
        images: Normalised images.
        names: Names of the images.
        mean: The mean with which the images were normalised; by default that of the encoder's config.
        std: The standard deviation with which the images were normalised; by default that of the encoder's config.
        with_notes: Whether to write `attention_notes` below.

    Raises:
        UnveilError: If the encoder has no attention of a class token.
    """
    if not isinstance(encoder, HasAttention):
        raise UnveilError(f"{type(encoder).__name__} has no class token whose attention could be shown")
    config: Any = encoder.config
    images = images.to(next(encoder.parameters()).device)
    weights = encoder.attention(images).float().cpu().numpy()  # (B, h, N)
    maps = weights.reshape(*weights.shape[:2], *config.grid)  # (B, h, rows, columns)
    cell_count = 2 + maps.shape[1]  # the image, the mean over heads, and each head
    lines = -(-cell_count // MAX_COLUMNS)
    columns = -(-cell_count // lines)
    grid = ImageGrid(
        len(images) * lines,
        (columns,),
        (images.shape[2], images.shape[3]),
        names=[name for name in names for name in (name, *[""] * (lines - 1))] if names else None,
        notes=attention_notes(config.channels) if with_notes else (),
        headings=False,
        label_rows=range(len(images) * lines),
        side=0.78,
    )
    originals = to_rgb(images, mean or config.mean, std or config.std)
    for i, (image, heads) in enumerate(zip(originals, maps, strict=True)):
        average = heads.mean(axis=0)
        cells = [("image", image), (f"all heads\n{peak(average)}", overlay(image, average))]
        cells += [(f"head {number}\n{peak(head)}", to_colours(head, image)) for number, head in enumerate(heads, start=1)]
        for index, (label, cell) in enumerate(cells):
            grid.add_image(i * lines + index // columns, index % columns, cell, label)
    return grid.figure


def attention_notes(channels: int) -> list[str]:
    """Notes that explain the maps."""
    return [note for note in (SCALE_NOTE, channel_note(channels)) if note]


def peak(weights: Weights) -> str:
    """The largest weight, as a multiple of the mean."""
    return f"{weights.max() / max(weights.mean(), 1e-12):.1f}\N{MULTIPLICATION SIGN}"


def upsample(weights: Weights, image: RGBImage) -> Float[np.ndarray, "H W"]:
    """Scales weights to 0 to 1, and enlarges them to the size of the image without interpolation."""
    scaled = weights / max(weights.max(), 1e-12)
    return np.kron(scaled, np.ones((image.shape[0] // weights.shape[0], image.shape[1] // weights.shape[1])))


def to_colours(weights: Weights, image: RGBImage) -> RGBImage:
    """Maps weights to colours, at the size of the image."""
    return apply_colormap("magma", upsample(weights, image))


def overlay(image: RGBImage, weights: Weights) -> RGBImage:
    """The image in grey, with large weights in colour."""
    grey = image.mean(axis=2, keepdims=True)
    share = 0.75 * upsample(weights, image)[..., None]
    blend: RGBImage = 0.8 * grey * (1 - share) + to_colours(weights, image) * share
    return blend
