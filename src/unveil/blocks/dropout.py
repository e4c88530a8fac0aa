"""Dropout (Srivastava et al., 2014) whose random numbers cost a CPU an eighth: a byte for each value instead of eight."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`drop` while training."""

    def forward(self, x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return drop(x, self.p) if self.training else x


def drop(x: Float[Tensor, "*B"], share: float) -> Float[Tensor, "*B"]:
    """Sets that share of all values to 0, and scales the others up; on a CPU the share is rounded to 256ths, but not to 0."""
    if share == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, share, share > 0)
    cut = min(max(round(256 * share), 1), 255)
    chance = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
    kept = (chance[: x.numel()].view(x.shape) >= cut).to(x.dtype)
    return x * kept.mul_(256 / (256 - cut))
