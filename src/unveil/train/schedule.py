"""Learning-rate schedules: the factor on the peak learning rate as a function of the step.

In the warm-up, step i of w has the factor (i + 1) / w. The public code of MAE, DINO, MoCo v3 and SimMIM has i / w, whose first step
changes nothing. After the warm-up the factors are theirs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


def half_cosine(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine from 1 to 0 at `total`.

    No step has the factor 0: the first step has 1 / warmup, and the last one is still above 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def linear(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a linear decay to 0 at `total` (BERT, appendix A.2)."""
    if step < warmup:
        return (step + 1) / warmup
    return max(total - step, 0) / max(total - warmup, 1)


def inverse_sqrt(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a decay with 1 / sqrt(step) (Transformer, section 5.3)."""
    rise = (step + 1) / max(warmup, 1)
    return min(rise, math.sqrt(1 / rise))


def multistep(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then 1, and 0.1 in the last eighth of the run (SimMIM: from epoch 700 of 800)."""
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if 8 * step < 7 * total else 0.1


class Restart(NamedTuple):
    """A warm restart of the schedule, where a run was made longer: see `unveil.train.extend`."""

    step: int
    """The steps that were done then. This step is the first of the new schedule."""
    total: int
    """The steps that the run had before, for which the old schedule was."""
    epochs: float
    """The epochs that it had before."""


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": half_cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "multistep": multistep,
}
