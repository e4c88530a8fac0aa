"""What a verdict has measured, and its answer in words. All numbers are those of `verdict.json`."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from unveil.evaluate.paired import Gain, needed
from unveil.plain_text import count_of

RAW, UNTRAINED, SCRATCH, OWN = "raw pixels", "untrained", "from scratch", "this run"
"""Names of models; encoders to compare with have the names that the user gave."""
FINETUNED, LINEAR = "fine-tuned", "linear probe"


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
    unfinished: int = 0
    """The number of runs of fine-tuning that are still to come."""

    @property
    def deciding(self) -> list[GainOver]:
        """The comparisons that give the answer, one for each number of labels.

        With fine-tuning, those with the same model from scratch. Without, those of the linear probe with raw pixels or the
        untrained encoder: the one with the lower end of its interval, so that "yes" holds against both; but one that is
        clearly ahead of the run comes first.
        """
        tuned = [each for each in self.comparisons if each.how == FINETUNED and each.model == SCRATCH]
        if tuned or self.unfinished:  # linear probes do not stand in for fine-tuning that is to come
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
    """The answer, what would make it surer, and what makes the numbers other than they look."""
    return " ".join([answer_sentence(found), *remarks(found)])


def answer_sentence(found: VerdictResults) -> str:
    """The answer, in one or two sentences."""
    deciding = found.deciding
    if not deciding:
        return "There are no results yet." if not found.unfinished else "There is no answer yet: fine-tuning has not finished."
    sure = [each for each in deciding if each.gain.sign]
    unsure = [each for each in deciding if not each.gain.sign]
    opening = {
        "yes": "Yes, pre-training paid off" if not unsure else "Yes, pre-training paid off with some numbers of labels",
        "no": "No, pre-training did not pay off" if not unsure else "No, pre-training did not pay off with some numbers of labels",
        "depends": "It depends on the number of labels whether pre-training paid off",
        "cannot tell": "These results cannot tell whether pre-training paid off",
    }[found.answer]
    parts = [f"{opening}: {listed([phrase(each, found.total) for each in sure or unsure])}."]
    if sure and unsure:
        parts.append(f"This cannot be told from chance: {listed([phrase(each, found.total) for each in unsure])}.")
    return " ".join(parts)


def remarks(found: VerdictResults) -> list[str]:
    """Sentences on what would tell, on fine-tuning that failed, and on the data."""
    short = short_runs(found)
    unsure = [each for each in found.deciding if not each.gain.sign and each.labels not in short]
    needs = [text for each in unsure if (text := needed_sentence(each))]
    return [*needs, *([short_sentence(short)] if short else []), *found.cautions]


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
    share = 100 * count / total
    return (
        f"{count_of(count, 'label')} ({share:.{3 if share > 99 else 2}g} %)" if count < total else f"all {count_of(count, 'label')}"
    )


def needed_sentence(compared: GainOver) -> str:
    """What would tell a gain of this size from zero."""
    gain, asked = compared.gain, needed(compared.gain)
    if gain.mean == 0:
        return ""
    ways = [f"{asked.seeds:,} seeds"] if asked.seeds else []
    ways += [f"{asked.images:,} test images"] if asked.images else []
    enough = f"about {' or '.join(ways)}" if ways else "more than 100 seeds, or more than a million test images"
    labels = count_of(compared.labels, "label")
    size = in_points(gain)[0].lstrip("+-")
    return f"To tell a difference of {size} points with {labels} from chance, {enough} would be needed."


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence, separated by semicolons."""
    return "; ".join(parts)


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
