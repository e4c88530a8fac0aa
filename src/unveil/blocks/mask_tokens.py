"""Mask tokens in the gaps that hidden patches left (MAE, section 3), at the cost of one image instead of a batch.

Mask tokens differ by their position alone. So in the first block their norm and their projections are the same in every image:
they are computed once, (N, ...), and looked up (B, M, ...). A Transformer does not care about the order of its tokens, since each
carries its position: the hidden ones stand behind the visible ones, and nothing has to be put back into place.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.fast.recompute import Linear

Gaps = tuple[Float[Tensor, "N D"], Int[Tensor, "B M"]]  # mask tokens by position; what is hidden


def append(seen: Float[Tensor, "B T D"], gaps: Gaps) -> Float[Tensor, "B _ D"]:
    """The tokens of visible patches, and behind them those of the hidden ones.

    They are looked up in float32 at least: a position's gradient is a sum over the batch, which half precision would get wrong.
    """
    tokens, hide = gaps
    exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return torch.cat([seen, F.embedding(hide, exact).to(seen.dtype)], dim=1)


def append_projected(
    seen: Float[Tensor, "B T D"], gaps: Gaps, norm: nn.Module, project: Linear
) -> tuple[Float[Tensor, "B _ D"], Float[Tensor, "B _ D3"]]:
    """The same, with `project(norm(tokens))` of all."""
    tokens, hide = gaps
    return append(seen, gaps), append(project(seen, norm), (project(tokens, norm), hide))
