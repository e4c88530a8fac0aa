"""The end of a residual branch: dropout, layer scale (Touvron et al., 2021) and drop path (Huang et al., 2016)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.dropout import Dropout
from unveil.blocks.microbatches import rand_rows


class ResidualBranch(nn.Module):
    """Applied to the result of attention or MLP before it is added to the input."""

    def __init__(self, width: int, dropout: float, drop_path: float, layer_scale: float | None) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.dropout = Dropout(dropout)
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = self.dropout(x)
        if self.scale is not None:
            x = x * self.scale.to(x.dtype)
        if self.training and self.drop_path:
            kept = (rand_rows(x.shape[0], x.device) >= self.drop_path)[:, None, None]
            x = x * kept.to(x.dtype) / (1 - self.drop_path)  # the expectation stays the same
        return x
