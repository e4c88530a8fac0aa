"""The page of an ablation of the MAE paper: our curve and the paper's, a table, a rank correlation, and whether the finding holds.

All of our numbers come from run folders.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

from unveil.reports.chance import TestCounts
from unveil.reports.comparison import (
    EVALUATED_ON,
    caution_note,
    chance_notes,
    evaluated_images_of,
    format_mean,
    held_out_note,
    row_of,
    seen_note,
)
from unveil.reports.failures import failure_note, unfinished_note
from unveil.reports.findings import Judgement
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.page import write_document
from unveil.reports.paper_study_figure import study_figure
from unveil.reports.rank_correlation import FEWEST_CELLS, RankCorrelation, rank_correlation
from unveil.reports.run_info import environment_section, settings_section
from unveil.reports.style import inline_svg
from unveil.reports.table import ResultTable, to_html
from unveil.train.run_cost import spell_time

METRIC_NAMES = {"linear": "linear", "finetune": "fine-tuned", "scratch": "from scratch"}
"""The accuracies of a study, as headings."""
ANSWERS = {"holds": "the finding holds", "fails": "the finding does not hold", "open": "cannot be told"}
"""Whether the finding of a study holds, in words."""
Axis = Literal["names", "linear", "log"]


class Point(NamedTuple):
    """A cell of a study: our numbers and the paper's."""

    label: str
    """The name of the cell, which claims use."""
    ours: str
    """The setting here, in words."""
    theirs: str
    """The setting in the paper."""
    position: float
    """The position on a numeric axis."""
    figures: Mapping[str, Sequence[float]]
    """Our numbers by a key of `METRIC_NAMES`, or "step" for the seconds of a training step, or "seconds"; one for each seed."""
    paper: Mapping[str, float]
    """The paper's accuracies, between 0 and 1."""
    flops: float | None = None
    """FLOPs of a training step, of the whole batch."""
    default: bool = False
    """Whether this is the paper's default."""
    labels: int | None = None
    """The number of labels, in a study that varies it."""

    @property
    def heading(self) -> str:
        """The setting here, with the number of labels."""
        return self.ours if self.labels is None else f"{self.ours} ({self.labels:,})"


class PaperStudyResult(NamedTuple):
    """All that a page shows of a study."""

    name: str
    source: str
    question: str
    finding: str
    data: str
    points: Sequence[Point]
    judgement: Judgement
    metrics: Sequence[str] = ("linear", "finetune")
    axis: Axis = "names"
    axis_title: str = ""
    test_counts: TestCounts = {}
    """Numbers of independent images of the evaluations, as far as they are known."""
    evaluated_on: str = "test"
    notes: Sequence[str] = ()
    labelled: str = ""
    """The labelled data of the evaluations, if they are not those of pre-training."""
    labelled_metrics: Sequence[str] = ("finetune",)
    """The accuracies on these; the others are on images of pre-training data that were held out."""

    @property
    def about(self) -> str:
        """The data, and the labelled data if they are others."""
        if not self.labelled:
            return self.data
        how = "evaluated" if set(self.labelled_metrics) >= set(self.metrics) else "fine-tuned"
        return f"pre-trained on {self.data}, {how} on {self.labelled}"

    @property
    def images(self) -> str:
        """A sentence that says which images our accuracies are those on; "" for the test set of the data."""
        held_out = self.evaluated_on == "held-out"
        if not self.labelled:
            return f"Our accuracies are those on {EVALUATED_ON[self.evaluated_on]}." if held_out else ""
        images = evaluated_images_of("finetune", self.evaluated_on, self.labelled)
        own = [METRIC_NAMES[key] for key in self.shown if key not in self.labelled_metrics]
        whose = f"{EVALUATED_ON[self.evaluated_on]} {'on' if held_out else 'of'} {self.data}"
        apart = f", and those of the column {' and '.join(own)} are on {whose}" if own else ""
        return f"Our accuracies are those on {images}{apart}. {seen_note(self.labelled)}"

    def seeds(self, metric: str) -> int:
        """The number of seeds of the cells that have the most."""
        return max((len(point.figures.get(metric, ())) for point in self.points), default=0)

    @property
    def incomplete(self) -> dict[str, int]:
        """The cells that lack the numbers of some seeds, and how many seeds have all of them."""
        found = {}
        for point in self.points:
            have = [len(point.figures.get(key, ())) for key in self.shown]
            if have != [self.seeds(key) for key in self.shown]:
                found[point.ours] = min(have)
        return found

    @property
    def shown(self) -> list[str]:
        """The metrics that we or the paper have numbers of."""
        return [key for key in self.metrics if any(point.figures.get(key) for point in self.points)]

    def correlation(self, metric: str) -> RankCorrelation | None:
        """The rank correlation of our means with the paper's numbers; None with fewer than 3 cells that have both.

        A cell that lacks the numbers of some seeds is left out.
        """
        count = self.seeds(metric)
        both = [point for point in self.points if len(point.figures.get(metric, ())) == count and metric in point.paper]
        return rank_correlation([point.figures[metric] for point in both], [point.paper[metric] for point in both])

    def to_json(self) -> dict[str, Any]:
        """The study in `study.json`."""
        correlations = {key: found._asdict() for key in self.shown if (found := self.correlation(key))}
        return {
            "study": self.name,
            "source": self.source,
            "question": self.question,
            "paper_finding": self.finding,
            "answer": self.judgement.answer,
            "sentence": self.judgement.reason,
            "rank_correlation": correlations,
            "judged_on": self.test_counts,
            "cells": [
                {"label": point.label, "setting": point.ours, "paper_setting": point.theirs, "paper_default": point.default}
                | {"figures": dict(point.figures), "paper": dict(point.paper), "flops_per_step": point.flops}
                | ({} if point.labels is None else {"labels": point.labels})
                for point in self.points
            ],
        }


