"""A linear layer after a norm or an activation. The output of the latter is not stored, but recomputed in the backward pass.

In half precision on a CPU this saves a sixth to a quarter of the memory for a few percent more time.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unveil.blocks.fast import choose


def linear_after(before: Callable[[Tensor], Tensor] | None, layer: nn.Linear, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
    """`layer(before(x))` for a cheap function `before`, or `layer(x)` without one."""
    if before is not None and choose.recompute(x):
        out: Tensor = RecomputeLinear.apply(before(x), layer.weight, layer.bias, before, x.detach())
        return out
    out = layer(x if before is None else before(x))
    return out


class RecomputeLinear(torch.autograd.Function):
    """y W^T + b under autocast, with y = before(x). Stores x instead of y for the backward pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, before: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        half = torch.get_autocast_dtype("cpu")
        ctx.before, ctx.dtype, weight = before, y.dtype, weight.to(half)
        ctx.save_for_backward(x, weight)
        return F.linear(y.to(half), weight, bias.to(half))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, of_y, of_weight, of_bias = gradient.flatten(0, -2), None, None, None  # (N, O)
        if ctx.needs_input_grad[0]:
            of_y = (rows @ weight).unflatten(0, x.shape[:-1]).to(ctx.dtype)  # y may be narrower than x: see SwiGLU
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ ctx.before(x).to(rows.dtype).flatten(0, -2)).float()
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).float()
        return of_y, of_weight, of_bias, None, None
