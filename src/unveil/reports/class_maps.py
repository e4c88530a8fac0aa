"""Figures for tasks with one class per pixel: image, true map and predicted map side by side, with one colour per class."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.class_map_files import class_colours as byte_colours
from unveil.data.pixels import IGNORE
from unveil.reports.html import Markup, element
from unveil.reports.image_grid import ImageGrid, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP_LABELS = ("image", "truth", "prediction")


def class_colours(count: int) -> Float[np.ndarray, "K 3"]:
    """A colour between 0 and 1 for each class: see `unveil.data.class_map_files`."""
    return byte_colours(count).numpy() / 255


def colour_map_image(classes: Int[np.ndarray, "H W"], colours: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "H W 3"]:
    """Converts a class map to an image. Pixels without a class are white."""
    image = np.ones((*classes.shape, 3))
    valid = (classes >= 0) & (classes < len(colours)) & (classes != IGNORE)
    image[valid] = colours[classes[valid]]
    return image


def class_map_figure(
    images: Float[Tensor, "B C H W"],
    maps: Int[np.ndarray, "B H W"],
    predicted: Int[np.ndarray, "B H W"],
    *,
    colours: Float[np.ndarray, "K 3"],
    mean: Sequence[float],
    std: Sequence[float],
    names: Sequence[str] | None = None,
) -> "Figure":
    """Draws one row per image: the normalised image, the true map and the predicted map. Maps may be smaller than the images."""
    grid = ImageGrid(len(images), (3,), (images.shape[2], images.shape[3]), names=names, headings=False)
    for row, (image, true, guess) in enumerate(zip(to_rgb(images, mean, std), maps, predicted, strict=True)):
        cells = (image, colour_map_image(true, colours), colour_map_image(guess, colours))
        for column, (label, cell) in enumerate(zip(MAP_LABELS, cells, strict=True)):
            grid.add_image(row, column, cell, label if row == 0 else "")
    return grid.figure


def legend(classes: Sequence[str], colours: Float[np.ndarray, "K 3"], shown: Collection[int]) -> Markup:
    """The names of those classes that are shown, each with its colour."""
    codes = ["#" + "".join(f"{round(255 * level):02x}" for level in colour) for colour in colours.tolist()]
    items = [
        element("li", element("span", style=f"background:{code}"), name)
        for place, (name, code) in enumerate(zip(classes, codes, strict=False))
        if place in shown
    ]
    return element("ul", *items, class_="legend") if items else Markup("")


def classes_in(*maps: Int[np.ndarray, "..."]) -> set[int]:
    """The classes that occur in maps."""
    return {int(each) for map_ in maps for each in np.unique(np.asarray(map_))}
