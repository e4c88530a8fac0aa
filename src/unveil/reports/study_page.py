"""The report of a study of one option: curves with their spread, tables, and a page. All numbers come from run folders."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from unveil.models.vit_config import ViTConfig
from unveil.reports.chance import TestCounts, contenders
from unveil.reports.comparison import (
    ACCURACIES,
    ComparisonRow,
    caution_note,
    comparison_table,
    evaluated_images_of,
    format_mean,
    held_out_note,
    seed_counts_of,
    seen_note,
)
from unveil.reports.curves import PLOT_SIZE
from unveil.reports.failures import failure_note, unfinished_note
from unveil.reports.findings import Judgement
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.page import write_document
from unveil.reports.run_info import environment_section, settings_section
from unveil.reports.seed_counts import SeedCounts, one_seed_phrase, with_one_seed
from unveil.reports.style import LIGHT, inline_svg, limit_ticks, new_figure, styled
from unveil.reports.table import ResultTable, to_html
from unveil.reports.vocabulary import humanize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_COLOURS = ("primary", "secondary", "tertiary", "text")
"""Colours of `unveil.reports.style.LIGHT` for the lines of a figure."""


class Sweep(NamedTuple):
    """The results of a method for several values of an option, with all else equal."""

    title: str
    """The method and the data."""
    option: str
    """Name of the option."""
    values: list[Any]
    """Values for which at least one run has finished."""
    rows: list[ComparisonRow]
    """The results of each value."""
    baselines: list[ComparisonRow]
    """The untrained encoder and raw pixels."""
    test_counts: TestCounts
    """Numbers of independent images of the evaluations, as far as the runs record them."""
    evaluated_on: str = "test"
    """The images of the evaluation: a key of `EVALUATED_ON`."""
    seeds: SeedCounts | None = None
    """How many seeds were asked for, and how many each value and baseline has; by default as many as the row with the most."""
    labelled: str = ""
    """The labelled data of fine-tuning, if they are not those of pre-training."""

    @property
    def varies_encoder(self) -> bool:
        """Whether each value has an encoder of another shape. The untrained one is then that of the first value."""
        return self.option == "model" or self.option in {field.name for field in fields(ViTConfig)}

    @property
    def untrained(self) -> str:
        """What the untrained encoder is, in words."""
        if not self.varies_encoder or not self.values:
            return "the same encoder untrained"
        return f"the untrained encoder of {humanize(self.option)} {self.values[0]}"

    def to_json(self) -> dict[str, Any]:
        """The sweep in `study.json`."""
        return {
            "title": self.title,
            "knob": self.option,
            "values": self.values,
            "rows": [row.to_json() for row in self.rows],
            "yardsticks": [row.to_json() for row in self.baselines],
            "judged_on": self.test_counts,
        }


SHORT_ANSWERS = {"holds": "Yes.", "fails": "No.", "open": "Cannot be told."}
"""The answers to the question of a `Finding`."""


class Finding(NamedTuple):
    """What a study of several sweeps asks, and what its runs answer."""

    question: str
    """The question, with its mark."""
    judgement: Judgement

    @property
    def answer(self) -> str:
        """The answer in a word or three."""
        return SHORT_ANSWERS[self.judgement.answer]

    @property
    def text(self) -> str:
        """The question, the answer and the reason."""
        return f"{self.question} {self.answer} {self.judgement.reason}"

    def to_json(self) -> dict[str, str]:
        """The finding in `study.json`."""
        return {"question": self.question, "answer": self.judgement.answer, "sentence": self.judgement.reason}


def sweep_table(sweep: Sweep) -> ResultTable:
    """The table of a sweep, with a row for each value."""
    rows = [row._replace(name=f"{value}") for value, row in zip(sweep.values, sweep.rows, strict=True)]
    untrained = sweep.untrained if sweep.varies_encoder else ""
    table = comparison_table([*rows, *sweep.baselines], sweep.title, sweep.test_counts, sweep.seeds, untrained)
    best = [sentence for key in ACCURACIES if (sentence := best_value(sweep, key))]
    return table._replace(heads=[humanize(sweep.option), *table.heads[1:]], sentences=[*best, *table.sentences])


def best_value(sweep: Sweep, key: str) -> str:
    """A sentence with the best value, and its distance to the worst value; with all values that are within chance of the best.

    A value with one of several seeds is neither the best nor the worst.
    """
    pairs = zip(sweep.values, sweep.rows, strict=True)
    every = {str(value): row.figures[key] for value, row in pairs if row.figures.get(key)}
    if len(every) < 2:  # nothing to compare
        return ""
    asked = (sweep.seeds or seed_counts_of(sweep.rows)).asked
    single = with_one_seed(every, asked)
    accuracies = {value: found for value, found in every.items() if value not in single}
    if len(accuracies) < 2:
        return f"{ACCURACIES[key]}: no best {humanize(sweep.option)}; {one_seed_phrase(single, asked)}."
    left_out = f" Left out: {one_seed_phrase(single, asked)}." if single else ""
    level, name, option = contenders(accuracies, sweep.test_counts.get(key)), ACCURACIES[key], humanize(sweep.option)
    best, worst = mean(accuracies[level[0]]), min(mean(values) for values in accuracies.values())
    if len(level) == len(accuracies):
        return f"{name}: no best {option}; all differences can be due to chance.{left_out}"
    if len(level) > 1:
        listed = ", ".join(f"{value} ({100 * mean(accuracies[value]):.1f} %)" for value in level)
        return f"{name}: no best {option}; the differences between {listed} can be due to chance.{left_out}"
    found = f"best at {option} {level[0]}, with {100 * best:.1f} %; the worst value is {100 * (best - worst):.1f} points lower."
    return f"{name}: {found}{left_out}"


def sweep_figure(sweeps: Sequence[Sweep], key: str, below_best: bool = False) -> "Figure":
    """Draws accuracy over the values of an option: a dot for each seed, a line through the means, and a dashed line for untrained.

    Args:
        sweeps: Sweeps over the same option, one line each.
        key: One of `ACCURACIES`.
        below_best: Whether to draw the points below the best value of each line, to compare lines of different heights.
    """
    figure = new_figure(*PLOT_SIZE)
    with styled():
        axes = figure.add_axes((0.13, 0.19, 0.84, 0.78))
    every = list(dict.fromkeys(value for sweep in sweeps for value in sweep.values))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in every)
    for sweep, colour in zip(sweeps, LINE_COLOURS, strict=False):
        points = [
            (value if numeric else every.index(value), row.figures[key])
            for value, row in zip(sweep.values, sweep.rows, strict=True)
            if row.figures.get(key)
        ]
        if not points:
            continue
        top = max(mean(accuracies) for _, accuracies in points) if below_best else 0.0
        means = [mean(accuracies) - top for _, accuracies in points]
        axes.plot([x for x, _ in points], means, linewidth=1.8, color=LIGHT[colour], label=sweep.title)
        for x, accuracies in points:
            heights = [accuracy - top for accuracy in accuracies]
            axes.plot([x] * len(heights), heights, "o", color=LIGHT[colour], markersize=3.5)
        untrained = [row.figures[key] for row in sweep.baselines if row.name == "untrained" and row.figures.get(key)]
        if untrained and not below_best:
            axes.axhline(mean(untrained[0]), color=LIGHT[colour], linewidth=1.0, linestyle=(0, (5, 2)))
    if not numeric:
        axes.set_xticks(range(len(every)), [str(value) for value in every])
    elif len(every) <= 8:
        axes.set_xticks(every)
    axes.set_xlabel(humanize(sweeps[0].option))
    limit_ticks(axes.yaxis, 5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g}" + " %" * (not below_best))
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.04, y=0.1)
    if len(sweeps) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best", labelcolor=LIGHT["text"])
    return figure


def sweep_figures(name: str, sweeps: Sequence[Sweep], below_best: bool = False) -> list[Markup]:
    """A figure for each kind of accuracy. `name` must be unique on the page."""
    figures = []
    for key, accuracy in ACCURACIES.items():
        lines = sum(any(row.figures.get(key) for row in sweep.rows) for sweep in sweeps)
        if lines > below_best:  # a single line cannot be compared
            alt = "; ".join(
                f"{sweep.title}, {humanize(sweep.option)} {value}: {format_mean(key, row.figures[key])} %"
                for sweep in sweeps
                for value, row in zip(sweep.values, sweep.rows, strict=True)
                if row.figures.get(key)
            )
            images = evaluated_images_of(key, sweeps[0].evaluated_on, sweeps[0].labelled)
            title = f"{accuracy}, points below the best of each line" if below_best else f"Accuracy on {images}: {accuracy}"
            untrained = " and ".join(dict.fromkeys(sweep.untrained for sweep in sweeps))
            note = "Each dot is a seed." if below_best else f"Each dot is a seed. The dashed line is {untrained}."
            svg = inline_svg(sweep_figure(sweeps, key, below_best), f"{name}-{key}", alt)
            figures.append(element("figure", element("h3", title), svg, element("figcaption", note)))
    return figures


def write_study(
    folder: Path, title: str, groups: Mapping[str, Sequence[Sweep]], facts: Mapping[str, Any], findings: Sequence[Finding] = ()
) -> Path:
    """Writes `report.html` into the folder of a study.

    Args:
        folder: The folder of the study.
        title: What was studied.
        groups: Sweeps by the heading of their section. Sweeps of a section have the same option. Each is drawn on its own and, if
            there are several, also in a joint figure.
        facts: The config and the environment.
        findings: What the sweeps say together, for the top of the page.
    """
    sections = []
    for number, (heading, sweeps) in enumerate(groups.items()):
        body: list[object] = []
        if len(sweeps) > 1:
            body.append(element("div", *sweep_figures(f"all{number}", sweeps, below_best=True), class_="figures"))
        for i, sweep in enumerate(sweeps):
            body.append(to_html(sweep_table(sweep)))
            body.append(element("div", *sweep_figures(f"sweep{number}-{i}", [sweep]), class_="figures"))
        sections.append((heading, join_markup(body)))
    sections += [("Settings", settings_section(facts["config"])), ("Environment", environment_section(facts, {}))]
    every = [sweep for sweeps in groups.values() for sweep in sweeps]
    held_out = any(sweep.evaluated_on == "held-out" for sweep in every)
    runs = [path.parent for path in sorted(folder.rglob("run.json"))]
    note = [element("p", held_out_note(runs))] if held_out else []
    note += [element("p", seen_note(name)) for name in dict.fromkeys(sweep.labelled for sweep in every) if name]
    missing = [
        f"{sweep.title}, {name}" if len(every) > 1 else name
        for sweep in every
        if sweep.seeds
        for name in sweep.seeds.without_results
    ]
    failed = [element("p", text) for text in (unfinished_note(facts, missing), failure_note(facts), caution_note(runs)) if text]
    answers = [
        part
        for finding in findings
        for part in (
            element("p", finding.question, " ", element("strong", finding.answer), class_="verdict"),
            element("p", finding.judgement.reason),
        )
    ]
    top = join_markup([element("h1", title), *answers, *failed, *note, element("p", f"study {folder.name}", class_="muted")])
    return write_document(folder, top, title, sections, f"Generated from the run folders in {folder.name}.")
