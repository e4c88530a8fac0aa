"""All weights, biases and gains of a block cast to half precision by one kernel, and their gradients to float32 by another.

Autocast and `half_layer_norm` cast them one by one: 12 kernels for a block, and 12 more in the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def call_in_half(block: nn.Module, *args: Any, **options: Any) -> Tensor:
    """`block(*args, **options)` under autocast. Gradients are rounded where autocast rounds them, so every bit is the same.

    The copies take the places of the weights for the length of the call. `torch.func.functional_call` does the same in a time
    that is longer than what the casts take.
    """
    places = [
        (module._parameters, name, weight)
        for module in block.modules()
        for name, weight in module._parameters.items()
        if weight is not None and weight.dtype == torch.float32
    ]
    halves = CastTogether.apply(*(weight for _, _, weight in places))
    try:
        for (parameters, name, _), half in zip(places, halves, strict=True):
            parameters[name] = half
        out: Tensor = block(*args, **options)
    finally:
        for parameters, name, weight in places:
            parameters[name] = weight
    return out


class CastTogether(torch.autograd.Function):
    """Half-precision copies of float32 tensors."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(cast_all(tensors, torch.get_autocast_dtype(tensors[0].device.type)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        known = [gradient for gradient in gradients if gradient is not None]  # None for what is frozen, or not used
        exact = iter(cast_all(known, torch.float32))
        return tuple(None if gradient is None else next(exact) for gradient in gradients)


def cast_all(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A copy of each tensor in another data type. On a GPU one kernel makes them all."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return copies
