"""Several methods beside each other: one table, a bar a method, and a page. All figures come from the run folders."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from unveil.reports.html import Markup, element, join
from unveil.reports.page import write_document
from unveil.reports.run_info import receipt_section, settings_section
from unveil.reports.style import LIGHT, TYPE, inline
from unveil.reports.table import Grid, html_grid
from unveil.reports.verdict import against, chance, flat
from unveil.train.run_cost import spell_time
from unveil.train.run_folder import Run


class Row(NamedTuple):
    """A method, or a yardstick."""

    name: str
    figures: dict[str, list[float]]
    """By what was measured, a number a seed."""
    yardstick: bool = False


SCORES = {"knn": "k-NN", "linear": "linear", "finetune": "fine-tuned"}
"""Shares of test samples that are recognised; linear is a linear probe."""
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", spell_time),
    "samples": ("samples", lambda value: f"{round(value):,}"),
    **{key: (name, lambda value: f"{100 * value:.1f}") for key, name in SCORES.items()},
    "ahead": ("gain", lambda value: f"{100 * value:+.1f}"),
    "rank_me": ("RankMe", lambda value: f"{value:.1f}"),
    "feature_deviation": ("feature deviation", lambda value: f"{value:.2f}"),
    "codebook_usage": ("codebook used, %", lambda value: f"{100 * value:.1f}"),
}
"""What the table may show, in this order: a heading, and how a number is written; shares in per cent, `ahead` in points."""


def figures_of(run: Run, stages: Sequence[Run], tuned: Run | None) -> dict[str, float]:
    """The numbers of one run of a method.

    Args:
        run: Pre-training, ended.
        stages: What had to be trained before it, such as a tokenizer: its time and its samples count, and it says how much of its
            codebook is used.
        tuned: Fine-tuning from there, ended; None leaves it out.
    """
    all_of_it = [each.results for each in (run, *stages)]
    features = run.results.get("features") or {}
    found = {"seconds": sum(each["seconds"] for each in all_of_it)}
    found["samples"] = sum(each.get("images_seen") or each["sequences_seen"] for each in all_of_it)
    found |= features.get("encoder", {}) | (run.results.get("spread") or {}).get("encoder", {})
    held_out = {key: value for each in all_of_it for key, value in (each.get("held_out") or {}).items()}
    found |= {key: value for key, value in held_out.items() if key == "codebook_usage"}
    if "linear" in features.get("untrained", {}):
        found["ahead"] = features["encoder"]["linear"] - features["untrained"]["linear"]
    return found | ({"finetune": tuned.results["score"]["top1"]} if tuned else {})


def row_of(name: str, seeds: Sequence[Mapping[str, float]], yardstick: bool = False) -> Row:
    """A row from the numbers of each seed."""
    keys = dict.fromkeys(key for each in seeds for key in each)
    return Row(name, {key: [each[key] for each in seeds if key in each] for key in keys}, yardstick)


def grid_of(rows: Sequence[Row], title: str, judged_on: int | None) -> Grid:
    """The table; columns without a number are left out.

    Args:
        rows: The methods, then the yardsticks.
        title: What was compared.
        judged_on: Test images, to say which differences can be chance.
    """
    columns = [key for key in COLUMNS if any(key in row.figures for row in rows)]
    cells = [[row.name, *(told(key, row.figures.get(key, [])) for key in columns)] for row in rows]
    count = max(len(values) for row in rows for values in row.figures.values())
    notes = [f"Mean and standard deviation over {count} seeds." if count > 1 else "One seed: how far it spreads is not known."]
    if "ahead" in columns:
        notes.append("Gain: of the linear probe over the same encoder untrained.")
    if spread := [row for row in rows if not row.yardstick and row.figures.get("rank_me")]:
        notes.append(collapse_among(spread))
    shares = {row.name: {key: mean(row.figures[key]) for key in SCORES if row.figures.get(key)} for row in rows}
    margin = chance({"judged_on": {"test": judged_on}, "features": shares}) if judged_on else None
    if judged_on and margin:
        notes.append(f"With {judged_on:,} test images, differences of up to about {margin:.1f} points of one seed can be chance.")
    return Grid(title, ["", *(heading(key) for key in columns)], cells, notes)


def collapse_among(rows: Sequence[Row]) -> str:
    """Which rows have features that say nothing, in some seed."""
    seeds = [(row.name, zip(row.figures["feature_deviation"], row.figures["rank_me"], strict=True)) for row in rows]
    fallen = [name for name, pairs in seeds if any(flat(*pair) for pair in pairs)]
    if not fallen:
        return "None has collapsed."
    return f"Features that are nearly the same for every image, in a seed at least: {', '.join(fallen)} collapsed."


def heading(key: str) -> str:
    """The name of a column, with its unit."""
    return COLUMNS[key][0] + (", %" if key in SCORES else ", points" if key == "ahead" else "")


def told(key: str, values: Sequence[float]) -> str:
    """The mean, and the standard deviation of several seeds; of a time or a count the mean alone."""
    if not values:
        return ""
    text = COLUMNS[key][1](mean(values))
    if len(values) == 1 or key in ("seconds", "samples"):
        return text
    return f"{text} ± {COLUMNS[key][1](stdev(values)).lstrip('+')}"


def sentence(rows: Sequence[Row]) -> str:
    """Which method is first, and how far ahead of the next and of the untrained encoder."""
    for key in ("linear", "finetune", "knn"):
        means = {row.name: mean(row.figures[key]) for row in rows if row.figures.get(key)}
        order = sorted((row.name for row in rows if row.name in means and not row.yardstick), key=lambda name: -means[name])
        if order:
            others = [*order[1:2], *(row.name for row in rows if row.yardstick and row.name in means)]
            features = {"encoder": {key: means[order[0]]}} | {name: {key: means[name]} for name in others}
            ahead = ", ".join(against({"features": features}, key))
            best = next(told(key, row.figures[key]) for row in rows if row.name == order[0])
            return f"Best by {SCORES[key]} accuracy: {order[0]} with {best} %{f' ({ahead})' * bool(ahead)}."
    return "There are no results yet."


def bars(rows: Sequence[Row], key: str) -> Figure:
    """A bar a row from 0 to the mean, with a dot for each seed; yardsticks in grey."""
    shown = [row for row in rows if row.figures.get(key)][::-1]
    left, right, below, height = 0.09 * max(len(row.name) for row in shown) + 0.1, 0.55, 0.3, 0.3 * len(shown)
    width, tall = 4.4, below + height + 0.08
    with rc_context(TYPE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(width, tall), facecolor=LIGHT["paper"])
        axes = figure.add_axes((left / width, below / tall, 1 - (left + right) / width, height / tall))
        means = [mean(row.figures[key]) for row in shown]
        colours = [LIGHT["other" if row.yardstick else "model"] for row in shown]
        axes.barh(range(len(shown)), means, height=0.62, color=colours)
        for place, row in enumerate(shown):
            values, places = row.figures[key], [place] * len(row.figures[key])
            axes.plot(values, places, "o", color=LIGHT["ink"], markeredgecolor=LIGHT["paper"], markersize=4.5, clip_on=False)
            end = max(means[place], *values)
            text = f"{100 * means[place]:.1f} %"
            axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", annotation_clip=False)
        axes.set_yticks(range(len(shown)), [row.name for row in shown])
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(left=0)
        axes.set_ylim(-0.5, len(shown) - 0.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 2):g} %"))
    return figure


def score_section(rows: Sequence[Row]) -> Markup:
    """The bars of each score that there is."""
    drawn = []
    for key, name in SCORES.items():
        if any(row.figures.get(key) for row in rows):
            alt = "; ".join(f"{row.name} {told(key, row.figures[key])} %" for row in rows if row.figures.get(key))
            title = element("h3", f"Test samples recognised: {name}")
            drawn.append(element("figure", title, inline(bars(rows, key), f"bars-{key}", alt)))
    return element("div", *drawn, class_="figures")


def write_comparison(folder: Path, rows: Sequence[Row], grid: Grid, runs: Sequence[Path], facts: Mapping[str, Any]) -> Path:
    """Writes `report.html` into the folder of a comparison.

    Args:
        folder: It.
        rows: The methods, then the yardsticks.
        grid: Their table.
        runs: The run folders, to link to.
        facts: The config and the receipt.
    """
    title = f"Methods compared on {Path(facts['data']).name or facts['data']}"
    below = element("p", f"comparison {folder.name}", class_="quiet")
    top = join([element("h1", title), element("p", sentence(rows), class_="verdict"), below])
    links = [element("li", element("a", each.name, href=f"{each.name}/report.html")) for each in runs]
    sections = [
        ("Results", html_grid(grid)),
        ("Scores", score_section(rows)),
        ("Runs", element("ul", *links, class_="names")),
        ("Settings", settings_section(facts["config"])),
        ("Receipt", receipt_section(facts, {})),
    ]
    return write_document(folder, top, title, sections, f"Written from the run folders in {folder.name}.")
