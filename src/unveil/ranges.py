"""The range of a number, declared in the type of an option. Needs no torch.

A range stands beside the default and the help of its option. The command line, Python and the tests read it from there:

    epochs: Positive = 100.0
    quality: Annotated[int, Range(1, 100)] = 90
"""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`. `above` and `below` exclude the ends."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.high == math.inf:
            return f"above {low}" if self.above else f"of {low} or more"
        if not self.above and not self.below:
            return f"from {low} to {high}"
        return f"{'above' if self.above else 'of at least'} {low} and {'below' if self.below else 'at most'} {high}"


Count = Annotated[int, Range(1, 10**12)]
CountOrZero = Annotated[int, Range(0, 10**12)]
"""A number of things, of which 0 has a meaning of its own: all, none, or automatic."""
Side = Annotated[int, Range(1, 16_384)]
"""A side of an image or of a patch, in pixels."""
Width = Annotated[int, Range(1, 65_536)]
"""Values of a token."""
Depth = Annotated[int, Range(0, 1_000)]
"""Blocks of a network."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Share = Annotated[float, Range(0, 1)]
ShareAboveZero = Annotated[float, Range(0, 1, above=True)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
"""A rate of dropout or of decay: at 1, nothing would be left."""
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
