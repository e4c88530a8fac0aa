"""Who was taken for whom: accuracy of each class, and the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from unveil.reports.html import Markup, element, join, table
from unveil.reports.image_grid import short
from unveil.reports.style import LIGHT, TYPE, inline
from unveil.reports.verdict import percent

MOST = 20
"""Classes that a table has room for."""


def class_section(score: dict[str, Any], classes: Sequence[str]) -> Markup:
    """Accuracy of each class, the confusion matrix, and the most frequent mistakes."""
    counts = np.array(score["confusion"], dtype=np.int64)
    names = [classes[i] if i < len(classes) else f"class {i}" for i in range(len(counts))]
    parts: list[object] = [per_class(score["per_class"], names, counts)]
    parts.append(matrix(counts, names) if len(names) <= MOST else image_of(counts))
    return join([*parts, mistakes(counts, names)])


def per_class(shares: Sequence[float | None], names: Sequence[str], counts: np.ndarray) -> Markup:
    """A bar for each class, the worst first; of many classes the worst and the best."""
    order = sorted(range(len(names)), key=lambda i: (shares[i] is None, shares[i] or 0.0))
    title = "Accuracy of each class, the worst first"
    if len(order) > MOST:
        known = [i for i in order if shares[i] is not None]
        order = list(dict.fromkeys([*known[: MOST // 2], *known[-MOST // 2 :]]))
        title = f"Accuracy of classes: the {MOST // 2} worst and the {MOST // 2} best of {len(names)}"
    rows = []
    for i in order:
        bar = element("td", element("span", style=f"width:{100 * (shares[i] or 0):.1f}%"), class_="bar")
        rows.append([names[i], percent(shares[i]).replace(" ", "\N{NO-BREAK SPACE}"), f"{counts[i].sum():,}", bar])
    return table(["class", "right", "images", "share"], rows, title=title, class_="numbers bars")


def matrix(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """The confusion matrix as a table, each cell as strong as its share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, line, share in zip(names, counts, shares, strict=True):
        cells = [
            element("td", f"{n:,}" if n else "", class_="strong" if s > 0.5 else "cell", style=f"--share:{s:.3f}")
            for n, s in zip(line.tolist(), share.tolist(), strict=True)
        ]
        rows.append([short(name, 16), *cells])
    title = "Confusion: rows are the true classes, columns what they were taken for; colour is the share of the row"
    return table(["", *(short(name, 12) for name in names)], rows, title=title, class_="confusion")


def image_of(counts: np.ndarray) -> Markup:
    """The confusion matrix of many classes, as an image."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with rc_context(TYPE | {"axes.grid": False}):
        figure = Figure(figsize=(4.6, 4.3), facecolor=LIGHT["paper"])
        axes = figure.add_axes((0.14, 0.12, 0.82, 0.85))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        axes.set(xlabel="taken for class number", ylabel="true class number")
    right = float(np.trace(counts) / max(counts.sum(), 1))
    alt = f"Confusion matrix of {len(counts)} classes; {percent(right)} lie on the diagonal."
    drawn = inline(figure, "confusion", alt)
    caption = "Confusion: rows are the true classes, columns what they were taken for; dark is much of its row."
    return element("figure", drawn, element("figcaption", caption))


def mistakes(counts: np.ndarray, names: Sequence[str], most: int = 8) -> Markup:
    """The most frequent confusions of two classes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = [(*divmod(int(i), len(wrong)), int(wrong.flat[i])) for i in order if wrong.flat[i] > 0]
    if not found:
        return element("p", "No image was taken for one of another class.")
    rows = [[names[true], names[taken], f"{n:,}", f"{counts[true].sum():,}"] for true, taken, n in found]
    return table(["class", "taken for", "times", "of"], rows, title="Most frequent mistakes", class_="numbers mistakes")
