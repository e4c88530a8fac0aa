"""Which image comes when: a pure function of (seed, place), in time and memory that do not grow with the data."""

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.stateless_random import combine


def shuffled(seed: int, places: Int[Tensor, " B"], count: int) -> Int[Tensor, " B"]:
    """The images, numbers below `count`, at these places of an endless row of shuffled epochs.

    Each epoch is a permutation of its own: a Feistel network of four rounds over the next power of four, walked until it lands
    below `count` (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").
    """
    half = (max(count - 1, 1).bit_length() + 1) // 2  # bits of each half
    low = (1 << half) - 1
    key = combine(torch.full_like(places, seed), places // count)

    def permute(x: Tensor, key: Tensor) -> Tensor:
        left, right = x >> half, x & low
        for turn in range(4):
            left, right = right, left ^ (combine(combine(key, turn), right) & low)
        return (left << half) | right

    x = permute(places % count, key)
    while bool((outside := x >= count).any()):
        x[outside] = permute(x[outside], key[outside])
    return x
