"""A shuffled order of samples as a pure function of (seed, position). Its time and memory do not grow with the data."""

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.stateless_random import combine


def shuffled(seed: int, positions: Int[Tensor, " B"], count: int) -> Int[Tensor, " B"]:
    """The indices, below `count`, at these positions of an endless sequence of shuffled epochs.

    Each epoch has its own permutation: a Feistel network of four rounds over the next power of four. A result of at least `count`
    is permuted again until it is below `count` (cycle walking; Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").
    """
    half = (max(count - 1, 1).bit_length() + 1) // 2  # bits of each half
    low = (1 << half) - 1
    key = combine(torch.full_like(positions, seed), positions // count)

    def permute(x: Tensor, key: Tensor) -> Tensor:
        left, right = x >> half, x & low
        for number in range(4):
            left, right = right, left ^ (combine(combine(key, number), right) & low)
        return (left << half) | right

    x = permute(positions % count, key)
    while bool((outside := x >= count).any()):
        x[outside] = permute(x[outside], key[outside])
    return x
