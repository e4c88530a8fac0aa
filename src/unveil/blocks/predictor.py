"""Prediction of masked tokens from visible ones: the decoder of MAE and WordMAE, and the predictor of I-JEPA.

    encoded tokens -> decoder width -> + positions -> [append mask tokens] -> Transformer -> tokens of the masked positions

Letters: B samples, T encoded tokens, N positions, V visible, M masked, D width of the encoder, E width of the decoder, Q predicted.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.attention import default_heads
from unveil.blocks.init import xavier
from unveil.blocks.mask_tokens import MaskTokens
from unveil.blocks.patches import Size, gather
from unveil.blocks.positions import sincos_2d
from unveil.blocks.transformer import Transformer, TransformerConfig


class Predictor(nn.Module):
    """A narrow Transformer that predicts the masked patches of images, and a linear layer to the result.

    Args:
        grid: Rows and columns of patches.
        input_width: D.
        width: E, a multiple of 4.
        depth: Number of blocks.
        heads: Number of heads; `unveil.blocks.attention.default_heads` of the width by default.
        output_width: Q; D by default.
        eps: Epsilon of the norms.
    """

    positions: Tensor

    def __init__(
        self,
        grid: Size,
        input_width: int,
        *,
        width: int,
        depth: int,
        heads: int | None = None,
        output_width: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(input_width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        positions = torch.cat([torch.zeros(1, width), sincos_2d(grid, width)])
        self.register_buffer("positions", positions, persistent=False)  # (1 + N, E), the class token's first
        self.transformer = Transformer(TransformerConfig(width=width, depth=depth, heads=heads or default_heads(width), eps=eps))
        self.head = nn.Linear(width, output_width or input_width)
        xavier(self.embed)
        xavier(self.head)

    def forward(
        self, encoded: Float[Tensor, "B T D"], keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"], every: bool = False
    ) -> Float[Tensor, "B _ Q"]:
        """Predictions for the patches `hide`, given the class token and the patches `keep`; arguments as in `predict_tokens`."""
        x = predict_tokens(
            encoded,
            keep,
            hide,
            embed=self.embed,
            positions=self.positions,
            mask_token=self.mask_token,
            decoder=self.transformer,
            every=every,
        )
        out: Tensor = self.head(x)
        return out


def predict_tokens(
    encoded: Float[Tensor, "B T D"],
    keep: Int[Tensor, "B V"],
    hide: Int[Tensor, "B M"],
    *,
    embed: nn.Linear,
    positions: Float[Tensor, "P E"],
    mask_token: Float[Tensor, " E"] | None,
    decoder: Transformer,
    every: bool = False,
) -> Float[Tensor, "B _ E"]:
    """Predicts the tokens of masked positions. It is a function so that a method can keep its own names for the modules.

    Args:
        encoded: Tokens of the encoder. A class token, or other tokens that are not patches or words, come first.
        keep: Indices of the visible positions.
        hide: Indices of the masked positions.
        embed: Maps the width of the encoder to that of the decoder.
        positions: One row for each leading token, then one for each of the N positions.
        mask_token: The token for masked positions. None if `encoded` already has tokens for all positions, in their order, and
            `keep` and `hide` together are all positions.
        decoder: The blocks.
        every: Whether to return the visible positions too, before the masked ones.
    """
    leading = encoded.shape[1] - (keep.shape[1] if mask_token is not None else keep.shape[1] + hide.shape[1])
    first = torch.arange(leading, device=keep.device).expand(len(keep), -1)
    order = torch.cat([first, leading + keep], dim=1)  # (B, leading + V)
    count = hide.shape[1] + every * keep.shape[1]
    x = embed(encoded)
    if mask_token is None:
        x = gather(x + positions.to(x.dtype), torch.cat([order, leading + hide], dim=1))
        tokens: Tensor = decoder(x, last=count)
    else:
        x = x + F.embedding(order, positions).to(x.dtype)
        tokens = decoder(x, mask_tokens=MaskTokens(mask_token + positions[leading:], hide), last=count)
    return tokens
