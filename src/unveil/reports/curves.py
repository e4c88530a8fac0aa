"""Curves of a run: its loss, its learning rate, and its evaluations during training."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unveil.reports.style import LIGHT, limit_ticks, new_figure, styled
from unveil.reports.vocabulary import CURVES, QUANTITIES, percent
from unveil.train.log import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_SIZE = (4.4, 2.5)
"""Size in inches, small enough that text stays legible on a phone."""
ERROR_LINES = (
    ("held_out_error", "this model", "primary", "-"),
    ("patch_mean_error", "patch mean", "secondary", (0, (5, 2))),
    ("image_mean_error", "image mean", "tertiary", (0, (1, 1.6))),
)

LOSS_PARTS = {
    "reconstruction_loss": "Loss of the reconstruction alone",
    "feature_loss": "1 - cosine of the visible tokens to the features of the teacher",
}
"""Parts of the loss of a run with a teacher, by their keys in the log, and the titles of their curves."""


class Curve(NamedTuple):
    """A figure with a summary."""

    title: str
    figure: "Figure"
    summary: str
    """A description of the curve, also for screen readers."""


class Series(NamedTuple):
    """The values of a number over time."""

    x: list[float]
    y: list[float]


def draw_curves(log: Sequence[Record], chosen: int | None = None) -> list[Curve]:
    """Draws all curves for which the log has numbers; `chosen` is the step that validation has chosen, if it has."""
    unit = "epoch" if all("epoch" in record for record in log) else "step"
    curves = [
        loss_curve(log, unit),
        *(loss_curve(log, unit, *part) for part in LOSS_PARTS.items()),
        learning_rate_curve(log, unit),
        error_curve(log, unit),
    ]
    curves += [metric_curve(log, unit, key, title, chosen) for key, title in CURVES.items()]
    return [curve for curve in curves if curve is not None]


def loss_curve(log: Sequence[Record], unit: str, key: str = "loss", title: str = "Loss") -> Curve | None:
    """The logged loss, or a part of it, and its running mean."""
    series = read_series(log, unit, key)
    if not series.y:
        return None
    figure, axes = empty_plot(unit)
    window = max(1, len(series.y) // 25) | 1  # odd, so that the mean is centred
    smooth = running_mean(series.y, window)
    if window > 1:
        axes.plot(series.x, series.y, color=LIGHT["primary"], linewidth=0.8, alpha=0.35)
    axes.plot(series.x, smooth, color=LIGHT["primary"], linewidth=1.8)
    label_end(axes, series.x[-1], smooth[-1], f"{smooth[-1]:.3g}", "primary")
    length = f"{series.x[-1]:.3g}"
    name = "The loss" if key == "loss" else "It"
    text = f"{name} goes from {smooth[0]:.3g} to {smooth[-1]:.3g} in {length} {unit}{'s' * (length != '1')}."
    return Curve(title, figure, text + (f" The strong line is a running mean of {window} log lines." if window > 1 else ""))


def learning_rate_curve(log: Sequence[Record], unit: str) -> Curve | None:
    """The learning rate."""
    series = read_series(log, unit, "learning_rate")
    if not series.y:
        return None
    figure, axes = empty_plot(unit)
    axes.plot(series.x, series.y, color=LIGHT["primary"], linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if value else "0")
    return Curve("Learning rate", figure, f"The learning rate peaks at {max(series.y):.3g}.")


def error_curve(log: Sequence[Record], unit: str) -> Curve | None:
    """The squared error on masked patches of held-out images, and that of two baselines without a model."""
    if not read_series(log, unit, "held_out_error").y:
        return None
    figure, axes = empty_plot(unit, right=1.25)
    ends, parts = [], []
    for key, name, colour, dashes in ERROR_LINES:
        series = read_series(log, unit, key)
        if series.y:
            marker_size = 3 if colour == "primary" else 0
            axes.plot(series.x, series.y, color=LIGHT[colour], linewidth=1.8, linestyle=dashes, marker="o", markersize=marker_size)
            ends.append((series.x[-1], series.y[-1], f"{name} {series.y[-1]:.3g}", colour))
            parts.append(f"{name} {series.y[-1]:.3g}")
    axes.set_ylim(bottom=0)
    heights = spread_labels([y for _, y, _, _ in ends], 0.1 * axes.get_ylim()[1])
    for (x, _, text, colour), y in zip(ends, heights, strict=True):
        label_end(axes, x, y, text, colour)
    summary = f"At the end: {', '.join(parts)}. Lower is better; the means are those of the true pixels."
    return Curve("Squared error on masked patches of held-out images", figure, summary)


def metric_curve(log: Sequence[Record], unit: str, key: str, title: str, chosen: int | None) -> Curve | None:
    """A metric for which higher is better, such as an accuracy. Shares are in per cent."""
    series = read_series(log, unit, key)
    if not series.y:
        return None
    is_share = QUANTITIES[key].is_share
    figure, axes = empty_plot(unit, right=0.62)
    axes.plot(series.x, series.y, color=LIGHT["primary"], linewidth=1.8, marker="o" if len(series.y) < 40 else "", markersize=3)
    axes.set_ylim(bottom=0)  # small changes should look small
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g} %" if is_share else f"{value:g}")
    first, last = (percent(y) if is_share else f"{y:.1f}" for y in (series.y[0], series.y[-1]))
    label_end(axes, series.x[-1], series.y[-1], last, "primary")
    # The best value is not named: on a test set, the best of several steps is too good.
    step = "the last step" if chosen is None else f"step {chosen:,}" if chosen else "the linear probe, before the first step"
    return Curve(title, figure, f"From {first} to {last}, measured during training. The results are those of {step}.")


def read_series(log: Sequence[Record], unit: str, key: str) -> Series:
    """The finite values of a key, and the times at which they were logged."""
    finite = [record for record in log if isinstance(record.get(key), int | float) and math.isfinite(record[key])]
    points = [(float(record[unit]), float(record[key])) for record in finite if unit in record]
    return Series([x for x, _ in points], [y for _, y in points])


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of `window` values around each value, or of fewer values at both ends."""
    ones = np.ones(window)
    total = np.convolve(values, ones, mode="full")[window // 2 : window // 2 + len(values)]
    count = np.convolve(np.ones(len(values)), ones, mode="full")[window // 2 : window // 2 + len(values)]
    means: list[float] = (total / count).tolist()
    return means


def spread_labels(heights: Sequence[float], distance: float) -> list[float]:
    """Moves labels up until their heights are at least `distance` apart."""
    moved = list(heights)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    for low, high in pairwise(order):
        moved[high] = max(moved[high], moved[low] + distance)
    return moved


def empty_plot(unit: str, right: float = 0.55) -> "tuple[Figure, Axes]":
    """An empty plot over time, with a margin of `right` inches for labels at the ends of the lines."""
    figure = new_figure(*PLOT_SIZE)
    left, bottom, top = 0.55, 0.45, 0.1
    width, height = PLOT_SIZE
    with styled():
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
        axes.set_xlabel(unit)
        limit_ticks(axes.xaxis, 6, [1, 2, 5, 10])
        limit_ticks(axes.yaxis, 5)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.01, y=0.08)
    return figure, axes


def label_end(axes: "Axes", x: float, y: float, text: str, colour: str) -> None:
    """Writes a label at the end of a line."""
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
