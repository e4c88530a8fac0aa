"""The page of a comparison of methods: bar charts, and the table. All numbers come from run folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from unveil.reports.chance import TestCounts
from unveil.reports.comparison import (
    ACCURACIES,
    ComparisonRow,
    caution_note,
    comparison_verdict,
    evaluated_images_of,
    format_mean,
    held_out_note,
    seen_note,
)
from unveil.reports.failures import failure_note, unfinished_note
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.page import write_document
from unveil.reports.run_info import environment_section, settings_section
from unveil.reports.seed_counts import SeedCounts
from unveil.reports.style import LIGHT, inline_svg, new_figure, styled
from unveil.reports.table import ResultTable, to_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bar_figure(rows: Sequence[ComparisonRow], key: str) -> "Figure":
    """Draws a bar for the mean of each row, and a dot for each seed. Baselines are grey."""
    drawn = [row for row in rows if row.figures.get(key)][::-1]
    left, right, bottom, height = 0.09 * max(len(row.name) for row in drawn) + 0.1, 0.85, 0.3, 0.3 * len(drawn)
    full_width, full_height = 4.4, bottom + height + 0.08
    figure = new_figure(full_width, full_height)
    with styled({"axes.grid.axis": "x"}):
        axes = figure.add_axes((left / full_width, bottom / full_height, 1 - (left + right) / full_width, height / full_height))
        means = [mean(row.figures[key]) for row in drawn]
        colours = [LIGHT["tertiary" if row.baseline else "primary"] for row in drawn]
        axes.barh(range(len(drawn)), means, height=0.62, color=colours)
        for y, row in enumerate(drawn):
            values = row.figures[key]
            dots: dict[str, Any] = {
                "color": LIGHT["text"],
                "markeredgecolor": LIGHT["background"],
                "markersize": 4.5,
                "clip_on": False,
            }
            axes.plot(values, [y] * len(values), "o", **dots)
            end = max(means[y], *values)
            text = f"{'mean ' if len(values) > 1 else ''}{100 * means[y]:.1f} %"
            axes.annotate(text, (end, y), (6, 0), textcoords="offset points", va="center", annotation_clip=False)
        axes.set_yticks(range(len(drawn)), [row.name for row in drawn])
        axes.tick_params(axis="y", labelcolor=LIGHT["text"])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(left=0)
        axes.set_ylim(-0.5, len(drawn) - 0.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g} %")
    return figure


def accuracy_section(rows: Sequence[ComparisonRow], evaluated_on: str, labelled: str) -> Markup:
    """A bar chart for each kind of accuracy. See `evaluated_images_of` for the other arguments."""
    figures = []
    for key, name in ACCURACIES.items():
        if any(row.figures.get(key) for row in rows):
            alt = "; ".join(f"{row.name} {format_mean(key, row.figures[key])} %" for row in rows if row.figures.get(key))
            title = element("h3", f"Accuracy on {evaluated_images_of(key, evaluated_on, labelled)}: {name}")
            several = any(len(row.figures.get(key, ())) > 1 for row in rows)
            note = "Bars and numbers are means over the seeds; each dot is a seed." if several else "Each bar is one seed."
            caption = element("figcaption", f"{note} Grey bars are baselines.")
            figures.append(element("figure", title, inline_svg(bar_figure(rows, key), f"bars-{key}", alt), caption))
    return element("div", *figures, class_="figures")


def write_comparison(
    folder: Path,
    rows: Sequence[ComparisonRow],
    table: ResultTable,
    runs: Sequence[Path],
    facts: Mapping[str, Any],
    test_counts: TestCounts,
    seeds: SeedCounts,
    labelled: str = "",
) -> Path:
    """Writes `report.html` into the folder of a comparison.

    Args:
        folder: The folder of the comparison.
        rows: The methods, then the baselines.
        table: The table of these rows.
        runs: The run folders, to link to.
        facts: The data, the config and the environment.
        test_counts: Numbers of independent images of the evaluations.
        seeds: How many seeds were asked for, and how many each row has.
        labelled: The labelled data of fine-tuning, if they are not those of pre-training.
    """
    title = f"Methods compared on {Path(facts['data']).name or facts['data']}"
    title += f", fine-tuned on {Path(labelled).name or labelled}" if labelled else ""
    line = element("p", f"comparison {folder.name}", class_="muted")
    evaluated_on = facts["config"].get("evaluate_on", "test")  # earlier versions had no choice
    note = [element("p", held_out_note(runs))] if evaluated_on == "held-out" else []
    note += [element("p", seen_note(labelled))] if labelled else []
    verdict = element("p", comparison_verdict(rows, test_counts, seeds), class_="verdict")
    notes = (unfinished_note(facts, seeds.without_results), failure_note(facts), caution_note(runs))
    failed = [element("p", text) for text in notes if text]
    heading = join_markup([element("h1", title), verdict, *failed, *note, line])
    links = [element("li", element("a", each.name, href=f"{each.name}/report.html")) for each in runs]
    sections = [
        ("Results", to_html(table)),
        ("Accuracy", accuracy_section(rows, evaluated_on, labelled)),
        ("Runs", element("ul", *links, class_="names")),
        ("Settings", settings_section(facts["config"])),
        ("Environment", environment_section(facts, {})),
    ]
    return write_document(folder, heading, title, sections, f"Generated from the run folders in {folder.name}.")
