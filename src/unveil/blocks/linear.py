"""A linear layer whose backward pass is written by hand for half precision on a CPU; elsewhere it is PyTorch's.

Autograd keeps what a norm or an activation puts out, though it is cheap to compute again, and multiplies the gradient of a weight
in a layout that processors are slow in. The first costs memory, the second time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """x W^T + b, or f(x) W^T + b for a cheap f (a norm, an activation) whose result is not worth keeping."""

    def forward(self, x: Float[Tensor, "*B I"], before: nn.Module | None = None) -> Float[Tensor, "*B O"]:
        """The product; `before` is f."""
        return linear(x, self.weight, self.bias, before)


def linear(x: Tensor, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"], before: nn.Module | None = None) -> Tensor:
    """The same with a weight and a bias, or some of their rows."""
    y = x if before is None else before(x)
    half = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if half and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        out: Tensor = Product.apply(y, weight, bias, before, x.detach())
        return out
    return F.linear(y, weight, bias)


class Product(torch.autograd.Function):
    """y W^T + b under autocast, where y = f(x): keeps x, and computes y again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, before: nn.Module | None, x: Tensor) -> Tensor:
        half = torch.get_autocast_dtype("cpu")
        ctx.before, ctx.dtype = before, y.dtype
        y, weight = y.to(half), weight.to(half)
        ctx.save_for_backward(y if before is None else x, weight)
        return F.linear(y, weight, bias.to(half))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, to_y, to_weight, to_bias = gradient.flatten(0, -2), None, None, None         # (N, O)
        if ctx.needs_input_grad[0]:
            to_y = (rows @ weight).view_as(x).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            y = x if ctx.before is None else ctx.before(x).to(rows.dtype)
            to_weight = gradient_of_weight(rows, y.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0).float()
        return to_y, to_weight, to_bias, None, None


def gradient_of_weight(gradient: Float[Tensor, "N O"], y: Float[Tensor, "N I"]) -> Float[Tensor, "O I"]:
    """gradient^T y in float32. A product with a transposed left side is slow: the narrower of the two is laid out anew for it."""
    if gradient.shape[1] <= y.shape[1]:
        return (gradient.t().contiguous() @ y).float()
    if len(y) >= 2 * y.shape[1]:
        return (y.t().contiguous() @ gradient).t().contiguous().float()
    return (gradient.t() @ y).float()
