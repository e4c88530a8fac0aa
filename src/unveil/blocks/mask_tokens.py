"""Mask tokens, which take the place of masked patches or words (MAE, section 3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class MaskTokens(NamedTuple):
    """The mask tokens to add to each sample of a batch. They differ only in their positions, so a batch shares one table."""

    table: Float[Tensor, "N D"]
    """The mask token with each of the N positions added."""
    hide: Int[Tensor, "B M"]
    """Indices of the masked positions of each sample."""


def append(x: Float[Tensor, "B T D"], mask_tokens: MaskTokens) -> Float[Tensor, "B _ D"]:
    """Appends mask tokens to the tokens x.

    The order of tokens does not matter to a Transformer, since each token contains its position. So tokens need not be moved back
    to their places. The lookup is at least in float32, because the gradient of a position is a sum over the batch, which is too
    inaccurate in half precision.
    """
    table, hide = mask_tokens
    exact = table.to(torch.promote_types(table.dtype, torch.float32))
    return torch.cat([x, F.embedding(hide, exact).to(x.dtype)], dim=1)
