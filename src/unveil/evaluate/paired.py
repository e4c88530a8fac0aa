"""How much more accurate one classifier is than another, with an interval: paired over seeds and test images.

Both are trained once with each seed, on the same labels, and predict the same test images. For the seed s and the image i, d[s, i]
is 1 if only the first one is right, -1 if only the second one is, and else 0. With random effects of seeds, of images, and of both,

    d[s, i] = gain + a[s] + b[i] + e[s, i]
    the variance of the mean of d is  var(a) / S + var(b) / I + var(e) / (S I)

Letters: S seeds, I test images.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_SEEDS, MOST_IMAGES = 100, 1_000_000
"""The largest numbers of seeds and of test images that are worth naming."""


class Gain(NamedTuple):
    """A difference of two accuracies, between -1 and 1, with its interval of 95 %."""

    mean: float
    low: float
    high: float
    of_seeds: float
    """The variance of a seed's effect on the difference: var(a)."""
    of_images: float
    """That of an image, or of a group of images: var(b)."""
    of_both: float
    """What remains: var(e)."""
    seeds: int
    images: int
    """The number of test images or, with groups, of groups."""

    @property
    def sign(self) -> int:
        """1 if the whole interval is above zero, -1 if it is below, and 0 if it holds zero."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


class Needed(NamedTuple):
    """What would tell a gain of the same size from zero; None where no number up to a limit would."""

    seeds: int | None
    """The number of seeds, with the same test images."""
    images: int | None
    """The number of test images, with the same seeds."""


def paired_gain(first: NDArray[np.bool_], second: NDArray[np.bool_], groups: NDArray[np.int64] | None = None) -> Gain:
    """The difference of two accuracies, with an interval of 95 %.

    The interval is that of Satterthwaite (1946): the variance of the mean is a sum of mean squares, each with its degrees of
    freedom. It is computed twice: as it is, and with two images more in the variance over images, one on which only the first
    classifier is right and one on which only the second one is (Agresti and Min, 2005), since that would vanish if both were always
    right. The wider interval counts. With few seeds that differ much, it is that without the two images: they add to the part of
    the variance that has many degrees of freedom, and so to the degrees of freedom of the whole.

    Args:
        first: (S, I) whether the first classifier is right.
        second: (S, I) whether the second one is, for the same seeds and images.
        groups: (I,) the number of the original of each image, if several images are made from one. They count as one.

    Raises:
        ValueError: If the shapes differ, or there are fewer than 2 seeds or 2 images.
    """
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 2:
        raise ValueError(
            f"two arrays (S, I) of at least 2 seeds and 2 images are expected, but they are {first.shape}, {second.shape}"
        )
    difference = first.astype(np.float64) - second
    mean = float(difference.mean())
    if groups is not None:
        difference = by_group(difference, groups)
    seeds, images = difference.shape
    if images < 2:
        raise ValueError("all test images are made from one original: expected at least 2 originals")
    of_seed = difference.mean(axis=1)
    rest = difference - of_seed[:, None] - difference.mean(axis=0) + difference.mean()
    freedom = (seeds - 1) * (images - 1)
    square_seed = float(of_seed.var(ddof=1)) / seeds
    square_both = float((rest**2).sum()) / freedom / (seeds * images)
    of_image = difference.mean(axis=0)
    of_more = np.concatenate([of_image, [1.0, -1.0]])
    squares = [float(values.var(ddof=1)) / images for values in (of_image, of_more)]
    half, square_image = max((half_width(square_seed, each, square_both, seeds, images), each) for each in squares)
    return Gain(
        mean=mean,
        low=max(-1.0, mean - half),
        high=min(1.0, mean + half),
        of_seeds=max(0.0, square_seed - square_both) * seeds,
        of_images=max(0.0, square_image - square_both) * images,
        of_both=square_both * seeds * images,
        seeds=seeds,
        images=images,
    )


def half_width(square_seed: float, square_image: float, square_both: float, seeds: int, images: int) -> float:
    """Half of the interval, from the mean squares over seeds, over images, and of what remains, each divided by S I."""
    total = max(square_seed + square_image - square_both, square_image, square_seed)
    if total <= 0:
        return 0.0
    parts = ((square_seed, seeds - 1), (square_image, images - 1), (square_both, (seeds - 1) * (images - 1)))
    return quantile(total**2 / sum(square**2 / freedom for square, freedom in parts)) * math.sqrt(total)


def by_group(difference: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums over the images of a group, scaled so that their mean is the mean over images: (S, I) to (S, G)."""
    _, number = np.unique(groups, return_inverse=True)
    count = int(number.max()) + 1
    sums = np.stack([np.bincount(number, row, count) for row in difference])
    scaled: NDArray[np.float64] = sums * (count / difference.shape[1])
    return scaled


def quantile(freedom: float) -> float:
    """The quantile of Student's t distribution for an interval of 95 %."""
    from scipy.special import stdtrit  # a tenth of a second, which other commands need not wait for

    return float(stdtrit(max(1.0, freedom), 0.975))


def needed(gain: Gain) -> Needed:
    """How many seeds, or test images, would give an interval without zero, if the gain and the variances stayed the same."""

    def tells(seeds: int, images: int) -> bool:
        both = gain.of_both / (seeds * images)
        parts = ((gain.of_seeds / seeds + both, seeds - 1), (gain.of_images / images + both, images - 1))
        total = sum(square for square, _ in parts) - both
        if total <= 0:
            return gain.mean != 0
        effective = total**2 / sum(square**2 / freedom for square, freedom in parts)
        return quantile(effective) * math.sqrt(total) < abs(gain.mean)

    return Needed(
        seeds=first_where(lambda seeds: tells(seeds, gain.images), gain.seeds + 1, MOST_SEEDS),
        images=first_where(lambda images: tells(gain.seeds, images), gain.images + 1, MOST_IMAGES),
    )


def first_where(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from `low` to `high` for which a condition holds that stays true from there on; None if it never does."""
    if low > high or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
