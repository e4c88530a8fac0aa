"""Dropout (Srivastava et al., 2014)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.fast.byte_dropout import byte_dropout


class Dropout(nn.Dropout):
    """Dropout in training mode; the identity in eval mode."""

    def forward(self, x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return drop(x, self.p) if self.training else x


def drop(x: Float[Tensor, "*B"], p: float) -> Float[Tensor, "*B"]:
    """Sets each value to 0 with probability p, and divides the others by 1 - p."""
    if p > 0 and choose.byte_dropout(x):
        return byte_dropout(x, p)
    return F.dropout(x, p, p > 0)
