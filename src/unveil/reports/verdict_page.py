"""Whether pre-training paid off: the sentence, the tables, the figures and the page. All numbers are those of `verdict.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from unveil.evaluate.paired import Gain, needed
from unveil.plain_text import count_of
from unveil.reports.html import element, join_markup
from unveil.reports.page import write_document
from unveil.reports.run_info import environment_section, settings_section
from unveil.reports.style import LIGHT, inline_svg, limit_ticks, new_figure, styled
from unveil.reports.table import ResultTable, to_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAW, UNTRAINED, SCRATCH, OWN = "raw pixels", "untrained", "from scratch", "this run"
"""Names of models; encoders to compare with have the names that the user gave."""
FINETUNED, LINEAR = "fine-tuned", "linear probe"
COLOURS = {OWN: "primary", SCRATCH: "secondary", UNTRAINED: "secondary", RAW: "tertiary"}
OTHER_COLOURS = ("text", "muted")
"""Colours of `unveil.reports.style.LIGHT` for models, and for other encoders in turn."""


class Accuracies(NamedTuple):
    """The accuracies of a model with a number of labels."""

    model: str
    how: str
    """`FINETUNED` or `LINEAR`."""
    labels: int
    seeds: list[float]
    """One accuracy for each seed."""


class GainOver(NamedTuple):
    """How much more accurate the run is than another model, both trained in the same way with the same labels."""

    model: str
    """The other model."""
    how: str
    labels: int
    gain: Gain


class VerdictResults(NamedTuple):
    """What a verdict has measured."""

    run: str
    total: int
    """The number of all labels."""
    tested: int
    """The number of test images."""
    accuracies: list[Accuracies]
    comparisons: list[GainOver]

    @property
    def deciding(self) -> list[GainOver]:
        """The comparisons that give the answer, one for each number of labels.

        With fine-tuning, those with the same model from scratch. Without, those of the linear probe with the better one of raw
        pixels and the untrained encoder.
        """
        tuned = [each for each in self.comparisons if each.how == FINETUNED and each.model == SCRATCH]
        if tuned:
            return tuned
        probed = [each for each in self.comparisons if each.how == LINEAR and each.model in (RAW, UNTRAINED)]
        return [
            min((each for each in probed if each.labels == labels), key=lambda each: each.gain.mean)
            for labels in dict.fromkeys(each.labels for each in probed)
        ]

    @property
    def answer(self) -> str:
        """yes, no, cannot tell, or depends."""
        signs = {each.gain.sign for each in self.deciding}
        if {1, -1} <= signs:
            return "depends"
        return "yes" if 1 in signs else "no" if -1 in signs else "cannot tell"

    def to_json(self) -> dict[str, Any]:
        """The results in `verdict.json`."""
        return {
            "run": self.run,
            "answer": self.answer,
            "sentence": verdict_sentence(self),
            "labels": self.total,
            "test_images": self.tested,
            "accuracies": [each._asdict() for each in self.accuracies],
            "gains": [
                {key: value for key, value in each._asdict().items() if key != "gain"}
                | each.gain._asdict()
                | {"sign": each.gain.sign}
                | ({"needed": needed(each.gain)._asdict()} if not each.gain.sign else {})
                for each in self.comparisons
            ],
        }


def verdict_sentence(found: VerdictResults) -> str:
    """The answer, in one or a few sentences."""
    deciding = found.deciding
    if not deciding:
        return "There are no results yet."
    sure = [each for each in deciding if each.gain.sign]
    unsure = [each for each in deciding if not each.gain.sign]
    opening = {
        "yes": "Yes, pre-training paid off" if not unsure else "Yes, pre-training paid off with some numbers of labels",
        "no": "No, pre-training did not pay off",
        "depends": "It depends on the number of labels whether pre-training paid off",
        "cannot tell": "These results cannot tell whether pre-training paid off",
    }[found.answer]
    parts = [f"{opening}: {listed([phrase(each, found.total) for each in sure or unsure])}."]
    if sure and unsure:
        parts.append(f"These results cannot tell {listed([phrase(each, found.total) for each in unsure])}.")
    parts += [text for each in unsure if (text := needed_sentence(each))]
    return " ".join(parts)


def phrase(compared: GainOver, total: int) -> str:
    """A gain with its interval, and the labels."""
    gain = compared.gain
    points = f"{100 * gain.mean:+.1f} points (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    other = "the untrained encoder" if compared.model == UNTRAINED else compared.model
    than = "training from scratch" if compared.model == SCRATCH else f"a linear probe of {other}"
    return f"{points} against {than} with {labels_of(compared.labels, total)}"


def labels_of(count: int, total: int) -> str:
    """A number of labels, and its share of all."""
    return f"{count_of(count, 'label')} ({100 * count / total:.2g} %)" if count < total else f"all {count_of(count, 'label')}"


def needed_sentence(compared: GainOver) -> str:
    """What would tell a gain of this size from zero."""
    gain, asked = compared.gain, needed(compared.gain)
    if gain.mean == 0:
        return ""
    ways = [f"{asked.seeds:,} seeds"] if asked.seeds else []
    ways += [f"{asked.images:,} test images"] if asked.images else []
    enough = f"about {' or '.join(ways)}" if ways else "more than 100 seeds, or more than a million test images"
    labels = count_of(compared.labels, "label")
    return f"To tell a gain of {100 * gain.mean:+.1f} points with {labels} from chance, {enough} would be needed."


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence, separated by semicolons."""
    return "; ".join(parts)


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
        [f"over {row_name(model, how)}", *(gains.get((model, how, count), "") for count in counts)]
        for model, how in dict.fromkeys((each.model, each.how) for each in found.comparisons)
    ]
    note = (
        "In parentheses: intervals of 95 %, paired over seeds and test images. Each one is right in 95 of 100 cases: of several, "
        "one is wrong more often."
    )
    return [
        ResultTable("Accuracy, %", ["model", *heads], rows, [about]),
        ResultTable("Gain of this run, points", ["in the same way", *heads], compared, [note]),
    ]


