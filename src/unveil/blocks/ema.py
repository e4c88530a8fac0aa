"""A slow copy of a module follows the fast one: momentum encoders (He et al., 2019), teachers (Tarvainen and Valpola, 2017)."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def ema_copy(fast: M) -> M:
    """A copy that no gradient reaches."""
    return copy.deepcopy(fast).requires_grad_(False)


@torch.no_grad()
def ema_update(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Moves every parameter of `slow` to momentum x slow + (1 - momentum) x fast, in one call; sharded ones where they are."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def cosine_to_one(first: float, progress: float) -> float:
    """A momentum that goes from `first` to 1 along half a cosine, while progress goes from 0 to 1 (Grill et al., 2020)."""
    return 1 - (1 - first) * 0.5 * (1 + math.cos(math.pi * progress))
