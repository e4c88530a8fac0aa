"""The section of a report with test images of a segmentation: image, true and predicted map, and the wrong pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unveil.data.pixels import IGNORE
from unveil.errors import UnveilError
from unveil.plain_text import count_of
from unveil.reports.class_maps import classes_in, colour_map_image, legend
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.image_grid import ImageGrid
from unveil.reports.sections import name_list, refuse_bomb
from unveil.reports.style import inline_svg
from unveil.train.run_folder import Run

MOST = 16
"""Maximum number of images."""
LABELS = ("image", "truth", "prediction", "wrong")
WRONG = np.array([0.85, 0.1, 0.1])


class SavedMaps(NamedTuple):
    """The content of `maps.npz`: see `unveil.runs.map_samples`."""

    images: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    worst: np.ndarray
    names: list[str]
    colours: np.ndarray
    """(K, 3), between 0 and 1."""


def maps_section(run: Run, *, worst: bool) -> Markup | None:
    """The images that are spread over the test set, or the worst ones; None without any; a sentence if the file is damaged."""
    path = run.path / "maps.npz"
    if not path.exists():
        return None
    try:
        found = read_maps(path)
    except UnveilError as error:
        return None if worst else element("p", f"Not shown: {error}.")
    rows = np.nonzero(found.worst == worst)[0].tolist()
    if not rows:
        return None
    numbers = [str(i + 1) for i in range(len(rows))]
    grid = ImageGrid(len(rows), (4,), found.images.shape[1:3], names=numbers, headings=False, side=1.5)
    for line, row in enumerate(rows):
        true, predicted = found.true[row], found.predicted[row]
        image = found.images[row] / 255
        cells = (
            image,
            colour_map_image(true, found.colours),
            colour_map_image(predicted, found.colours),
            wrong_pixels(image, true, predicted),
        )
        for column, (label, cell) in enumerate(zip(LABELS, cells, strict=True)):
            grid.add_image(line, column, cell, label if line == 0 else "")
    alt = f"{count_of(len(rows), 'image')}, the true class of each pixel, the predicted class, and where they differ."
    figure = element("figure", inline_svg(grid.figure, "worst" if worst else "predictions", alt), class_="wide")
    said = (
        "The images with the lowest mean IoU of the classes that they have."
        if worst
        else "The model was not trained on these images."
    )
    note = element("p", f"{said} Pixels without a class are white; wrong ones are red.")
    names = [
        f"{found.names[row]} (IoU {100 * found.scores[row]:.1f} %)" if found.scores[row] == found.scores[row] else found.names[row]
        for row in rows
    ]
    return join_markup(
        [
            figure,
            legend(classes_of(run), found.colours, classes_in(found.true[rows], found.predicted[rows])),
            note,
            name_list(names),
        ]
    )


def classes_of(run: Run) -> Sequence[str]:
    """The names of the classes of a run."""
    return run.results.get("classes") or []


def wrong_pixels(image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """An image in light grey, with the wrong pixels in red. Those without a true class are never wrong."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.5 + 0.5
    return np.where(((true != predicted) & (true != IGNORE))[:, :, None], WRONG, grey)


def read_maps(path: Path) -> SavedMaps:
    """Reads the images of a report. Raises `UnveilError` if the file is damaged, or holds something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            refuse_bomb(arrays, path)
            images, true, predicted, scores, worst, colours = (
                np.asarray(arrays[key]) for key in ("images", "true", "predicted", "scores", "worst", "colours")
            )
            names = [str(name) for name in arrays["names"]]
    except UnveilError:
        raise
    except Exception as error:  # a damaged archive can raise any exception of zipfile, zlib, NumPy and its parser
        raise UnveilError(f"{path} is damaged ({type(error).__name__})") from None
    count = len(images) if images.ndim == 4 else 0
    shapes = [each.shape == images.shape[:3] and each.dtype == np.uint8 for each in (true, predicted)]
    lengths = [each.shape == (count,) for each in (scores, worst)]
    if (
        not 1 <= count <= MOST
        or images.dtype != np.uint8
        or images.shape[3] != 3
        or not all(shapes + lengths)
        or (scores.dtype.kind, worst.dtype.kind) != ("f", "b")
        or len(names) != count
        or colours.dtype != np.uint8
        or colours.ndim != 2
        or colours.shape[1] != 3
    ):
        raise UnveilError(f"{path} is damaged: it holds no images with class maps")
    return SavedMaps(images, true, predicted, scores, worst, names, colours / 255)
