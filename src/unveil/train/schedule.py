"""Learning rates as a function of the step."""

import math
from collections.abc import Callable


def half_cosine(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """A factor on the peak: rises in a line over `warmup` steps, then falls along half a cosine to `floor` at `total`.

    The first step already moves (factor 1 / warmup), and the last is not wasted (its factor is above `floor`).
    """
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def line(step: int, total: int, warmup: int) -> float:
    """A factor on the peak: rises in a line over `warmup` steps, then falls in a line to 0 at `total` (BERT, appendix A.2)."""
    if step < warmup:
        return (step + 1) / warmup
    return max(total - step, 0) / max(total - warmup, 1)


def root(step: int, total: int, warmup: int) -> float:
    """A factor on the peak: rises in a line over `warmup` steps, then falls as 1 / sqrt(step) (Transformer, section 5.3)."""
    rise = (step + 1) / max(warmup, 1)
    return min(rise, math.sqrt(1 / rise))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"cosine": half_cosine, "line": line, "root": root}
