"""How a run went: its loss, its learning rate, and what was measured on the side."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from unveil.reports.style import LIGHT, TYPE
from unveil.train.log import Record

SIZE = (4.4, 2.5)
"""Inches: small enough that the type is legible where a phone shrinks the figure."""
ERRORS = (
    ("held_out_error", "this model", "model", "-"),
    ("patch_mean_error", "patch mean", "rival", (0, (5, 2))),
    ("image_mean_error", "image mean", "other", (0, (1, 1.6))),
)
SHARES = (
    ("knn", "k-NN accuracy"),
    ("accuracy", "Accuracy in training"),
    ("codebook_usage", "Share of the codebook in use"),
    ("word_accuracy", "Hidden words named at once"),
)


class Curve(NamedTuple):
    """A figure and what it says."""

    title: str
    figure: Figure
    summary: str
    """In a sentence, for a reader who cannot see it."""


class Line(NamedTuple):
    """A number over time."""

    x: list[float]
    y: list[float]


def curves(log: Sequence[Record]) -> list[Curve]:
    """The curves that the log has the numbers for."""
    unit = "epoch" if all("epoch" in record for record in log) else "step"
    drawn = [loss_curve(log, unit), rate_curve(log, unit), error_curve(log, unit)]
    drawn += [share_curve(log, unit, key, title) for key, title in SHARES]
    return [curve for curve in drawn if curve is not None]


def loss_curve(log: Sequence[Record], unit: str) -> Curve | None:
    """The loss as it was logged, and its running mean."""
    line = read(log, unit, "loss")
    if not line.y:
        return None
    figure, axes = paper(unit)
    window = max(1, len(line.y) // 25) | 1  # odd, so that the mean is centred
    smooth = running_mean(line.y, window)
    if window > 1:
        axes.plot(line.x, line.y, color=LIGHT["model"], linewidth=0.8, alpha=0.35)
    axes.plot(line.x, smooth, color=LIGHT["model"], linewidth=1.8)
    end(axes, line.x[-1], smooth[-1], f"{smooth[-1]:.3g}", "model")
    text = f"The loss goes from {smooth[0]:.3g} to {smooth[-1]:.3g} in {line.x[-1]:.3g} {unit}{'s' * (f'{line.x[-1]:.3g}' != '1')}."
    return Curve("Loss", figure, text + (f" The strong line is the mean of {window} log lines." if window > 1 else ""))


def rate_curve(log: Sequence[Record], unit: str) -> Curve | None:
    """The learning rate."""
    line = read(log, unit, "learning_rate")
    if not line.y:
        return None
    figure, axes = paper(unit)
    axes.plot(line.x, line.y, color=LIGHT["model"], linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}" if value else "0"))
    return Curve("Learning rate", figure, f"The learning rate peaks at {max(line.y):.3g}.")


def error_curve(log: Sequence[Record], unit: str) -> Curve | None:
    """Squared error on hidden patches of held-out images, beside two guesses that need no model."""
    if not read(log, unit, "held_out_error").y:
        return None
    figure, axes = paper(unit, right=1.25)
    ends, told = [], []
    for key, name, colour, dashes in ERRORS:
        line = read(log, unit, key)
        if line.y:
            dot = 3 if colour == "model" else 0
            axes.plot(line.x, line.y, color=LIGHT[colour], linewidth=1.8, linestyle=dashes, marker="o", markersize=dot)
            ends.append((line.x[-1], line.y[-1], f"{name} {line.y[-1]:.3g}", colour))
            told.append(f"{name} {line.y[-1]:.3g}")
    axes.set_ylim(bottom=0)
    for (x, _, text, colour), y in zip(ends, apart([y for _, y, _, _ in ends], 0.1 * axes.get_ylim()[1]), strict=True):
        end(axes, x, y, text, colour)
    summary = f"At the end: {', '.join(told)}. Lower is better; the means are those of the true pixels."
    return Curve("Squared error on hidden patches of held-out images", figure, summary)


def share_curve(log: Sequence[Record], unit: str, key: str, title: str) -> Curve | None:
    """A share of images that were recognised, in per cent."""
    line = read(log, unit, key)
    if not line.y:
        return None
    figure, axes = paper(unit, right=0.62)
    axes.plot(line.x, line.y, color=LIGHT["model"], linewidth=1.8, marker="o" if len(line.y) < 40 else "", markersize=3)
    axes.set_ylim(bottom=0)  # small changes look small
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 2):g} %"))
    end(axes, line.x[-1], line.y[-1], f"{100 * line.y[-1]:.1f} %", "model")
    first, last, best = (f"{100 * share:.1f} %" for share in (line.y[0], line.y[-1], max(line.y)))
    return Curve(title, figure, f"From {first} to {last}; the best is {best}.")


def read(log: Sequence[Record], unit: str, key: str) -> Line:
    """The finite values of a key, and when they were."""
    known = [record for record in log if isinstance(record.get(key), int | float) and math.isfinite(record[key])]
    found = [(float(record[unit]), float(record[key])) for record in known if unit in record]
    return Line([x for x, _ in found], [y for _, y in found])


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of `window` values around each; of fewer at both ends."""
    ones = np.ones(window)
    total = np.convolve(values, ones, mode="full")[window // 2 : window // 2 + len(values)]
    count = np.convolve(np.ones(len(values)), ones, mode="full")[window // 2 : window // 2 + len(values)]
    means: list[float] = (total / count).tolist()
    return means


def apart(places: Sequence[float], room: float) -> list[float]:
    """The places of labels, moved up where two would touch."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for low, high in pairwise(order):
        moved[high] = max(moved[high], moved[low] + room)
    return moved


def paper(unit: str, right: float = 0.55) -> tuple[Figure, Axes]:
    """An empty plot over time, with room at the right for the names of the lines."""
    with rc_context(TYPE):
        figure = Figure(figsize=SIZE, facecolor=LIGHT["paper"])
        left, bottom, top = 0.55, 0.45, 0.1
        box = (left / SIZE[0], bottom / SIZE[1], 1 - (left + right) / SIZE[0], 1 - (bottom + top) / SIZE[1])
        axes = figure.add_axes(box)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.01, y=0.08)
    return figure, axes


def end(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Writes at the end of a line what it is."""
    axes.annotate(
        text,
        (x, y),
        (6, 0),
        textcoords="offset points",
        va="center",
        color=LIGHT[colour],
        annotation_clip=False,
        size=9,
        linespacing=1.05,
    )
