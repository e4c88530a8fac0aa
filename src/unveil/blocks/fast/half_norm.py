"""Layer norm that reads and writes half precision. Its kernels compute in float32 internally."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from unveil.blocks.fast import choose


def half_layer_norm(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, " D"], bias: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*B D"]:
    """Layer norm of half-precision values with float32 weights; the result is in half precision."""
    if choose.by_hand(x):
        out: Tensor = HalfNorm.apply(x, weight, bias, eps)
        return out
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


class HalfNorm(torch.autograd.Function):
    """PyTorch's CPU kernels, but the gradients of the weights are summed in float32. In half precision, long sums stop growing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, deviation = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        needed, rows = [True, False, False], tuple(range(x.ndim - 1))
        of_x = torch.ops.aten.native_layer_norm_backward(gradient, x, weight.shape, mean, deviation, weight, bias, needed)[0]
        normalised = F.layer_norm(x, weight.shape, eps=ctx.eps)
        return of_x, (gradient * normalised).sum(rows).float(), gradient.sum(rows).float(), None
