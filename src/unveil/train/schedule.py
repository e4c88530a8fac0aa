"""Learning rates as a function of the step."""

import math


def half_cosine(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """A factor on the peak: rises in a line over `warmup` steps, then falls along half a cosine to `floor` at `total`.

    The first step already moves (factor 1 / warmup), and the last is not wasted (its factor is above `floor`).
    """
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
