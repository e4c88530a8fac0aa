"""A figure of images and the images that are nearest to them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unveil.data.pixels import Pixels
from unveil.reports.image_grid import ImageGrid, shorten_name
from unveil.reports.pictures import as_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, SIDE = 6, 192
"""Nearest images in a row, and the side of a cell in pixels."""


def neighbour_figure(
    names: Sequence[str], pictures: Sequence[tuple[Pixels, Sequence[Pixels]]], labels: Sequence[Sequence[tuple[str, str]]]
) -> "Figure":
    """Each image to the left of the images that are nearest to it, in rows of `COLUMNS`.

    Args:
        names: A name for each image.
        pictures: Each image (H, W, C), and the images that are nearest to it.
        labels: For each nearest image, two lines: a similarity, and a class or a name.
    """
    rows = [max(1, -(-len(near) // COLUMNS)) for _, near in pictures]
    columns = min(COLUMNS, max((len(near) for _, near in pictures), default=1)) or 1
    grid = ImageGrid(sum(rows), (1, columns), (SIDE, SIDE), headings=False, label_rows=range(sum(rows)), side=1.2)
    row = 0
    for name, (picture, near), lines, height in zip(names, pictures, labels, rows, strict=True):
        grid.add_image(row, 0, square(picture), f"image\n{shorten_name(name, 18)}")
        for index, (other, (first, second)) in enumerate(zip(near, lines, strict=True)):
            grid.add_image(row + index // COLUMNS, 1 + index % COLUMNS, square(other), f"{first}\n{shorten_name(second, 18)}")
        row += height
    return grid.figure


def square(pixels: Pixels) -> np.ndarray:
    """An image on a white square, in colours between 0 and 1. Small images are enlarged with visible pixels."""
    values = as_bytes(pixels)
    image = Image.fromarray(values).convert("RGB")
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    canvas.paste(image, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(canvas) / 255
