"""The activations of MLPs."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP (Hendrycks and Gimpel, 2016)."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return x * (1.702 * x).sigmoid()


class SwiGLU(nn.Module):
    """silu(gate) * values, for a gate and values side by side (Shazeer, 2020). The result is half as wide as the input."""

    def forward(self, x: Float[Tensor, "*B D2"]) -> Float[Tensor, "*B D"]:
        gate, values = x.chunk(2, dim=-1)
        return F.silu(gate) * values


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "quick_gelu": QuickGELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "swiglu": SwiGLU,
}
"""Each activation by its name in a config."""
