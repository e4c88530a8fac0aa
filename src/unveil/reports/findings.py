"""Whether a finding of a paper holds in runs of one's own: a finding is a list of claims, and each claim compares cells of a study.

A cell is one setting, with numbers from several seeds. A claim holds if its difference is larger than chance explains, fails if
the difference is that large in the other direction, and is open otherwise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

from unveil.reports.chance import TestCounts, chance_margin, contenders

Answer = Literal["holds", "fails", "open"]
Numbers = Mapping[str, Mapping[str, Sequence[float]]]
"""The numbers of each seed, by the label of the cell and then by the metric. Accuracies are between 0 and 1."""
METRICS = {"linear": "linear probe", "finetune": "fine-tuning", "scratch": "training from scratch"}
"""Accuracies that claims compare, in words."""
FEWEST_SEEDS = 2
"""With one seed, nobody knows how much of a difference the seed has made."""


class Judgement(NamedTuple):
    """Whether a claim or a finding holds, and a sentence without a full stop that says why."""

    answer: Answer
    reason: str


class Difference(NamedTuple):
    """The difference of two means, and the margin of its 95 % interval."""

    value: float
    margin: float
    limit: float = 1.0
    """The largest difference that is possible: 1 for accuracies."""

    @property
    def answer(self) -> Answer:
        """Whether the interval is above 0 (holds), below 0 (fails), or contains it (open)."""
        return "open" if abs(self.value) <= self.margin else "holds" if self.value > 0 else "fails"

    def interval(self) -> str:
        """The interval as text, in points."""
        low, high = max(self.value - self.margin, -self.limit), min(self.value + self.margin, self.limit)
        return f"{100 * low:+z.1f} to {100 * high:+z.1f}"


def difference(first: Sequence[float], second: Sequence[float], count: float | None) -> Difference:
    """The difference of two mean accuracies, consistent with `unveil.reports.chance.within_chance`; `count` as there."""
    return Difference(mean(first) - mean(second), chance_margin(first, second, count))


class Claim(ABC):
    """A comparison of cells of a study."""

    @abstractmethod
    def needs(self) -> list[tuple[str, str]]:
        """The cells and metrics without which nothing can be said."""

    @abstractmethod
    def judge(self, cells: Numbers, counts: TestCounts) -> Judgement:
        """The judgement, if there are numbers of at least two seeds for all of `needs`."""

    def judged(self, cells: Numbers, counts: TestCounts) -> Judgement:
        """The judgement of the numbers that there are.

        Args:
            cells: The numbers of the cells.
            counts: Numbers of independent images of the evaluations.
        """
        for label, metric in self.needs():
            found = cells.get(label, {}).get(metric, ())
            if len(found) < FEWEST_SEEDS:
                if metric == "step" and not found and cells.get(label):
                    return Judgement("open", f"the runs of {label} are too short to tell the time of a step")
                what = METRICS.get(metric, "step time")
                have = "only one result" if found else "no result"
                return Judgement("open", f"there is {have} for {label} ({what}), and at least {FEWEST_SEEDS} seeds are needed")
        return self.judge(cells, counts)


@dataclass(frozen=True)
class Ahead(Claim):
    """The accuracy of one cell is higher than that of another, or than another accuracy of the same cell."""

    better: str
    worse: str
    metric: str = "linear"
    worse_metric: str = ""
    """The other accuracy, if both are of the same cell."""

    def needs(self) -> list[tuple[str, str]]:
        return [(self.better, self.metric), (self.worse, self.worse_metric or self.metric)]

    def judge(self, cells: Numbers, counts: TestCounts) -> Judgement:
        found = difference(
            cells[self.better][self.metric], cells[self.worse][self.worse_metric or self.metric], counts.get(self.metric)
        )
        names, start, by = [f'"{self.better}"', f'"{self.worse}"'], "", f" by {METRICS[self.metric]}"
        if self.worse_metric:  # two metrics of one cell
            names, start, by = [METRICS[self.metric], METRICS[self.worse_metric]], f"with {self.better}, ", ""
        if found.answer == "open":
            reason = f"{start}the difference between {names[0]} and {names[1]}{by} is {found.interval()} points, which includes 0"
        else:
            side = "ahead of" if found.value > 0 else "behind"
            reason = f"{start}{names[0]} is {100 * abs(found.value):.1f} points {side} {names[1]}{by} ({found.interval()})"
        return Judgement(found.answer, reason)


@dataclass(frozen=True)
class Faster(Claim):
    """A step of one cell takes less time than a step of another."""

    faster: str
    slower: str

    def needs(self) -> list[tuple[str, str]]:
        return [(self.faster, "step"), (self.slower, "step")]

    def judge(self, cells: Numbers, counts: TestCounts) -> Judgement:
        fast, slow = cells[self.faster]["step"], cells[self.slower]["step"]
        unit = max(*fast, *slow)  # shares of the longest time, because a margin of `chance_margin` is at most 1
        found = difference([value / unit for value in slow], [value / unit for value in fast], None)
        ratio = mean(slow) / mean(fast)
        if found.answer == "open":
            reason = f'the step times of "{self.faster}" and "{self.slower}" do not differ by more than chance (ratio {ratio:.2f})'
        else:
            reason = f'a step of "{self.faster}" is {ratio:.2f} times as fast as one of "{self.slower}"'
            if ratio < 1:
                reason = f'a step of "{self.faster}" takes {1 / ratio:.2f} times as long as one of "{self.slower}"'
        return Judgement(found.answer, reason)


@dataclass(frozen=True)
class RaisesMore(Claim):
    """From one cell to another, the accuracy by one metric rises, and by more points than that by another metric."""

    start: str
    end: str
    more: str = "linear"
    less: str = "finetune"

    def needs(self) -> list[tuple[str, str]]:
        return [(cell, metric) for metric in (self.more, self.less) for cell in (self.start, self.end)]

    def judge(self, cells: Numbers, counts: TestCounts) -> Judgement:
        start, end = cells[self.start], cells[self.end]
        rises = [difference(end[metric], start[metric], counts.get(metric)) for metric in (self.more, self.less)]
        # The errors of the two rises are taken to be independent, so the margin is rather too wide than too narrow.
        found = Difference(rises[0].value - rises[1].value, math.hypot(rises[0].margin, rises[1].margin), limit=2.0)
        by = [f"{METRICS[metric]} by {100 * rise.value:+z.1f}" for metric, rise in zip((self.more, self.less), rises, strict=True)]
        extra = f"a difference of {found.interval()} points" + ", which includes 0" * (found.answer == "open")
        answer = found.answer
        if answer == "holds" and rises[0].answer != "holds":  # it falls, if less than the other one, or may not rise
            answer = rises[0].answer
            told = "falls" if answer == "fails" else "may not rise"
            extra += f", but the accuracy by {METRICS[self.more]} {told} ({rises[0].interval()})"
        return Judgement(answer, f'from "{self.start}" to "{self.end}", {by[0]} and {by[1]} points, {extra}')


@dataclass(frozen=True)
class BestAmong(Claim):
    """The best of all cells is one of these."""

    cells: tuple[str, ...]
    what: str
    """What these cells have in common, such as "a ratio of 0.6 or higher"."""
    every: tuple[str, ...]
    """All cells of the study. The best one may be a cell without results."""
    metric: str = "linear"

    def needs(self) -> list[tuple[str, str]]:
        return []  # any two of all cells will do

    def judge(self, cells: Numbers, counts: TestCounts) -> Judgement:
        accuracies = {label: numbers[self.metric] for label, numbers in cells.items() if len(numbers.get(self.metric, ())) > 1}
        if len({label in self.cells for label in accuracies}) < 2:
            return Judgement(
                "open", f"there are not yet results of {FEWEST_SEEDS} seeds both for {self.what} and for another setting"
            )
        best = contenders(accuracies, counts.get(self.metric))
        inside = [label for label in best if label in self.cells]
        named = {label: f"{label} ({100 * mean(accuracies[label]):.1f} %)" for label in best}
        answer: Answer = "holds" if len(inside) == len(best) else "open" if inside else "fails"
        if len(best) == len(accuracies):
            return Judgement(answer, f"by {METRICS[self.metric]}, all settings are within chance of each other")
        if answer == "open":
            other = next(label for label in best if (label in self.cells) != (best[0] in self.cells))
            others = f"another setting is within chance of it, {named[other]}"
            if len(best) > 2:
                others = f"{len(best) - 1} others are within chance of it, among them {named[other]}"
            return Judgement(answer, f"by {METRICS[self.metric]}, the best is {named[best[0]]}, but {others}")
        tied = ", which are within chance of each other" if len(best) > 1 else ""
        reason = f"by {METRICS[self.metric]}, the best is {', '.join(named.values())}{tied}"
        if missing := [label for label in self.every if label not in accuracies and (label in self.cells) == (answer == "fails")]:
            return Judgement("open", f"{reason}, but there are no results of {FEWEST_SEEDS} seeds for {', '.join(missing)}")
        return Judgement(answer, reason)


def judge_finding(claims: Sequence[Claim], cells: Numbers, counts: TestCounts) -> Judgement:
    """Whether a finding holds: it does if all of its claims do, and does not if one of them fails.

    Args:
        claims: What the finding says.
        cells: The numbers of each cell.
        counts: Numbers of independent images of the evaluations. Where one is missing, the error from the choice of these images is
            left out.

    Returns:
        The answer, and a whole sentence.
    """
    seeds = max((len(values) for numbers in cells.values() for values in numbers.values()), default=0)
    return judge_all([claim.judged(cells, counts) for claim in claims], seeds)


def judge_all(judged: Sequence[Judgement], seeds: int) -> Judgement:
    """Whether a finding holds whose claims have been judged, each with the cells and images that it is about.

    Args:
        judged: The judgement of each claim.
        seeds: The number of seeds of the cells that have the most.

    Returns:
        The answer, and a whole sentence.
    """
    answers = {each.answer for each in judged}
    answer: Answer = "fails" if "fails" in answers else "open" if "open" in answers or not judged else "holds"
    reasons = "; ".join(dict.fromkeys(each.reason for each in judged if each.answer == answer))
    if answer == "holds":
        return Judgement(answer, f"The finding holds here: {reasons}.")
    held = "; ".join(each.reason for each in judged if each.answer == "holds")
    part = f" A part of it does: {held}." if held else ""
    if answer == "fails":
        return Judgement(answer, f"The finding does not hold here: {reasons}.{part}")
    told = f"Whether the finding holds cannot be told from {seeds} seed{'s' * (seeds != 1)}: {reasons}."
    return Judgement(answer, told + part)
