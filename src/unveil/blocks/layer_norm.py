"""Layer norm that keeps the precision of its input."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.fast.half_norm import half_layer_norm


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al., 2016) that computes in float32, and returns the data type of its input.

    Under autocast, `nn.LayerNorm` returns float32 for half precision, and every residual sum would take twice the memory.
    """

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        with torch.autocast(x.device.type, enabled=False):
            if choose.half_norm(x, self.weight):
                return half_layer_norm(x, self.weight, self.bias, self.eps)
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)
