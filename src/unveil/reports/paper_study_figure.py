"""The figure of an ablation: our accuracies, and the paper's curve over the same settings on an axis of its own."""

import textwrap
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from unveil.reports.style import LIGHT, limit_ticks, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.4, 2.9)
"""Size in inches, small enough that text stays legible on a phone."""
MOST_TICKS = 7
"""Numbers below a numeric axis."""
NAME_WIDTH = 12
"""Characters of a name in one line below the axis."""


def study_figure(
    names: Sequence[str],
    positions: Sequence[float],
    ours: Sequence[Sequence[float]],
    paper: Sequence[float | None],
    *,
    axis: str,
    title: str,
) -> "Figure":
    """Draws a dot for each seed with a line through the means, and the paper's numbers as a dashed line on the right axis.

    Args:
        names: The settings.
        positions: Their places on the horizontal axis.
        ours: Our accuracies for each setting, one for each seed; empty if there are none yet.
        paper: The paper's accuracies, None where it has none.
        axis: "names", "linear" or "log".
        title: The name of the horizontal axis.
    """
    labels = ["\n".join(textwrap.wrap(name, NAME_WIDTH)) for name in names] if axis == "names" else []
    bottom = 0.17 + 0.05 * max((label.count("\n") for label in labels), default=0)  # below it are names of several lines
    figure = new_figure(*SIZE)
    with styled():
        axes = figure.add_axes((0.12, bottom, 0.75, 0.97 - bottom))
        other = axes.twinx() if any(value is not None for value in paper) else None
    found = [(x, values) for x, values in zip(positions, ours, strict=True) if values]
    axes.plot([x for x, _ in found], [mean(values) for _, values in found], color=LIGHT["primary"], linewidth=1.8)
    for x, values in found:
        axes.plot([x] * len(values), values, "o", color=LIGHT["primary"], markersize=3.5)
    finish(axes, "primary")
    if other is not None:
        published = [(x, value) for x, value in zip(positions, paper, strict=True) if value is not None]
        style: dict[str, Any] = {"marker": "s", "markersize": 4.5, "fillstyle": "none", "linewidth": 1.4, "linestyle": (0, (4, 2))}
        style["color"] = LIGHT["secondary"]
        other.plot([x for x, _ in published], [value for _, value in published], **style)
        other.grid(False)
        axes.set_zorder(other.get_zorder() + 1)  # else the paper's markers would hide dots
        axes.patch.set_visible(False)
        finish(other, "secondary")
    if axis == "log":
        axes.set_xscale("log")
        axes.minorticks_off()
    if axis == "names":
        axes.set_xticks(positions, labels)
        axes.set_xlim(min(positions) - 0.4, max(positions) + 0.4)
    else:
        every = -(-len(names) // MOST_TICKS)
        axes.set_xticks(list(positions)[::-1][::every], [f"{x:.3g}" for x in list(positions)[::-1][::every]])
    axes.set_xlabel(title)
    return figure


def finish(axes: "Axes", colour: str) -> None:
    """Percent, few ticks, and the colour of the curve for its numbers."""
    limit_ticks(axes.yaxis, 5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g} %")
    axes.tick_params(axis="y", labelcolor=LIGHT[colour])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.margins(x=0.05, y=0.12)
