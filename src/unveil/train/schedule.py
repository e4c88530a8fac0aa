"""Learning-rate schedules: the factor on the peak learning rate as a function of the step."""

import math
from collections.abc import Callable


def half_cosine(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine from 1 to `floor` at `total`.

    No step has the factor 0: the first step has 1 / warmup, and the last one is still above `floor`.
    """
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def linear(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a linear decay to 0 at `total` (BERT, appendix A.2)."""
    if step < warmup:
        return (step + 1) / warmup
    return max(total - step, 0) / max(total - warmup, 1)


def inverse_sqrt(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a decay with 1 / sqrt(step) (Transformer, section 5.3)."""
    rise = (step + 1) / max(warmup, 1)
    return min(rise, math.sqrt(1 / rise))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"cosine": half_cosine, "linear": linear, "inverse_sqrt": inverse_sqrt}
