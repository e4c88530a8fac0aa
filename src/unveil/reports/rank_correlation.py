"""The rank correlation between the results of a study and those of a paper (Spearman, 1904), with an interval over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FEWEST_CELLS = 3
"""Two cells have a rank correlation of 1 or -1, whatever they are."""
FEWEST_SEEDS = 3
"""Two seeds give three means of each cell, and so no interval."""
RESAMPLES = 2_000


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation, with the 95 % interval over seeds; `low` and `high` are None for fewer than three."""

    value: float
    low: float | None
    high: float | None
    cells: int

    def __str__(self) -> str:
        interval = f"an interval takes {FEWEST_SEEDS} seeds"
        if self.low is not None:
            interval = f"95 % interval over seeds: {self.low:.2f} to {self.high:.2f}"
        return f"{self.value:.2f} ({interval}), {self.cells} settings"


def ranks(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... n"]:
    """The rank of each value along the last axis, from 1; equal values share the mean of their ranks."""
    less = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(axis=-1)
    return np.asarray(less + (equal + 1) / 2, dtype=np.float64)


def spearman(first: Float[np.ndarray, "... n"], second: Float[np.ndarray, " n"]) -> Float[np.ndarray, "..."]:
    """The correlation of the ranks along the last axis; NaN where all values are equal."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1)))


def rank_correlation(ours: Sequence[Sequence[float]], paper: Sequence[float], seed: int = 0) -> RankCorrelation | None:
    """Spearman's correlation between our means and the numbers of the paper.

    The interval is that of a bootstrap over seeds: the seeds of each cell are drawn again with replacement, and the correlation is
    computed from their means. It says how much of the order of the cells the choice of the seeds decides, and nothing about other
    data.

    Args:
        ours: The numbers of each cell, one for each seed.
        paper: The number of the paper for each cell.
        seed: Random seed of the bootstrap.

    Returns:
        None with fewer than 3 cells, or if all means, or all numbers of the paper, are the same.
    """
    if len(ours) < FEWEST_CELLS:
        return None
    published = np.asarray(paper, dtype=np.float64)
    value = float(spearman(np.array([np.mean(cell) for cell in ours]), published))
    if np.isnan(value):
        return None
    if min(len(cell) for cell in ours) < FEWEST_SEEDS:
        return RankCorrelation(value, None, None, len(ours))
    generator = np.random.default_rng(seed)
    means = np.stack([generator.choice(np.asarray(cell), (RESAMPLES, len(cell))).mean(axis=1) for cell in ours], axis=1)
    found = spearman(means, published)
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return RankCorrelation(value, float(low), float(high), len(ours))
