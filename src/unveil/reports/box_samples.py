"""The sections of a report about detections: images with their objects and with what was found, and precision-recall curves."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from unveil.errors import UnveilError
from unveil.plain_text import count_of
from unveil.reports.class_maps import class_colours, legend
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.image_grid import ImageGrid
from unveil.reports.sections import name_list, refuse_bomb
from unveil.reports.style import LIGHT, inline_svg, new_figure, styled
from unveil.reports.vocabulary import Results
from unveil.train.run_folder import Run

MOST = 16
"""Maximum number of images."""
LABELS = ("truth", "found")


class SavedBoxes(NamedTuple):
    """The content of `boxes.npz`: see `unveil.runs.box_samples`."""

    true: np.ndarray
    predicted: np.ndarray
    missed: np.ndarray
    wrong: np.ndarray
    worst: np.ndarray
    classes: np.ndarray
    names: list[str]


def boxes_section(run: Run, *, worst: bool) -> Markup | None:
    """The images that are spread over the test set, or the worst ones; None without any; a sentence if the file is damaged."""
    path = run.path / "boxes.npz"
    if not path.exists():
        return None
    try:
        found = read_boxes(path)
    except UnveilError as error:
        return None if worst else element("p", f"Not shown: {error}.")
    rows = np.nonzero(found.worst == worst)[0].tolist()
    if not rows:
        return None
    lines = -(-len(rows) // 2)
    grid = ImageGrid(lines, (2, 2), found.true.shape[1:3], headings=False, label_rows=range(lines), side=1.9)
    for place, row in enumerate(rows):
        line, first = place // 2, 2 * (place % 2)
        for column, (label, picture) in enumerate(zip(LABELS, (found.true[row], found.predicted[row]), strict=True)):
            grid.add_image(line, first + column, picture / 255, f"{place + 1}: {label}" if column == 0 else label)
    alt = f"{count_of(len(rows), 'image')} with the objects of the annotation, and with those that were found."
    figure = element("figure", inline_svg(grid.figure, "worst" if worst else "found", alt), class_="wide")
    said = "The images with the most errors." if worst else "The model was not trained on these images."
    note = element("p", f"{said} Objects with a score of at least 0.5 are shown; one that overlaps none by half (IoU) is an error.")
    names = [f"{found.names[row]} ({found.missed[row]} missed, {found.wrong[row]} wrong)" for row in rows]
    classes = run.results.get("classes") or []
    shown = np.nonzero(found.classes[rows].any(axis=0))[0].tolist()
    return join_markup([figure, legend(classes, class_colours(len(classes)), shown), note, name_list(names)])


def precision_section(results: Results) -> Markup | None:
    """The precision at each recall; None without such curves, or if they are damaged."""
    curves = (results.get("score") or {}).get("pr_curves")
    if not isinstance(curves, dict):
        return None
    recalls = numbers_of(curves.get("recalls"))
    lines = [(title, numbers_of(curves.get(key))) for key, title in (("iou50", "IoU 0.5"), ("iou75", "IoU 0.75"))]
    if not recalls or any(len(values) != len(recalls) for _, values in lines):
        return None
    figure = new_figure(4.4, 2.8)
    with styled():
        axes = figure.add_axes((0.12, 0.17, 0.84, 0.78), xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        for (title, values), colour in zip(lines, ("primary", "secondary"), strict=True):
            axes.plot(recalls, values, color=LIGHT[colour], linewidth=1.8, label=title)
        axes.legend(loc="lower left", frameon=False)
    means = " and ".join(f"{100 * sum(values) / len(values):.1f} % at {title}" for title, values in lines)
    caption = f"Precision at each recall, a mean over classes. The mean precision is {means}."
    return element("figure", inline_svg(figure, "precision", caption), element("figcaption", caption))


def numbers_of(values: object) -> list[float]:
    """A list of numbers between 0 and 1; an empty one for anything else."""
    is_curve = isinstance(values, list) and all(isinstance(x, int | float) and 0 <= x <= 1 for x in values)
    return list(values) if is_curve and isinstance(values, list) else []


def read_boxes(path: Path) -> SavedBoxes:
    """Reads the pictures of a report. Raises `UnveilError` if the file is damaged, or holds something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            refuse_bomb(arrays, path)
            true, predicted, missed, wrong, worst, classes = (np.asarray(arrays[key]) for key in SavedBoxes._fields[:-1])
            names = [str(name) for name in arrays["names"]]
    except UnveilError:
        raise
    except Exception as error:  # a damaged archive can raise any exception of zipfile, zlib, NumPy and its parser
        raise UnveilError(f"{path} is damaged ({type(error).__name__})") from None
    count = len(true) if true.ndim == 4 else 0
    pictures = all(each.shape == true.shape and each.dtype == np.uint8 for each in (true, predicted))
    columns = all(each.shape == (count,) for each in (missed, wrong, worst))
    kinds = tuple(each.dtype.kind for each in (missed, wrong, worst, classes)) == ("i", "i", "b", "b")
    columns &= classes.ndim == 2 and len(classes) == count
    if not 1 <= count <= MOST or true.shape[3] != 3 or not (pictures and columns and kinds) or len(names) != count:
        raise UnveilError(f"{path} is damaged: it holds no images with objects")
    return SavedBoxes(true, predicted, missed, wrong, worst, classes, names)
