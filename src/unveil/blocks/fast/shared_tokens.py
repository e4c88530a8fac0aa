"""Mask tokens that are normalised and projected once for a whole batch.

In the first block of a decoder, mask tokens differ only in their positions, so their queries, keys and values are the same in every
image. They are computed once for N positions, and then looked up for B x M masked patches.
"""

from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.fast.recompute import linear_after
from unveil.blocks.mask_tokens import MaskTokens, append


def append_projected(
    x: Float[Tensor, "B T D"], mask_tokens: MaskTokens, norm: nn.Module, project: nn.Linear
) -> tuple[Float[Tensor, "B _ D"], Float[Tensor, "B _ D3"]]:
    """Appends mask tokens to x. Returns all tokens, and `project(norm(tokens))`."""
    table, hide = mask_tokens
    tokens = append(x, mask_tokens)
    return tokens, append(linear_after(norm, project, x), MaskTokens(linear_after(norm, project, table), hide))
