"""Exponential moving averages of weights: momentum encoders (He et al., 2019) and teachers (Tarvainen and Valpola, 2017)."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def ema_copy(module: M) -> M:
    """A copy that gets no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Sets every parameter of `average` to momentum x average + (1 - momentum) x module; sharded parameters stay sharded."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - momentum)


def cosine_to_one(first: float, progress: float) -> float:
    """A momentum that rises from `first` to 1 along half a cosine, as progress goes from 0 to 1 (Grill et al., 2020)."""
    return 1 - (1 - first) * 0.5 * (1 + math.cos(math.pi * progress))
