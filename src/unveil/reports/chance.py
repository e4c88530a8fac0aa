"""Which differences between accuracies can be due to chance: to the choice of the test images, and to the random seeds.

All results of a page are for the same test images, so their errors are correlated, and a difference is a little more certain than
the formulas for independent samples say.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, variance

TestCounts = Mapping[str, float]
"""The numbers of independent test images, by the kind of accuracy; one is missing where nothing is recorded."""
NORMAL = 1.959964
"""Quantile of the normal distribution for an interval of 95 %."""


def accuracy_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy on `count` independent samples (Wilson, 1927)."""
    square = NORMAL**2 / count
    centre = (share + square / 2) / (1 + square)
    half = NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def sampling_variance(share: float, count: float) -> float:
    """The variance of an accuracy on `count` samples, after one correct and one wrong sample were added (Agresti and Caffo, 2000).

    So it does not vanish if all of a few samples are correct.
    """
    adjusted = (share * count + 1) / (count + 2)
    return adjusted * (1 - adjusted) / (count + 2)


def chance_margin(first: Sequence[float], second: Sequence[float], count: float | None) -> float:
    """The difference of two mean accuracies that equally good models exceed once in 20 times.

    Args:
        first: Accuracies of a model between 0 and 1, one for each seed.
        second: Those of another model.
        count: Number of independent test samples; None leaves out the error that comes from the choice of the test samples.

    Returns:
        The margin of an interval of 95 %: of Agresti and Caffo for the choice of the test samples, and of the two-sample t-test
        for the seeds, if there are at least 3 in all. Both errors are independent, so their squares are added.
    """
    square, shrink = 0.0, 1.0
    if count:
        shrink = count / (count + 2)  # the samples that are added bring both accuracies closer to one half
        square += NORMAL**2 * sum(sampling_variance(mean(values), count) for values in (first, second))
    freedom = len(first) + len(second) - 2
    if freedom > 0:
        pooled = sum((len(values) - 1) * variance(values) for values in (first, second) if len(values) > 1) / freedom
        from scipy.special import stdtrit  # a tenth of a second, which a single run need not wait for

        square += float(stdtrit(freedom, 0.975)) ** 2 * pooled * (1 / len(first) + 1 / len(second))
    return min(1.0, math.sqrt(square) / shrink)


def within_chance(first: Sequence[float], second: Sequence[float], count: float | None) -> bool:
    """Whether the difference of two mean accuracies can be due to chance. See `chance_margin` for the arguments."""
    return abs(mean(first) - mean(second)) <= chance_margin(first, second, count)


def contenders(accuracies: Mapping[str, Sequence[float]], count: float | None) -> list[str]:
    """The names of the models that can be the best one: the best by its mean, and all within chance of it, in order."""
    order = sorted((name for name in accuracies if accuracies[name]), key=lambda name: -mean(accuracies[name]))
    return [name for name in order if name == order[0] or within_chance(accuracies[order[0]], accuracies[name], count)]