def row_name(model: str, how: str) -> str:
    """A model and how it was trained; a model from scratch is trained in one way only."""
    return model if model == SCRATCH else f"{model}, {how}"


def spread(accuracies: Sequence[float]) -> str:
    """A mean and a standard deviation in percent."""
    own = f"{100 * mean(accuracies):.1f}"
    return f"{own} ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else own


def points_of(gain: Gain) -> str:
    """A gain with its interval, in points."""
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


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
            axes.errorbar(x, y, yerr=[below, above], fmt="o", color=colour_of(model, models), capsize=4, label=f"over {model}")
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
            x = [counts.index(each.labels) for each in of_model]
            colour = colour_of(model, models)
            axes.plot(x, [100 * mean(each.seeds) for each in of_model], color=colour, linewidth=1.8, label=model)
            for place, each in zip(x, of_model, strict=True):
                axes.plot([place] * len(each.seeds), [100 * value for value in each.seeds], "o", color=colour, markersize=3.5)
        axes.set_xticks(range(len(counts)), [labels_of(count, found.total) for count in counts])
        axes.set_xlim(-0.3, len(counts) - 0.7)
        limit_ticks(axes.yaxis, 6)
        axes.spines["left"].set_visible(False)
        add_legend(axes)
    return figure


def colour_of(model: str, models: Sequence[str]) -> str:
    """The colour of a model, the same in all figures."""
    others = [each for each in models if each not in COLOURS]
    return LIGHT[COLOURS.get(model) or OTHER_COLOURS[others.index(model) % len(OTHER_COLOURS)]]


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
    heading = join_markup([element("h1", title), element("p", verdict_sentence(found), class_="verdict"), line])
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
            element("figcaption", "Each dot is a seed."),
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
    return f"over {compared.model} with {count_of(compared.labels, 'label')}: {points_of(compared.gain)} points"