def study_table(result: PaperStudyResult) -> ResultTable:
    """The table of a study, with the paper's column beside ours, and notes."""
    differ = any(point.ours != point.theirs for point in result.points)
    has_flops = any(point.flops for point in result.points)
    has_steps, has_times = (any(point.figures.get(key) for point in result.points) for key in ("step", "seconds"))
    heads = ["setting", *(["in the paper"] if differ else [])]
    for key in result.shown:
        heads += [f"{METRIC_NAMES[key]}, %", "paper, %"]
    heads += ["FLOPs of a step"] * has_flops + ["step"] * has_steps + ["training"] * has_times
    rows = []
    for point in result.points:
        row = [point.heading + " *" * point.default, *([point.theirs] if differ else [])]
        for key in result.shown:
            # `format_mean` knows no accuracy from scratch, which is formatted as that of fine-tuning
            ours = format_mean("finetune" if key == "scratch" else key, point.figures.get(key, ()))
            row += [ours, f"{100 * point.paper[key]:.1f}" if key in point.paper else ""]
        row += [spell_flops(point.flops) if point.flops else ""] * has_flops
        step, seconds = (point.figures.get(key, ()) for key in ("step", "seconds"))
        row += [spell_step(mean(step)) if step else ""] * has_steps + [spell_time(mean(seconds)) if seconds else ""] * has_times
        rows.append(row)
    return ResultTable(f"{result.question} ({result.about})", heads, rows, table_notes(result, has_flops))


def table_notes(result: PaperStudyResult, has_flops: bool) -> list[str]:
    """The sentences below the table."""
    seeds = max((result.seeds(key) for key in result.shown), default=0)
    notes = [f"Mean and standard deviation over {seeds} seeds." if seeds > 1 else "One seed: the spread over seeds is unknown."]
    if incomplete := result.incomplete:
        listed = "; ".join(f"{setting} ({count} of {seeds})" for setting, count in incomplete.items())
        notes.append(f"Seeds are missing: {listed}. The rank correlation of an accuracy leaves out settings that lack its numbers.")
    notes += chance_notes([row_of(point.label, seeds_of(point, result.shown)) for point in result.points], result.test_counts)
    correlations = {METRIC_NAMES[key]: found for key in result.shown if (found := result.correlation(key))}
    notes += [f"Rank correlation with the paper (Spearman), {name}: {found}." for name, found in correlations.items()]
    if not correlations:
        notes.append(f"Too few settings have two numbers for a rank correlation: it needs {FEWEST_CELLS} that differ.")
    if any(point.default for point in result.points):
        notes.append("* The paper's default.")
    notes.append(f"The paper: He et al. (2021), {result.source[0].lower()}{result.source[1:]}, ImageNet-1K.")
    if has_flops:
        notes.append("FLOPs are those of matrix products, forward and backward, for a whole batch.")
    has_steps, has_times = (any(point.figures.get(key) for point in result.points) for key in ("step", "seconds"))
    if has_steps:
        notes.append("The time of a step is the median of a run.")
    if has_times:
        depends = "Both depend" if has_steps else "It depends"
        notes.append(
            f"The time of the training includes what a run does before its first step. {depends} on what else the machine did."
        )
    return [*notes, *result.notes]


def seeds_of(point: Point, metrics: Sequence[str]) -> list[dict[str, float]]:
    """The numbers of a cell, seed by seed."""
    count = max((len(point.figures.get(key, ())) for key in metrics), default=0)
    return [{key: values[seed] for key in metrics if seed < len(values := point.figures.get(key, ()))} for seed in range(count)]


def spell_step(seconds: float) -> str:
    """The time of a step for people, such as "8.4 ms" or "1,380 ms"."""
    return f"{1000 * seconds:,.{1 if seconds < 0.01 else 0}f} ms"


