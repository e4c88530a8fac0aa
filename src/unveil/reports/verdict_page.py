"""The page of a verdict: the answer, figures and tables. All numbers are those of `verdict.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from unveil.plain_text import count_of
from unveil.reports.failures import failure_note, unfinished_note
from unveil.reports.html import element, join_markup
from unveil.reports.page import write_document
from unveil.reports.run_info import environment_section, settings_section
from unveil.reports.style import LIGHT, inline_svg, limit_ticks, new_figure, styled
from unveil.reports.table import ResultTable, to_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from unveil.reports.verdict_results import (
    FINETUNED,
    LINEAR,
    OWN,
    RAW,
    SCRATCH,
    UNTRAINED,
    GainOver,
    VerdictResults,
    answer_sentence,
    labels_of,
    points_of,
    remarks,
)

COLOURS = {OWN: "primary", SCRATCH: "secondary", UNTRAINED: "secondary", RAW: "tertiary"}
"""Colours of `unveil.reports.style.LIGHT`."""
OTHER_STYLES = (("text", "s", "-"), ("muted", "^", "--"), ("text", "D", ":"), ("muted", "v", "-."))
"""Colour, marker and line of other encoders, in turn."""


def verdict_tables(found: VerdictResults) -> list[ResultTable]:
    """The accuracies, and the gains of the run over the other models."""
    counts = sorted({each.labels for each in found.accuracies})
    heads = [labels_of(count, found.total) for count in counts]
    cells = {(each.model, each.how, each.labels): spread(each.seeds) for each in found.accuracies}
    rows = [
        [row_name(model, how), *(cells.get((model, how, count), "") for count in counts)]
        for model, how in dict.fromkeys((each.model, each.how) for each in found.accuracies)
    ]
    seeds = max((len(each.seeds) for each in found.accuracies), default=0)
    about = f"Mean and standard deviation of {seeds} seeds, on {count_of(found.tested, 'test image')}."
    gains = {(each.model, each.how, each.labels): points_of(each.gain) for each in found.comparisons}
    compared = [
        [other_name(model, how), *(gains.get((model, how, count), "") for count in counts)]
        for model, how in dict.fromkeys((each.model, each.how) for each in found.comparisons)
    ]
    notes = ["In parentheses: intervals of 95 %, paired over seeds and test images. About 5 of 100 do not contain the true gain."]
    if any(each.how == FINETUNED for each in found.comparisons):
        notes.append("Linear probes are compared with a linear probe of this run, and all others with this run fine-tuned.")
    return [
        ResultTable("Accuracy, %", ["model", *heads], rows, [about]),
        ResultTable("Gain of this run, points", ["over", *heads], compared, notes),
    ]


def row_name(model: str, how: str) -> str:
    """A model and how it was trained; a model from scratch is trained in one way only."""
    return model if model == SCRATCH else f"{model}, {how}"


def other_name(model: str, how: str = "") -> str:
    """What the run is compared with, and how that was trained, if that is to be said."""
    return "training from scratch" if model == SCRATCH else f"{model}, {how}" if how else model


def spread(accuracies: Sequence[float]) -> str:
    """A mean and a standard deviation in percent."""
    own = f"{100 * mean(accuracies):.1f}"
    return f"{own} ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else own


def gain_figure(found: VerdictResults, how: str) -> "Figure":
    """Draws the gain over each other model with its interval, for each number of labels, and a line at zero."""
    chosen = [each for each in found.comparisons if each.how == how]
    models = list(dict.fromkeys(each.model for each in chosen))
    counts = sorted({each.labels for each in chosen})
    figure = new_figure(5.6, 3.0)
    with styled():
        axes = figure.add_axes((0.12, 0.17, 0.85, 0.71), xlabel="labels", ylabel="gain of this run, points")
        axes.axhline(0, color=LIGHT["text"], linewidth=1.0)
        for number, model in enumerate(models):
            shift = 0.14 * (number - (len(models) - 1) / 2)
            of_model = [each for each in chosen if each.model == model]
            x = [counts.index(each.labels) + shift for each in of_model]
            y = [100 * each.gain.mean for each in of_model]
            below = [100 * (each.gain.mean - each.gain.low) for each in of_model]
            above = [100 * (each.gain.high - each.gain.mean) for each in of_model]
            colour, marker, _ = style_of(model, models)
            axes.errorbar(x, y, yerr=[below, above], fmt=marker, color=colour, capsize=4, label=f"over {other_name(model)}")
        axes.set_xticks(range(len(counts)), [labels_of(count, found.total) for count in counts])
        axes.set_xlim(-0.5, len(counts) - 0.5)
        limit_ticks(axes.yaxis, 6)
        axes.spines["left"].set_visible(False)
        add_legend(axes)
    return figure


def accuracy_figure(found: VerdictResults, how: str) -> "Figure":
    """Draws the accuracy of each model over the number of labels: a dot for each seed, and a line through the means."""
    chosen = [each for each in found.accuracies if each.how == how]
    counts = sorted({each.labels for each in chosen})
    figure = new_figure(5.6, 3.0)
    with styled():
        axes = figure.add_axes((0.12, 0.17, 0.85, 0.71), xlabel="labels", ylabel="accuracy, %")
        models = list(dict.fromkeys(each.model for each in chosen))
        for model in sorted(models, key=lambda model: model != OWN):
            of_model = [each for each in chosen if each.model == model]
            shift = 0.0 if len(counts) > 1 else 0.14 * (models.index(model) - (len(models) - 1) / 2)  # else dots hide each other
            x = [counts.index(each.labels) + shift for each in of_model]
            colour, marker, line = style_of(model, models)
            means = [100 * mean(each.seeds) for each in of_model]
            axes.plot(x, means, line, color=colour, linewidth=1.8, marker=marker if len(x) == 1 else "", label=model)
            for place, each in zip(x, of_model, strict=True):
                axes.plot([place] * len(each.seeds), [100 * value for value in each.seeds], marker, color=colour, markersize=3.5)
        axes.set_xticks(range(len(counts)), [labels_of(count, found.total) for count in counts])
        axes.set_xlim(-0.3, len(counts) - 0.7)
        limit_ticks(axes.yaxis, 6)
        axes.spines["left"].set_visible(False)
        add_legend(axes)
    return figure


def style_of(model: str, models: Sequence[str]) -> tuple[str, str, str]:
    """The colour, the marker and the line of a model, the same in all figures."""
    if model in COLOURS:
        return LIGHT[COLOURS[model]], "o", "-"
    others = [each for each in models if each not in COLOURS]
    name, marker, line = OTHER_STYLES[others.index(model) % len(OTHER_STYLES)]
    return LIGHT[name], marker, line


def add_legend(axes: Any) -> None:
    """Adds a legend above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=3, frameon=False, fontsize=8, labelcolor=LIGHT["text"])


