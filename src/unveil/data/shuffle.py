"""A shuffled order of samples as a pure function of (seed, position). Its time and memory do not grow with the data."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unveil.blocks.stateless_random import INCREMENT, MULTIPLIERS, combine, mix

ROUNDS = 4
"""Rounds of the Feistel network."""
AT_ONCE = 2**14
"""Number of positions to compute at once. Fewer are little work for a call of NumPy, more do not fit into the cache."""


def shuffled(seed: int, positions: Int[Tensor, " B"], count: int) -> Int[Tensor, " B"]:
    """The indices, below `count`, at these positions of an endless sequence of shuffled epochs.

    Each epoch has its own permutation: a Feistel network of four rounds over the next power of four. A result of at least `count`
    is permuted again until it is below `count` (cycle walking; Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").
    """
    half = (max(count - 1, 1).bit_length() + 1) // 2  # bits of each half
    epoch, place = np.divmod(positions.numpy(), count)
    epochs, which = np.unique(epoch, return_inverse=True)
    keys = round_keys(seed, epochs)[:, which]
    found = permute(place, keys, half)
    outside = np.flatnonzero(found >= count)
    values, keys = found[outside], keys[:, outside]
    while len(outside):
        values = permute(values, keys, half)
        walks = values >= count
        found[outside[~walks]] = values[~walks]
        outside, values, keys = outside[walks], values[walks], keys[:, walks]
    return torch.from_numpy(found)


def round_keys(seed: int, epochs: NDArray[np.int64]) -> NDArray[np.uint32]:
    """What `combine` makes of the key of each round of each epoch before it takes a value (rounds, epochs)."""
    numbers = torch.from_numpy(epochs)
    key = combine(torch.full_like(numbers, seed), numbers)
    keys = torch.stack([mix(combine(key, number)) + INCREMENT for number in range(ROUNDS)])
    return (keys & 0xFFFFFFFF).numpy().astype(np.uint32)


def permute(values: NDArray[np.int64], keys: NDArray[np.uint32], half: int) -> NDArray[np.int64]:
    """A Feistel network over numbers of 2 * `half` bits. Its function is `combine`, written for unsigned integers of 32 bits."""
    low = np.uint32((1 << half) - 1)
    left, right = (values >> half).astype(np.uint32), values.astype(np.uint32) & low
    for key in keys:
        x = right + key
        x ^= x >> np.uint32(16)
        x *= np.uint32(MULTIPLIERS[0])
        x ^= x >> np.uint32(15)
        x *= np.uint32(MULTIPLIERS[1])
        x ^= x >> np.uint32(16)
        x &= low
        x ^= left
        left, right = right, x
    return (left.astype(np.int64) << half) | right


class Order:
    """The indices of each step of a run. Those of several steps are computed at once, since one step is too little work for NumPy.

    Args:
        seed: Seed of the order.
        count: The number of images.
        batch_size: Samples in a step, over all processes and microbatches.
        repeats: Number of consecutive samples from one image.
    """

    def __init__(self, seed: int, count: int, batch_size: int, repeats: int = 1) -> None:
        self.seed, self.count, self.batch_size, self.repeats = seed, count, batch_size, repeats
        self._steps = lru_cache(maxsize=32)(self._compute)

    def places(self, step: int, share: int, shares: int) -> Int[Tensor, " B"]:
        """The positions of one of `shares` equal shares of a step in the sequence of epochs."""
        size = self.batch_size // shares
        first = step * self.batch_size + share * size
        return torch.arange(first, first + size) // self.repeats

    def indices(self, step: int, share: int, shares: int) -> Int[Tensor, " B"]:
        """The indices at these positions."""
        together = max(1, AT_ONCE * shares // self.batch_size)
        return self._steps(step // together, together, share, shares)[step % together]

    def _compute(self, block: int, together: int, share: int, shares: int) -> Int[Tensor, "steps B"]:
        steps = range(block * together, (block + 1) * together)
        places = torch.stack([self.places(step, share, shares) for step in steps])
        return shuffled(self.seed, places.flatten(), self.count).view_as(places)