def spell_flops(flops: float) -> str:
    """FLOPs for people, such as "1.25 T"."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} M"


def figures_of_study(result: PaperStudyResult) -> Markup:
    """A figure for each accuracy, with the paper's curve over ours."""
    figures = []
    for key in result.shown:
        alt = "; ".join(
            f"{point.heading}: {format_mean('linear', point.figures[key])} %"
            + (f", in the paper {100 * point.paper[key]:.1f} %" if key in point.paper else "")
            for point in result.points
            if point.figures.get(key)
        )
        figure = study_figure(
            [point.ours for point in result.points],
            [point.position if result.axis != "names" else float(i) for i, point in enumerate(result.points)],
            [list(point.figures.get(key, ())) for point in result.points],
            [point.paper.get(key) for point in result.points],
            axis=result.axis,
            title=result.axis_title,
        )
        has_paper = any(key in point.paper for point in result.points)
        note = "Blue, left axis: here; each dot is a seed, the line joins the means."
        note += " Orange, dashed, right axis: the paper. Each has its own scale, so compare shapes and not heights." * has_paper
        name = element("h3", METRIC_NAMES[key][0].upper() + METRIC_NAMES[key][1:])
        svg = inline_svg(figure, f"{result.name}-{key}", alt)
        figures.append(element("figure", name, svg, element("figcaption", note)))
    return element("div", *figures, class_="figures")


def write_paper_study(folder: Path, result: PaperStudyResult, facts: Mapping[str, Any], runs: Sequence[Path]) -> Path:
    """Writes `report.html` into the folder of a study.

    Args:
        folder: The folder of the study.
        result: The study.
        facts: The config, the environment, and the runs that have failed.
        runs: The run folders, to link to.
    """
    title = f"{result.question} {result.name} on {Path(result.data).name or result.data}"
    title += f" and {Path(result.labelled).name or result.labelled}" if result.labelled else ""
    parts = [element("h1", result.question), element("p", result.judgement.reason, class_="verdict")]
    parts.append(element("p", f"The paper ({result.source}): {result.finding}"))
    parts += [element("p", text) for text in (unfinished_note(facts), failure_note(facts), caution_note(runs)) if text]
    if result.images:
        advice = held_out_note(runs) if result.evaluated_on == "held-out" else ""
        parts.append(element("p", f"{result.images} {advice}".strip()))
    parts.append(element("p", f"study {result.name}{', ' if result.labelled else ' on '}{result.about}", class_="muted"))
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in runs]  # a run may be that of another study
    links = [element("li", element("a", name, href=f"{name}/report.html")) for name in names]
    sections = [
        ("Curves", figures_of_study(result)),
        ("Table", to_html(study_table(result))),
        ("Runs", element("ul", *links, class_="names")),
        ("Settings", settings_section(facts["config"])),
        ("Environment", environment_section(facts, {})),
    ]
    return write_document(folder, join_markup(parts), title, sections, f"Generated from the run folders in {folder.name}.")


def findings_summary(results: Sequence[PaperStudyResult], asked: int, unfinished: Collection[str]) -> str:
    """A sentence with the numbers of findings that hold, that do not, and that cannot be told.

    Args:
        results: The studies that have results.
        asked: The number of studies.
        unfinished: The names of the studies some of whose runs have not finished.
    """
    answers = [result.judgement.answer for result in results if result.judgement.answer != "open" or result.name not in unfinished]
    hold, fail, cannot = (answers.count(answer) for answer in ("holds", "fails", "open"))
    told = [f"{hold} hold{'s' * (hold == 1)} here", f"{fail} do{'es' * (fail == 1)} not", f"{cannot} cannot be told"]
    told += [f"{asked - len(answers)} cannot be told yet"] if asked > len(answers) else []
    return f"Of {asked} finding{'s' * (asked != 1)} of the paper, {', '.join(told[:-1])}, and {told[-1]}."


def write_all_studies(
    folder: Path,
    results: Sequence[PaperStudyResult],
    notes: Sequence[str],
    facts: Mapping[str, Any],
    asked: int,
    unfinished: Collection[str],
) -> Path:
    """Writes a page with the answer of every study, and links to their pages.

    Args:
        folder: The folder with a folder for each study.
        results: The studies that have results.
        asked: As for `findings_summary`.
        unfinished: As for `findings_summary`.
        notes: Sentences on studies without results, on runs that have failed, and on test samples that were trained on.
        facts: The environment.
    """
    data = results[0].data if results else ""
    title = f"The ablations of MAE on {Path(data).name or data}"
    title += f" and {Path(labelled).name or labelled}" if (labelled := results[0].labelled if results else "") else ""
    top = [
        element("h1", title),
        element("p", findings_summary(results, asked, unfinished), class_="verdict"),
        *(element("p", text) for text in notes),
    ]
    items = []
    for result in results:
        link = element("a", result.question, href=f"{result.name}/report.html")
        found = [f"{METRIC_NAMES[key]} {value}" for key in result.shown if (value := result.correlation(key))]
        agreement = f"Rank correlation with the paper (Spearman): {'; '.join(found)}." if found else ""
        body = [element("p", link, f" ({result.source})"), element("p", result.judgement.reason)]
        yet = " yet" * (result.judgement.answer == "open" and result.name in unfinished)
        heading = element("h3", f"{result.name}: {ANSWERS[result.judgement.answer]}{yet}")
        items.append(element("div", heading, *body, *([element("p", agreement)] if agreement else [])))
    sections = [("Studies", join_markup(items)), ("Environment", environment_section(facts, {}))]
    return write_document(folder, join_markup(top), title, sections, f"Generated from the studies in {folder.name}.")
