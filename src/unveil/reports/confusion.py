"""Metrics of each class, the confusion matrix, and the most frequent mistakes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from unveil.reports.html import Markup, element, join_markup, table_element
from unveil.reports.image_grid import shorten_name
from unveil.reports.style import inline_svg, new_figure, styled
from unveil.reports.vocabulary import Results, humanize, label_of, percent, primary_of

MAX_CLASSES = 20
"""Maximum number of classes in a table."""
ConfusionMatrix = Int[np.ndarray, "K K"]
"""A confusion matrix: true classes as rows, predicted classes as columns."""


def class_section(results: Results) -> Markup | None:
    """Metrics of each class, the confusion matrix and the most frequent mistakes, if the metric of a task has them."""
    metric = results.get("score") or {}
    columns = per_class_columns(results)
    counts = np.array(metric["confusion"], dtype=np.int64) if metric.get("confusion") else None
    size = len(counts) if counts is not None else max((len(values) for values in columns.values()), default=0)
    if not size:
        return None
    classes = results.get("classes") or []
    rest = "background" if metric.get("background") else "class {}"  # of detections that are of no object, and the other way round
    names = [classes[i] if i < len(classes) else rest.format(i) for i in range(size)]
    unit = metric.get("unit") or results.get("samples", "images")
    known = names[: max(map(len, columns.values()))] if columns else []
    parts: list[object] = [class_table(columns, known, counts, unit)] if columns else []
    if counts is not None:
        counted, best = "", metric.get("score_threshold")
        if metric.get("background") and isinstance(best, float):
            counted = f" of objects with a score of at least {best:.2f}, at which F1 is best"
        parts.append(confusion_table(counts, names, counted) if size <= MAX_CLASSES else confusion_figure(counts, counted))
        parts.append(mistake_table(counts, names))
    return join_markup(parts)


def per_class_columns(results: Results) -> dict[str, list[float | None]]:
    """All per-class lists of the metric, by a heading such as "accuracy" or "IoU"."""
    metric: Mapping[str, Any] = results.get("score") or {}
    columns = {}
    for key, values in metric.items():
        if key == "per_class" and values:
            primary = primary_of(results)
            name = "accuracy" if primary in (None, "top1") else re.sub(r"^(mean |m(?=[A-Z]))", "", label_of(str(primary)))
            columns[name] = list(values)
        elif key.startswith("per_class_") and values:
            columns[humanize(key.removeprefix("per_class_"))] = list(values)
    return columns


def class_table(
    columns: Mapping[str, Sequence[float | None]], names: Sequence[str], counts: ConfusionMatrix | None, unit: str
) -> Markup:
    """A table with a row and a bar for each class, the worst first. If there are many classes, only the worst and the best."""
    heading, shares = next(iter(columns.items()))
    order = sorted(range(len(names)), key=lambda i: (shares[i] is None, shares[i] or 0.0))
    title = f"{heading[0].upper()}{heading[1:]} of each class, the worst first"
    if len(order) > MAX_CLASSES:
        measured, half = [i for i in order if shares[i] is not None], MAX_CLASSES // 2
        order = list(dict.fromkeys([*measured[:half], *measured[-half:]]))
        title = f"{heading[0].upper()}{heading[1:]}: the {half} worst and the {half} best of {len(names)} classes"
    rows = []
    for i in order:
        cells = [percent(values[i]).replace(" ", "\N{NO-BREAK SPACE}") for values in columns.values()]
        if counts is not None:
            cells.append(f"{counts[i].sum():,}")
        bar = element("td", element("span", style=f"width:{100 * (shares[i] or 0):.1f}%"), class_="bar")
        rows.append([names[i], *cells, bar])
    heads = ["class", *columns, *([unit] if counts is not None else []), ""]
    return table_element(heads, rows, title=title, class_="numbers bars")


def confusion_table(counts: ConfusionMatrix, names: Sequence[str], counted: str = "") -> Markup:
    """The confusion matrix as a table; `counted` says of what. The colour of a cell is its share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, line, share in zip(names, counts, shares, strict=True):
        cells = [
            element("td", f"{n:,}" if n else "", class_="strong" if s > 0.5 else "cell", style=f"--share:{s:.3f}")
            for n, s in zip(line.tolist(), share.tolist(), strict=True)
        ]
        rows.append([shorten_name(name, 16), *cells])
    title = f"Confusion matrix{counted}: rows are true classes, columns are predicted classes; the colour is the share of the row"
    return table_element(["", *(shorten_name(name, 12) for name in names)], rows, title=title, class_="confusion")


def confusion_figure(counts: ConfusionMatrix, counted: str = "") -> Markup:
    """The confusion matrix of many classes as an image; `counted` says of what."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = new_figure(4.6, 4.3)
    with styled({"axes.grid": False}):
        axes = figure.add_axes((0.14, 0.12, 0.82, 0.85))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        axes.set(xlabel="index of the predicted class", ylabel="index of the true class")
    correct = float(np.trace(counts) / max(counts.sum(), 1))
    alt = f"Confusion matrix of {len(counts)} classes; {percent(correct)} lie on the diagonal."
    caption = f"Confusion matrix{counted}: rows are true classes, columns are predicted ones; darker is a larger share of the row."
    return element("figure", inline_svg(figure, "confusion", alt), element("figcaption", caption))


def mistake_table(counts: ConfusionMatrix, names: Sequence[str], most: int = 8) -> Markup:
    """The most frequent confusions of two classes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    mistakes = [(*divmod(int(i), len(wrong)), int(wrong.flat[i])) for i in order if wrong.flat[i] > 0]
    if not mistakes:
        return element("p", "There are no mistakes: every prediction is correct.")
    rows = [[names[true], names[predicted], f"{n:,}", f"{counts[true].sum():,}"] for true, predicted, n in mistakes]
    heads = ["true class", "predicted as", "times", "of"]
    return table_element(heads, rows, title="Most frequent mistakes", class_="numbers mistakes")
