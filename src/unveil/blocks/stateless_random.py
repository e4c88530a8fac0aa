"""Stateless random numbers: pure functions of (key, stream, index).

Every sample of a run has a key. Its crop, its mask and so on are hashes of that key. So they are the same for any number of
processes, after a resume, and on CPU and GPU, and no generator state needs to be saved or replayed.
"""

from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LOW32 = 0xFFFFFFFF


class Stream(IntEnum):
    """The purpose of a random number. Different streams of a sample are independent; the same stream gives the same numbers.

    The random numbers depend on these integers, so the integers must never change: a resumed run must draw the same numbers. An
    alias is safe if no sample needs both meanings. For example, a dVAE masks nothing.
    """

    MASK = 1
    """Which patches or word pieces are masked."""
    REPLACEMENT = 2
    """What replaces a masked word piece (BERT)."""
    GUMBEL_SHIFT = 1
    """By how much the Gumbel noise of each patch is rotated (dVAE)."""
    GUMBEL = 2
    """Gumbel noise of each visual token (dVAE)."""
    CROP = 11
    FLIP = 12
    JITTER = 13
    SPAN = 16
    """The start of a sequence in a corpus of text, and the source of its second segment."""
    VIEW_EVENTS = 21
    """Which changes are applied to a view: flip, jitter, grey, blur, solarise."""
    VIEW_AMOUNTS = 22
    """How strong the changes of a view are."""
    SUBSTITUTE = 31
    """Which image replaces one that cannot be read."""
    VIEW = 1000
    """The first of many views of an image. The next view has stream 1001, and so on."""


MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of `mix`."""
INCREMENT = 0x9E3779B9
"""What `combine` adds to a key."""


def mix(x: Tensor) -> Tensor:
    """Scrambles int64 values in [0, 2**32), one to one (a 32-bit multiply-xorshift finaliser)."""
    x = ((x ^ (x >> 16)) * MULTIPLIERS[0]) & _LOW32
    x = ((x ^ (x >> 15)) * MULTIPLIERS[1]) & _LOW32
    return x ^ (x >> 16)


def combine(key: Tensor, value: Tensor | int) -> Tensor:
    """A new 32-bit key from a key and a value; the order of values matters."""
    return mix((mix(key & _LOW32) + INCREMENT + (value & _LOW32)) & _LOW32)


def sample_keys(seed: int, first: int, count: int) -> Int[Tensor, " B"]:
    """The keys of samples `first` to `first + count - 1` of a run; samples are counted over all epochs."""
    number = torch.arange(first, first + count)
    low = combine(torch.full_like(number, seed), number)
    return low | (combine(combine(low, seed >> 32), number >> 32) << 31)  # 63 bits: a collision of two samples is very unlikely


def uniform(keys: Int[Tensor, " B"], count: int, stream: int) -> Float[Tensor, "B {count}"]:
    """Numbers in [0, 1), `count` for each key; each `Stream` gives independent ones."""
    base = combine(combine(keys, keys >> 31), int(stream))
    index = torch.arange(count, device=keys.device)
    return (combine(base[:, None], index) >> 8).float() * 2.0**-24  # (B, count)
