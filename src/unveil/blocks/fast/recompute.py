"""A linear layer that computes a norm or an activation before it a second time, instead of keeping what came out of it.

In half precision on a CPU: a sixth to a quarter less memory for some percent more time (LAB.md). Elsewhere it is PyTorch's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WORTH = 2**19
"""Numbers in x from which on it is worth the trouble: a MiB."""


class Linear(nn.Linear):
    """x W^T + b, or f(x) W^T + b for a cheap f (a norm, an activation) whose result is not worth keeping."""

    def forward(self, x: Float[Tensor, "*B I"], before: nn.Module | None = None) -> Float[Tensor, "*B O"]:
        """The product; `before` is f."""
        return linear(x, self.weight, self.bias, before)


def linear(x: Tensor, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"], before: nn.Module | None = None) -> Tensor:
    """The same with a weight and a bias, or some of their rows."""
    if before is None:
        return F.linear(x, weight, bias)
    half = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if half and x.numel() >= WORTH and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        out: Tensor = Product.apply(before(x), weight, bias, before, x.detach())
        return out
    return F.linear(before(x), weight, bias)


class Product(torch.autograd.Function):
    """y W^T + b under autocast, where y = f(x): keeps x, and computes y again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, before: nn.Module, x: Tensor) -> Tensor:
        half = torch.get_autocast_dtype("cpu")
        ctx.before, ctx.dtype, weight = before, y.dtype, weight.to(half)
        ctx.save_for_backward(x, weight)
        return F.linear(y.to(half), weight, bias.to(half))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, to_y, to_weight, to_bias = gradient.flatten(0, -2), None, None, None  # (N, O)
        if ctx.needs_input_grad[0]:
            to_y = (rows @ weight).view_as(x).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = (rows.t() @ ctx.before(x).to(rows.dtype).flatten(0, -2)).float()
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0).float()
        return to_y, to_weight, to_bias, None, None
