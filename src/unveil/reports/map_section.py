"""The map of the features in a report: each image is a dot, which shows its thumbnail when one points at it. Without scripts."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unveil.errors import UnveilError
from unveil.plain_text import count_of, printable
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.image_grid import shorten_name
from unveil.reports.pictures import data_uri
from unveil.reports.sections import refuse_bomb
from unveil.train.run_folder import Run

MOST = 2000
"""Maximum number of dots of a map."""
COLOURS = ("#4a90d9", "#e0812e", "#3fa66b", "#d9534f", "#9b6fd0", "#a8795a", "#df79b8", "#8f9b2e", "#27a9b8", "#c9a227")
"""Colours of classes. They are readable on a light and on a dark page."""
ROW = 32
"""Thumbnails in a row of the sheet, which is one picture for all of them."""


class SavedMap(NamedTuple):
    """The content of `map.npz`: see `unveil.runs.image_evaluation.save_map`."""

    pca: np.ndarray
    tsne: np.ndarray | None
    explained: float
    labels: np.ndarray
    classes: list[str]
    names: list[str]
    thumbnails: np.ndarray


def map_section(run: Run) -> Markup | None:
    """Both maps side by side; None if the run has none; a sentence if the file is damaged."""
    path = run.path / "map.npz"
    if not path.exists():
        return None
    try:
        found = read_map(path)
    except UnveilError as error:
        return element("p", f"Not shown: {error}.")
    shown = [name for name, _ in Counter(found.labels[found.labels >= 0].tolist()).most_common(len(COLOURS))]
    colours = {label: index for index, label in enumerate(sorted(shown))}
    figures = [one_map(found.pca, found, colours, "Principal components")]
    if found.tsne is not None:
        figures.append(one_map(found.tsne, found, colours, "t-SNE"))
    sentences = (
        f"Features of {count_of(len(found.pca), 'image')} that the model was not trained on. Point at a dot, or tap it, to see its "
        f"image. The first two principal components hold {100 * found.explained:.0f} % of the variance, and show distances as "
        "far as two directions can."
    )
    if found.tsne is not None:
        sentences += (
            " t-SNE keeps neighbours together: images side by side are similar to the encoder, but the sizes of groups, the gaps "
            "between them and their places mean nothing, and it draws groups even where there are none."
        )
    parts = [element("style", style_of(found)), legend_of(found, colours), element("div", *figures, class_="maps")]
    return join_markup([*parts, element("p", sentences)])


def read_map(path: Path) -> SavedMap:
    """Reads a map. Raises `UnveilError` if the file is damaged, or holds something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            refuse_bomb(arrays, path)
            pca, labels, thumbnails = (np.asarray(arrays[key])[:MOST] for key in ("pca", "labels", "thumbnails"))
            tsne = np.asarray(arrays["tsne"])[:MOST] if "tsne" in arrays else None
            names, classes = ([str(name) for name in arrays[key]] for key in ("names", "classes"))
            explained = float(arrays["explained"])
    except UnveilError:
        raise
    except Exception as error:  # a damaged archive can raise any exception of zipfile, zlib, NumPy and its parser
        raise UnveilError(f"{path} is damaged ({type(error).__name__})") from None
    count = len(pca)
    places = [each for each in (pca, tsne) if each is not None]
    if (
        not count
        or any(each.shape != (count, 2) or each.dtype.kind != "f" or not np.isfinite(each).all() for each in places)
        or labels.shape != (count,)
        or labels.dtype.kind not in "iu"
        or labels.max() >= len(classes)
        or thumbnails.dtype != np.uint8
        or thumbnails.ndim != 4
        or thumbnails.shape[0] != count
        or thumbnails.shape[1] != thumbnails.shape[2]
        or not 1 <= thumbnails.shape[1] <= 64
        or thumbnails.shape[3] != 3
        or len(names) < count
        or not np.isfinite(explained)
    ):
        raise UnveilError(f"{path} is damaged: it holds no map of features")
    return SavedMap(pca, tsne, explained, labels, classes, names, thumbnails)


def one_map(places: np.ndarray, found: SavedMap, colours: dict[int, int], title: str) -> Markup:
    """A square of dots. The place of a dot is a share of the side; its thumbnail, a row and a column of the sheet."""
    low, span = places.min(axis=0), max(float(np.ptp(places, axis=0).max()), 1e-9)
    middle = (1 - np.ptp(places, axis=0) / span) / 2
    shares = 100 * ((places - low) / span + middle)
    dots = []
    for index, ((x, y), label) in enumerate(zip(shares.tolist(), found.labels.tolist(), strict=True)):
        text = found.classes[label] if label >= 0 else shorten_name(found.names[index], 30)
        dots.append(
            element(
                "i",
                style=f"margin:{100 - y:.1f}% 0 0 {x:.1f}%;--u:{index % ROW};--v:{index // ROW}",
                class_=f"k{colours[label]}" if label in colours else "k",
                data_text=printable(text)[:60],
                tabindex=-1,
            )
        )
    box = element("div", *dots, class_="map", role="img", aria_label=f"{title}: {count_of(len(dots), 'dot')}")
    return element("figure", element("h3", title), box)


def style_of(found: SavedMap) -> Markup:
    """The colours of the classes, and the sheet of thumbnails, of which each dot shows its own part."""
    side, count = found.thumbnails.shape[1], len(found.thumbnails)
    rows = -(-count // ROW)
    sheet = np.zeros((rows * ROW, side, side, 3), np.uint8)
    sheet[:count] = found.thumbnails
    picture = Image.fromarray(sheet.reshape(rows, ROW, side, side, 3).swapaxes(1, 2).reshape(rows * side, ROW * side, 3))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=70)
    classes = "".join(f".map .k{index}{{--dot:{colour}}}" for index, colour in enumerate(COLOURS))
    size = f"background-size:calc({ROW} * 6rem) calc({rows} * 6rem)"
    return Markup(f'.map i:is(:hover,:focus)::before{{background-image:url("{data_uri(stream.getvalue())}");{size}}}{classes}')


def legend_of(found: SavedMap, colours: dict[int, int]) -> Markup:
    """The names of the classes that have a colour, and what the other dots are."""
    names: Sequence[tuple[str, str]] = [(found.classes[label], COLOURS[index]) for label, index in colours.items()]
    others = len(set(found.labels[found.labels >= 0].tolist()) - set(colours))
    items: list[Any] = [element("li", element("span", style=f"background:{colour}"), name) for name, colour in names]
    if others:
        items.append(element("li", element("span", style="background:var(--tertiary)"), f"{others} other classes"))
    return element("ul", *items, class_="legend") if items else Markup("")
