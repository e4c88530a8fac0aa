"""A knob at several values: curves with their spread, a table, and a page. All figures come from the run folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from unveil.reports.comparison import SCORES, Row, grid_of, told
from unveil.reports.curves import SIZE
from unveil.reports.html import Markup, element, join
from unveil.reports.page import write_document
from unveil.reports.run_info import receipt_section, settings_section, spoken
from unveil.reports.style import LIGHT, TYPE, inline
from unveil.reports.table import Grid, html_grid


class Sweep(NamedTuple):
    """A knob at several values, all else alike."""

    title: str
    """What was trained on what."""
    knob: str
    values: list[Any]
    """Those that a run has ended with, ..."""
    rows: list[Row]
    """... what these runs say ..."""
    yardsticks: list[Row]
    """... and what stands beside them."""
    judged_on: int | None
    """Test images, where the runs say it."""

    def to_json(self) -> dict[str, Any]:
        """As `study.json` has it."""
        return self._asdict() | {key: [row._asdict() for row in getattr(self, key)] for key in ("rows", "yardsticks")}


COLOURS = ("model", "rival", "other", "ink")


def sweep_grid(sweep: Sweep) -> Grid:
    """The table of a sweep: a row a value."""
    rows = [row._replace(name=f"{value}") for value, row in zip(sweep.values, sweep.rows, strict=True)]
    grid = grid_of([*rows, *sweep.yardsticks], sweep.title, sweep.judged_on)
    best = [sentence for key in SCORES if (sentence := best_of(sweep, key))]
    return grid._replace(heads=[spoken(sweep.knob), *grid.heads[1:]], sentences=[*best, *grid.sentences])


def best_of(sweep: Sweep, key: str) -> str:
    """Where a score is best, and how far the values are apart."""
    means = {value: mean(row.figures[key]) for value, row in zip(sweep.values, sweep.rows, strict=True) if row.figures.get(key)}
    if not means:
        return ""
    best, worst = max(means.values()), min(means.values())
    at = next(f"{spoken(sweep.knob)} {value}" for value, score in means.items() if score == best)
    return f"{SCORES[key]}: best at {at}, with {100 * best:.1f} %; the worst is {100 * (best - worst):.1f} points below."


def curve(sweeps: Sequence[Sweep], key: str, below_best: bool = False) -> Figure:
    """A score over the values of a knob: a dot for each seed, a line through the means; dashed, the untrained encoder.

    Args:
        sweeps: Of one knob; one line each.
        key: One of `SCORES`.
        below_best: Draw points below each line's own best, so that lines of different height can be laid over each other.
    """
    with rc_context(TYPE):
        figure = Figure(figsize=SIZE, facecolor=LIGHT["paper"])
        axes = figure.add_axes((0.13, 0.19, 0.84, 0.78))
    every = list(dict.fromkeys(value for sweep in sweeps for value in sweep.values))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in every)
    for sweep, colour in zip(sweeps, COLOURS, strict=False):
        points = [
            (value if numbers else every.index(value), row.figures[key])
            for value, row in zip(sweep.values, sweep.rows, strict=True)
            if row.figures.get(key)
        ]
        if not points:
            continue
        top = max(mean(scores) for _, scores in points) if below_best else 0.0
        means = [mean(scores) - top for _, scores in points]
        axes.plot([x for x, _ in points], means, linewidth=1.8, color=LIGHT[colour], label=sweep.title)
        for x, scores in points:
            axes.plot([x] * len(scores), [score - top for score in scores], "o", color=LIGHT[colour], markersize=3.5)
        untrained = [row.figures[key] for row in sweep.yardsticks if row.name == "untrained" and row.figures.get(key)]
        if untrained and not below_best:
            axes.axhline(mean(untrained[0]), color=LIGHT[colour], linewidth=1.0, linestyle=(0, (5, 2)))
    if not numbers:
        axes.set_xticks(range(len(every)), [str(value) for value in every])
    elif len(every) <= 8:
        axes.set_xticks(every)
    axes.set_xlabel(spoken(sweeps[0].knob))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 2):g}" + " %" * (not below_best)))
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.04, y=0.1)
    if len(sweeps) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best", labelcolor=LIGHT["ink"])
    return figure


def curve_figures(name: str, sweeps: Sequence[Sweep], below_best: bool = False) -> list[Markup]:
    """The curves of each score that there is; `name` is unlike that of any other of the page."""
    made = []
    for key, score in SCORES.items():
        if sum(any(row.figures.get(key) for row in sweep.rows) for sweep in sweeps) > below_best:  # two to lay over each other
            alt = "; ".join(
                f"{sweep.title}, {spoken(sweep.knob)} {value}: {told(key, row.figures[key])} %"
                for sweep in sweeps
                for value, row in zip(sweep.values, sweep.rows, strict=True)
                if row.figures.get(key)
            )
            what = f"{score}, points below each line's own best" if below_best else f"Test samples recognised: {score}"
            drawn = inline(curve(sweeps, key, below_best), f"{name}-{key}", alt)
            note = "A dot is a seed." if below_best else "A dot is a seed; dashed, the same encoder untrained."
            made.append(element("figure", element("h3", what), drawn, element("figcaption", note)))
    return made


def write_study(folder: Path, title: str, groups: Mapping[str, Sequence[Sweep]], facts: Mapping[str, Any]) -> Path:
    """Writes `report.html` into the folder of a study.

    Args:
        folder: It.
        title: What was studied.
        groups: Sweeps by the heading under which they stand. Those of one heading are of one knob; they are drawn one by one, and
            where there are several, over each other as well.
        facts: The config and the receipt.
    """
    sections = []
    for number, (heading, sweeps) in enumerate(groups.items()):
        body: list[object] = []
        if len(sweeps) > 1:
            body.append(element("div", *curve_figures(f"all{number}", sweeps, below_best=True), class_="figures"))
        for place, sweep in enumerate(sweeps):
            body.append(html_grid(sweep_grid(sweep)))
            body.append(element("div", *curve_figures(f"sweep{number}-{place}", [sweep]), class_="figures"))
        sections.append((heading, join(body)))
    sections += [("Settings", settings_section(facts["config"])), ("Receipt", receipt_section(facts, {}))]
    top = join([element("h1", title), element("p", f"study {folder.name}", class_="quiet")])
    return write_document(folder, top, title, sections, f"Written from the run folders in {folder.name}.")
