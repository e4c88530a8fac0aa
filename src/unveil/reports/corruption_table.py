"""The table of errors on corrupted images."""

from collections.abc import Mapping, Sequence
from typing import Any

from unveil.plain_text import count_of
from unveil.reports.chance import accuracy_interval, chance_margin
from unveil.reports.table import ResultTable
from unveil.reports.vocabulary import ENCODER_LABELS, humanize


def corruption_table(facts: Mapping[str, Any]) -> ResultTable:
    """A row for each corruption: the errors of the encoder by severity and their mean, the mean of others, and the ratio.

    Args:
        facts: `corruptions` in the `results.json` of a probe.
    """
    errors, severities, baseline = facts["errors"], facts["severities"], facts.get("baseline")
    own, others = errors["encoder"], [name for name in errors if name != "encoder"]
    rows = [["none", *("" for _ in severities), *(number(facts["clean_error"][name]) for name in ("encoder", *others))]]
    for corruption in own:
        means = [mean(errors[name][corruption]) for name in ("encoder", *others)]
        rows.append([humanize(corruption), *map(number, [*own[corruption], *means])])
    by_severity = [mean(column) for column in zip(*own.values(), strict=True)]
    rows.append(["mean", *map(number, [*by_severity, *(facts["mean_error"][name] for name in ("encoder", *others))])])
    heads = ["corruption", *map(str, severities), "mean", *(ENCODER_LABELS.get(name, name) for name in others)]
    if baseline:
        heads.append("CE")
        ratios = ["", *map(number, facts["corruption_error"]["encoder"].values()), number(facts["mce"]["encoder"])]
        rows = [[*row, ratio] for row, ratio in zip(rows, ratios, strict=True)]
    title = f"Top-1 error of this encoder on {count_of(facts['images'], 'corrupted test image')}, in %, by severity"
    relative = [relative_sentence(facts, baseline)] if baseline else []
    return ResultTable(title, heads, rows, relative + chance_sentences(facts))


def chance_sentences(facts: Mapping[str, Any]) -> list[str]:
    """The 95 % intervals of the errors of the encoder, and the differences from other probes that can be due to chance.

    They are those of other tables, for the numbers of independent images that `facts` records.
    """
    images = facts["images"]

    def worth(name: str, kind: str) -> float:
        return float(facts.get("independent", {}).get(name, {}).get(kind) or images)  # earlier versions recorded none

    intervals, margins = list[str](), list[float]()
    for kind in ("clean_error", "mean_error"):
        errors = facts[kind]
        low, high = accuracy_interval(errors["encoder"], worth("encoder", kind))
        intervals.append(f"{number(low)} to {number(high)}")
        others = {name: min(worth(name, kind), worth("encoder", kind)) for name in errors if name != "encoder"}
        margins.append(
            max((chance_margin([errors["encoder"]], [errors[name]], count) for name, count in others.items()), default=0)
        )
    found = [
        f"With {count_of(images, 'test image')}, the 95 % interval of the error of this encoder is {intervals[0]} % without "
        f"corruption, and {intervals[1]} % for the mean."
    ]
    if all(margins):
        found.append(
            f"Differences from another column of up to about {100 * margins[0]:.1f} points without corruption, and "
            f"{100 * margins[1]:.1f} points for the mean, can be due to chance."
        )
    return found


def relative_sentence(facts: Mapping[str, Any], baseline: str) -> str:
    """What CE is, and the mean corruption errors."""
    mce, relative, name = facts["mce"]["encoder"], facts["relative_mce"]["encoder"], ENCODER_LABELS[baseline]
    name = f"the {name}" if baseline == "untrained" else name
    parts = [f"CE is the error as a share of that of {name}; its mean is mCE: {number(mce)}."]
    if mce is None:
        parts.append(f"It is not defined for corruptions under which {name} has no errors.")
    parts.append(f"Relative mCE, from the increase over the error without corruption: {number(relative)}.")
    if relative is None:
        parts.append(f"It is not defined, since the error of {name} does not increase under every corruption.")
    return " ".join(parts)


def number(share: float | None) -> str:
    """A share in per cent, as in the paper, without the sign, since a row has many of them."""
    return "undefined" if share is None else f"{100 * share:.1f}"


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)
