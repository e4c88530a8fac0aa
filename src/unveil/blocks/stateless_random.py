"""Random numbers without state: a pure function of (key, stream, place).

Every sample of a run carries a key, and whatever is drawn for it (its crop, its mask) is a hash of that key. So the draw is the
same on one process or many, before or after a resume, on the CPU or the GPU, and nothing needs to be saved or replayed.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LOW32 = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """Scrambles int64 values in [0, 2**32) into others there, one to one (a 32-bit multiply-xorshift finaliser)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW32
    return x ^ (x >> 16)


def combine(key: Tensor, value: Tensor | int) -> Tensor:
    """A new 32-bit key from a key and a value; the order of values matters."""
    return mix((mix(key & _LOW32) + 0x9E3779B9 + (value & _LOW32)) & _LOW32)


def sample_keys(seed: int, first: int, count: int) -> Int[Tensor, " B"]:
    """The keys of the samples number `first`, `first + 1`, ... of a run: samples are counted over all epochs."""
    number = torch.arange(first, first + count)
    low = combine(torch.full_like(number, seed), number)
    return low | (combine(combine(low, seed >> 32), number >> 32) << 31)  # 63 bits: two samples hardly ever share a key


def uniform(keys: Int[Tensor, " B"], count: int, stream: int) -> Float[Tensor, "B {count}"]:
    """Numbers in [0, 1), `count` for each key; each `stream` gives independent ones."""
    base = combine(combine(keys, keys >> 31), stream)
    place = torch.arange(count, device=keys.device)
    return (combine(base[:, None], place) >> 8).float() * 2.0**-24  # (B, count)
