"""Dropout on a CPU with one random byte for each value instead of eight."""

import torch
from jaxtyping import Float
from torch import Tensor


def byte_dropout(x: Float[Tensor, "*B"], p: float) -> Float[Tensor, "*B"]:
    """Dropout with a probability that is rounded to a multiple of 1/256, but never to 0 or 1."""
    threshold = min(max(round(256 * p), 1), 255)
    # One int64 from the generator gives eight bytes.
    noise = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
    kept = (noise[: x.numel()].view(x.shape) >= threshold).to(x.dtype)
    return x * kept.mul_(256 / (256 - threshold))