def write_verdict_page(folder: Path, found: VerdictResults, facts: Mapping[str, Any]) -> Path:
    """Writes `report.html` into the folder of a verdict.

    Args:
        folder: The folder.
        found: The results.
        facts: The config and the environment.
    """
    title = f"Did the pre-training of {Path(found.run).name or found.run} pay off?"
    line = element("p", f"verdict {folder.name}", class_="muted")
    failed = [element("p", text) for text in (unfinished_note(facts), failure_note(facts)) if text]
    answer = element("p", answer_sentence(found), class_="verdict")
    notes = [element("p", " ".join(sentences))] if (sentences := remarks(found)) else []
    heading = join_markup([element("h1", title), answer, *notes, *failed, line])
    accuracy, gains = verdict_tables(found)
    ways = [how for how in (FINETUNED, LINEAR) if any(each.how == how for each in found.comparisons)]
    figures = [
        element(
            "figure",
            element("h3", f"Gain, {how}"),
            inline_svg(
                gain_figure(found, how),
                f"gain-{how.split()[0]}",
                "; ".join(alt_of(each) for each in found.comparisons if each.how == how),
            ),
            element("figcaption", "Bars are intervals of 95 %. One that crosses the line cannot tell whether there is a gain."),
        )
        for how in ways
    ]
    curves = [
        element(
            "figure",
            element("h3", f"Accuracy, {how}"),
            inline_svg(accuracy_figure(found, how), f"accuracy-{how.split()[0]}", f"Accuracy with each number of labels, {how}."),
            element("figcaption", "Each small dot is a seed; the line, or the large dot, is the mean."),
        )
        for how in ways
    ]
    sections = [
        ("Gain", join_markup([element("div", *figures, class_="figures"), to_html(gains)])),
        ("Accuracy", join_markup([element("div", *curves, class_="figures"), to_html(accuracy)])),
        ("Settings", settings_section(facts["config"])),
        ("Environment", environment_section(facts, {})),
    ]
    return write_document(folder, heading, title, sections, f"Generated from verdict.json and the run folders in {folder.name}.")


def alt_of(compared: GainOver) -> str:
    """A gain in words, for those who cannot see the figure."""
    return f"over {other_name(compared.model)} with {count_of(compared.labels, 'label')}: {points_of(compared.gain)} points"
