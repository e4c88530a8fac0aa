"""The report of a comparison of methods: a table, bar charts, and a page. All numbers come from run folders."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from unveil.data.split_folders import split_of
from unveil.errors import UnveilError
from unveil.reports.chance import TestCounts, chance_margin, contenders, within_chance
from unveil.reports.failures import failure_note
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.page import write_document
from unveil.reports.run_info import environment_section, settings_section
from unveil.reports.run_summary import has_collapsed, position_of
from unveil.reports.style import LIGHT, inline_svg, new_figure, styled
from unveil.reports.table import ResultTable, to_html
from unveil.reports.vocabulary import primary_of
from unveil.train.run_cost import spell_time
from unveil.train.run_folder import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ComparisonRow(NamedTuple):
    """The results of a method or a baseline."""

    name: str
    figures: dict[str, list[float]]
    """Numbers by a key of `RESULT_COLUMNS`, one for each seed."""
    baseline: bool = False
    """Whether this is an untrained encoder or raw pixels."""

    def to_json(self) -> dict[str, Any]:
        """The row in `compare.json` and `study.json`."""
        return {"name": self.name, "figures": self.figures, "yardstick": self.baseline}


ACCURACIES = {"knn": "k-NN", "linear": "linear", "partial": "last block", "finetune": "fine-tuned"}
"""Kinds of accuracy, with their labels; linear is the linear probe, and partial is fine-tuning of the last block."""
EVALUATED_ON = {"held-out": "images held out from training", "test": "the test set"}
"""Values of `evaluate_on` in words."""
HELD_OUT_NOTE = (
    "The test set was not looked at. To report a number, evaluate the run that you choose on it once: unveil probe RUN, or unveil "
    "finetune RUN with the same options."
)
"""What to do after a comparison on held-out images."""
NO_TEST_NOTE = (
    "These are all the images that the data has for tests, so the best of several accuracies on them is too high. To report a "
    "number, evaluate the run that you choose on others: unveil finetune RUN --test OTHER, or unveil probe."
)
"""The same if the data has no test set beside them."""
RESULT_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", spell_time),
    "samples": ("samples", lambda value: f"{round(value):,}"),
    **{key: (f"{name}, %", lambda value: f"{100 * value:.1f}") for key, name in ACCURACIES.items()},
    "ahead": ("gain, points", lambda value: f"{100 * value:+z.1f}"),
    "rank_me": ("RankMe", lambda value: f"{value:.1f}"),
    "feature_deviation": ("feature deviation", lambda value: f"{value:.2f}"),
    "codebook_usage": ("codebook used, %", lambda value: f"{100 * value:.1f}"),
}
"""The columns of the table, in their order: the heading, and the format of a number."""


def figures_of(run: Run, stages: Sequence[Run]) -> dict[str, float]:
    """The numbers of a run, by a key of `RESULT_COLUMNS`.

    Args:
        run: A finished pre-training run.
        stages: Runs that had to be trained first, such as a visual tokenizer. Their time and samples are added, and the usage of
            their codebook is shown.
    """
    every = [each.results for each in (run, *stages)]
    features = run.results.get("features") or {}
    figures = {"seconds": sum(results["seconds"] for results in every)}
    figures["samples"] = sum(results.get("images_seen") or results["sequences_seen"] for results in every)
    figures |= features.get("encoder", {}) | (run.results.get("spread") or {}).get("encoder", {})
    held_out = {key: value for results in every for key, value in (results.get("held_out") or {}).items()}
    figures |= {key: value for key, value in held_out.items() if key == "codebook_usage"}
    if "linear" in features.get("untrained", {}):
        figures["ahead"] = features["encoder"]["linear"] - features["untrained"]["linear"]
    return figures


def finetune_score(run: Run) -> float:
    """The primary metric of a fine-tuning run, such as the top-1 accuracy."""
    return float(run.results["score"][primary_of(run.results)])


def row_of(name: str, seeds: Sequence[Mapping[str, float]], baseline: bool = False) -> ComparisonRow:
    """A row from the numbers of each seed."""
    keys = dict.fromkeys(key for each in seeds for key in each)
    return ComparisonRow(name, {key: [each[key] for each in seeds if key in each] for key in keys}, baseline)


def comparison_table(rows: Sequence[ComparisonRow], title: str, test_counts: TestCounts) -> ResultTable:
    """The table of a comparison. Columns without numbers are left out.

    Args:
        rows: The methods, then the baselines.
        title: What is compared.
        test_counts: Numbers of independent images of the evaluations, to estimate which differences can be due to chance.
    """
    columns = [key for key in RESULT_COLUMNS if any(key in row.figures for row in rows)]
    cells = [[row.name, *(format_mean(key, row.figures.get(key, [])) for key in columns)] for row in rows]
    count = max(len(values) for row in rows for values in row.figures.values())
    notes = [f"Mean and standard deviation over {count} seeds." if count > 1 else "One seed: the spread over seeds is unknown."]
    if "ahead" in columns:
        notes.append("Gain: the linear probe accuracy minus that of the same encoder untrained.")
    if with_spread := [row for row in rows if not row.baseline and row.figures.get("rank_me")]:
        notes.append(collapse_note(with_spread))
    notes += chance_notes(rows, test_counts)
    return ResultTable(title, ["", *(RESULT_COLUMNS[key][0] for key in columns)], cells, notes)


def chance_notes(rows: Sequence[ComparisonRow], test_counts: TestCounts) -> list[str]:
    """Sentences with the differences that can be due to chance: one for all accuracies on equally many images."""
    of_count: dict[float | None, dict[str, list[list[float]]]] = {}
    kinds = ACCURACIES | {"scratch": "from scratch"}
    for key in kinds:
        if every := [row.figures[key] for row in rows if row.figures.get(key)]:
            of_count.setdefault(test_counts.get(key), {})[key] = every
    notes = []
    for count, of_key in of_count.items():
        every = [values for listed in of_key.values() for values in listed]
        margin = 100 * max(chance_margin(values, values, count) for values in every)
        causes = [f"the choice of {count:,.0f} samples to evaluate on"] if count else []
        causes += ["the seeds"] if any(len(values) > 1 for values in every) else []
        names = f" ({', '.join(kinds[key] for key in of_key)})" if len(of_count) > 1 else ""
        if margin:
            notes.append(f"Differences of up to about {margin:.1f} points{names} can be due to chance: {' and '.join(causes)}.")
    return notes


def collapse_note(rows: Sequence[ComparisonRow]) -> str:
    """A note on methods with collapsed features, for at least one seed."""
    seeds = [(row.name, zip(row.figures["feature_deviation"], row.figures["rank_me"], strict=True)) for row in rows]
    collapsed = [name for name, pairs in seeds if any(has_collapsed(*pair) for pair in pairs)]
    if not collapsed:
        return "No method has collapsed."
    return f"Collapsed for at least one seed (features that are nearly the same for every image): {', '.join(collapsed)}."


def format_mean(key: str, values: Sequence[float]) -> str:
    """Formats the mean and, for several seeds, the standard deviation. A time or a count has only the mean."""
    if not values:
        return ""
    text = RESULT_COLUMNS[key][1](mean(values))
    if len(values) == 1 or key in ("seconds", "samples"):
        return text
    return f"{text} ± {RESULT_COLUMNS[key][1](stdev(values)).lstrip('+')}"


def comparison_verdict(rows: Sequence[ComparisonRow], test_counts: TestCounts) -> str:
    """A sentence with the best method, and its distance to the next method and to the baselines.

    If several methods are within chance of the best one, it names them all and no winner.
    """
    for key in ("linear", "finetune", "knn"):
        methods = {row.name: row.figures[key] for row in rows if row.figures.get(key) and not row.baseline}
        if not methods:
            continue
        baselines = {row.name: row.figures[key] for row in rows if row.figures.get(key) and row.baseline}
        order = sorted(methods, key=lambda name: -mean(methods[name]))
        count = test_counts.get(key)
        level = contenders(methods, count)
        best = format_mean(key, methods[order[0]])
        if len(level) > 1:
            listed = ", ".join(f"{name} {format_mean(key, methods[name])} %" for name in level)
            return f"No winner by {ACCURACIES[key]} accuracy: the differences between {listed} can be due to chance."
        others = {name: methods[name] for name in order[1:2]} | baselines
        distances = ", ".join(distance(methods[order[0]], name, values, count) for name, values in others.items())
        compared = f", {distances}" if distances else ""
        if len(methods) == 1:
            return f"{order[0]} reaches a {ACCURACIES[key]} accuracy of {best} %{compared}."
        return f"Best by {ACCURACIES[key]} accuracy: {order[0]} with {best} %{compared}."
    return "There are no results yet."


def distance(own: Sequence[float], name: str, other: Sequence[float], count: float | None) -> str:
    """A phrase with the points between the best method and another row."""
    by_chance = within_chance(own, other, count)
    return f"{position_of(100 * (mean(own) - mean(other)), by_chance)} {'an untrained encoder' if name == 'untrained' else name}"


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


def accuracy_section(rows: Sequence[ComparisonRow], evaluated_on: str) -> Markup:
    """A bar chart for each kind of accuracy; `evaluated_on` is a key of `EVALUATED_ON`."""
    figures = []
    for key, name in ACCURACIES.items():
        if any(row.figures.get(key) for row in rows):
            alt = "; ".join(f"{row.name} {format_mean(key, row.figures[key])} %" for row in rows if row.figures.get(key))
            title = element("h3", f"Accuracy on {EVALUATED_ON[evaluated_on]}: {name}")
            several = any(len(row.figures.get(key, ())) > 1 for row in rows)
            note = "Bars and numbers are means over the seeds; each dot is a seed." if several else "Each bar is one seed."
            caption = element("figcaption", f"{note} Grey bars are baselines.")
            figures.append(element("figure", title, inline_svg(bar_figure(rows, key), f"bars-{key}", alt), caption))
    return element("div", *figures, class_="figures")


def held_out_note(runs: Iterable[Path]) -> str:
    """What to do after a comparison on held-out images, by what its runs record about the data, or about the labelled data."""
    unused = list[bool]()
    for path in runs:
        with contextlib.suppress(UnveilError):  # a damaged run says nothing
            splits = (Run(path).facts.get("data") or {}).get("splits") or {}
            unused.append(any(split_of(name) == "test" for name in splits.get("unused", ())))
    return HELD_OUT_NOTE if any(unused) or not unused else NO_TEST_NOTE


def write_comparison(
    folder: Path,
    rows: Sequence[ComparisonRow],
    table: ResultTable,
    runs: Sequence[Path],
    facts: Mapping[str, Any],
    test_counts: TestCounts,
) -> Path:
    """Writes `report.html` into the folder of a comparison.

    Args:
        folder: The folder of the comparison.
        rows: The methods, then the baselines.
        table: The table of these rows.
        runs: The run folders, to link to.
        facts: The data, the config and the environment.
        test_counts: Numbers of independent images of the evaluations.
    """
    title = f"Methods compared on {Path(facts['data']).name or facts['data']}"
    line = element("p", f"comparison {folder.name}", class_="muted")
    evaluated_on = facts["config"].get("evaluate_on", "test")  # earlier versions had no choice
    note = [element("p", held_out_note(runs))] if evaluated_on == "held-out" else []
    verdict = element("p", comparison_verdict(rows, test_counts), class_="verdict")
    failed = [element("p", text)] if (text := failure_note(facts)) else []
    heading = join_markup([element("h1", title), verdict, *failed, *note, line])
    links = [element("li", element("a", each.name, href=f"{each.name}/report.html")) for each in runs]
    sections = [
        ("Results", to_html(table)),
        ("Accuracy", accuracy_section(rows, evaluated_on)),
        ("Runs", element("ul", *links, class_="names")),
        ("Settings", settings_section(facts["config"])),
        ("Environment", environment_section(facts, {})),
    ]
    return write_document(folder, heading, title, sections, f"Generated from the run folders in {folder.name}.")
