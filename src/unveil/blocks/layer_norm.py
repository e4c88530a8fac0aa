"""Layer norm in the precision of what comes in."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al., 2016) that gives back what it was given: half precision for half precision.

    The kernels compute in float32 inside. Autocast would have a GPU read and write float32 too, twice the bytes.
    """

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        with torch.autocast(x.device.type, enabled=False):
            if x.dtype == self.weight.dtype:
                return super().forward(x)
            if x.device.type == "cpu" and not torch.compiler.is_compiling():
                out: Tensor = HalfNorm.apply(x, self.weight, self.bias, self.eps)
                return out
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class HalfNorm(torch.autograd.Function):
    """The CPU's kernels, except that gradients of the weights are not summed up in half precision, where sums get stuck."""

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
        wanted, over = [True, False, False], tuple(range(x.ndim - 1))
        to_x = torch.ops.aten.native_layer_norm_backward(gradient, x, weight.shape, mean, deviation, weight, bias, wanted)[0]
        plain = F.layer_norm(x, weight.shape, eps=ctx.eps)
        return to_x, (gradient * plain).sum(over).float(), gradient.sum(over).float(), None
