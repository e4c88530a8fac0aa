"""Multi-head scaled dot-product attention (Transformer, section 3.2).

Letters: B samples, T tokens that attend (queries), S tokens that are attended to (keys), h heads, d width of a head, D = h x d.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.fast.half_attention import attention_by_products
from unveil.blocks.fast.learned_bias import attention_with_learned_bias
from unveil.blocks.patches import Size
from unveil.errors import UnveilError

HEADS = {96: 3, 192: 3, 384: 6, 512: 16, 768: 12, 1024: 16, 1280: 16}
"""Heads of the published ViT encoders and of MAE's decoder (512), by width; 96 is vit-nano's."""


def heads_of(width: int) -> int:
    """The number of heads of the published model of this width. Raises `UnveilError` if there is none."""
    if width not in HEADS:
        raise UnveilError(
            f"no published model has width {width}, so the number of heads is unknown: give it (heads=, decoder_heads=)"
        )
    return HEADS[width]


def default_heads(width: int) -> int:
    """The number of heads of a new model: as published, or else heads of width 64, 32, 16 or 8, the first that fits."""
    head_width = next((size for size in (64, 32, 16, 8) if width % size == 0), None)
    if width not in HEADS and head_width is None:
        raise UnveilError(
            f"width {width} does not divide into heads of width 8 or more: use a multiple of 8, or give the number of heads"
        )
    return HEADS.get(width) or width // (head_width or width)


def decoder_heads(width: int) -> int:
    """The number of heads of a new decoder of MAE: 16 as in the public code, whatever the width.

    Decoders as narrow as vit-nano, vit-tiny and vit-small have the heads of those encoders. Other widths below 128, and those that
    16 does not divide, have `default_heads`.
    """
    narrow = width < 128 or width in (192, 384)
    return default_heads(width) if narrow or width % 16 else 16


def attend(
    query: Float[Tensor, "B h T d"],
    key: Float[Tensor, "B h S d"],
    value: Float[Tensor, "B h S d"],
    *,
    allowed: Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B h T d"]:
    """softmax(Q K^T / sqrt(d) + bias) V.

    Args:
        query: Queries of the tokens that attend.
        key: Keys of the tokens that are attended to.
        value: Values of the tokens that are attended to.
        allowed: True where a token may attend; broadcasts to (B, h, T, S). A padding mask is (B, 1, 1, S).
        bias: Added to the scores before the softmax; broadcasts to (B, h, T, S).
        causal: Token t attends to tokens 0 to t only.
        dropout: Share of attention weights to drop.
    """
    if choose.half_attention(query):
        return attention_by_products(query, key, value, allowed=allowed, bias=bias, causal=causal, dropout=dropout)
    if allowed is None and bias is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    if causal:
        past = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        allowed = past if allowed is None else allowed & past
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = bias.to(query.dtype)
    if allowed is None and not dropout and choose.learned_bias(scores):
        return attention_with_learned_bias(query, key, value, scores)
    if allowed is not None:
        scores = torch.where(allowed, scores, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=scores, dropout_p=dropout)


class OnGrid(NamedTuple):
    """What attention on a grid of patches is given in place of a bias: see `unveil.blocks.windows`."""

    grid: Size
    """Rows and columns of the patches that attend."""
    bias: Float[Tensor, "..."] | None = None
    """Added to the scores of each pair of patches, of a window or of the whole grid."""


class Attention(nn.Module):
    """Multi-head attention: project, attend in each head, concatenate, project.

    `query_key_value` stacks the three input projections, so that self-attention needs one matrix product for them.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise UnveilError(f"width {width} does not divide into {heads} heads: use a number of heads that divides it")
        self.width, self.heads, self.dropout = width, heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S D"] | None = None,
        *,
        allowed: Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | OnGrid | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Self-attention of `x`, or cross-attention from `x` to `context`; the other arguments are those of `attend`."""
        query, key, value = self.project(x, context)
        return self.mix(query, key, value, allowed=allowed, bias=bias, causal=causal)

    def project(self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B S D"] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (B, h, tokens, d), for self-attention or for cross-attention to `context`."""
        return self.split(self.query_key_value(x)) if context is None else (self.query(x), *self.key_value(context))

    def split(self, projected: Float[Tensor, "B T D3"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value from the result of `query_key_value`."""
        query, key, value = (self.split_heads(part) for part in projected.chunk(3, dim=-1))
        return query, key, value

    def query(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B h T d"]:
        """Only the query."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        return self.split_heads(F.linear(x, weight[: self.width], bias[: self.width]))

    def key_value(self, context: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B h S d"], Float[Tensor, "B h S d"]]:
        """Only key and value."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        key, value = F.linear(context, weight[self.width :], bias[self.width :]).chunk(2, dim=-1)
        return self.split_heads(key), self.split_heads(value)

    def split_heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B h T d"]:
        """(B, T, D) to (B, h, T, d)."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads

    def mix(
        self,
        query: Float[Tensor, "B h T d"],
        key: Float[Tensor, "B h S d"],
        value: Float[Tensor, "B h S d"],
        *,
        allowed: Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | OnGrid | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Attends in each head, concatenates the heads, and projects the result."""
        assert not isinstance(bias, OnGrid)  # that is for a `GridAttention`
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, allowed=allowed, bias=bias, causal=causal, dropout=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return out

    @torch.no_grad()
    def weights(
        self, x: Float[Tensor, "B T D"], bias: Tensor | None = None, context: Float[Tensor, "B S D"] | None = None
    ) -> Float[Tensor, "B h T S"]:
        """The attention weights of self-attention, or of cross-attention to `context`, for figures."""
        query, key, _ = self.project(x, context)
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        weights: Tensor = (scores if bias is None else scores + bias).softmax(dim=-1)
        return weights
