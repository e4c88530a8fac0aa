"""Whether pre-training paid off: the sentence, the tables, the figures and the page. All numbers are those of `verdict.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from unveil.evaluate.paired import Gain, needed
from unveil.plain_text import count_of
from unveil.reports.failures import failure_note
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
"""Colours of `unveil.reports.style.LIGHT`."""
OTHER_STYLES = (("text", "s", "-"), ("muted", "^", "--"), ("text", "D", ":"), ("muted", "v", "-."))
"""Colour, marker and line of other encoders, in turn."""


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
    cautions: list[str]
    """Sentences on what makes the numbers of labels or the accuracies other than they look."""

    @property
    def deciding(self) -> list[GainOver]:
        """The comparisons that give the answer, one for each number of labels.

        With fine-tuning, those with the same model from scratch. Without, those of the linear probe with raw pixels or the
        untrained encoder: the one with the lower end of its interval, so that "yes" holds against both; but one that is
        clearly ahead of the run comes first.
        """
        tuned = [each for each in self.comparisons if each.how == FINETUNED and each.model == SCRATCH]
        if tuned:
            return tuned
        probed = [each for each in self.comparisons if each.how == LINEAR and each.model in (RAW, UNTRAINED)]
        return [
            min((each for each in probed if each.labels == labels), key=lambda each: (each.gain.sign >= 0, each.gain.low))
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
            "cautions": self.cautions,
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
    short = short_runs(found)
    parts += [text for each in unsure if each.labels not in short and (text := needed_sentence(each))]
    parts += [short_sentence(short)] if short else []
    return " ".join([*parts, *found.cautions])


def short_runs(found: VerdictResults) -> dict[int, tuple[float, float]]:
    """Where fine-tuning ended well below the linear probe of the same encoder: both accuracies, by the number of labels."""
    accuracy = {(each.how, each.labels): mean(each.seeds) for each in found.accuracies if each.model == OWN}
    pairs = {labels: (value, accuracy.get((LINEAR, labels), 0.0)) for (how, labels), value in accuracy.items() if how == FINETUNED}
    return {labels: (tuned, probed) for labels, (tuned, probed) in pairs.items() if tuned < 0.9 * probed}


def short_sentence(short: Mapping[int, tuple[float, float]]) -> str:
    """That fine-tuning has failed, and what to do."""
    cases = [
        f"{100 * tuned:.1f} % with {count_of(labels, 'label')} (a linear probe of the same encoder: {100 * probed:.1f} %)"
        for labels, (tuned, probed) in short.items()
    ]
    advice = "Try more --finetune.epochs, or another --finetune.base-lr, before you trust the answer."
    return f"Fine-tuning only reached {listed(cases)}. {advice}"


def phrase(compared: GainOver, total: int) -> str:
    """A gain with its interval, and the labels."""
    gain = compared.gain
    middle, low, high = in_points(gain)
    points = f"{middle} points (95 % interval {low} to {high})"
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
    return f"To tell a gain of {in_points(gain)[0]} points with {labels} from chance, {enough} would be needed."


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
    middle, low, high = in_points(gain)
    return f"{middle} ({low} to {high})"


def in_points(gain: Gain) -> list[str]:
    """The gain and the ends of its interval in points, with as many decimals as it takes to see that an end is not zero."""
    values = [100 * value for value in (gain.mean, gain.low, gain.high)]
    decimals = 1
    while gain.sign and any(round(value, decimals) == 0 for value in values) and decimals < 4:
        decimals += 1
    return [f"{value:+.{decimals}f}" for value in values]


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
            axes.errorbar(x, y, yerr=[below, above], fmt=marker, color=colour, capsize=4, label=f"over {model}")
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
    failed = [element("p", failure_note(facts))] if facts.get("failed") else []
    heading = join_markup([element("h1", title), element("p", verdict_sentence(found), class_="verdict"), *failed, line])
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
