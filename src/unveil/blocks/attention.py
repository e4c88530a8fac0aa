"""Scaled dot-product attention with many heads (Transformer, section 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unveil.blocks.dropout import drop
from unveil.blocks.fast.recompute import Linear, linear
from unveil.errors import UnveilError


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
        query: One row a token that looks.
        key: One row a token that is looked at.
        value: What is brought home from it.
        allowed: True where a token may look; broadcasts to (B, h, T, S). A padding mask is (B, 1, 1, S).
        bias: Added to the scores before the softmax; broadcasts to (B, h, T, S).
        causal: Token t sees tokens up to t only.
        dropout: Share of attention weights dropped.
    """
    if query.device.type == "cpu" and query.dtype != torch.float32:
        # In half precision the fused CPU kernel's backward pass is five times slower than two products and a softmax.
        return attend_plainly(query, key, value, allowed=allowed, bias=bias, causal=causal, dropout=dropout)
    if allowed is None and bias is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    if causal:
        past = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        allowed = past if allowed is None else allowed & past
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = bias.to(query.dtype)
    if allowed is not None:
        scores = torch.where(allowed, scores, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=scores, dropout_p=dropout)


def attend_plainly(
    query: Float[Tensor, "B h T d"],
    key: Float[Tensor, "B h S d"],
    value: Float[Tensor, "B h S d"],
    *,
    allowed: Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B h T d"]:
    """The formula as it stands: what `attend` is tested against, and the faster way in half precision on a CPU."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT  # (B, h, T, S)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        allowed = past if allowed is None else allowed & past
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return drop(scores.softmax(dim=-1), dropout) @ value


class Attention(nn.Module):
    """Multi-head attention: project, attend in each head, concatenate, project.

    `query_key_value` holds the three input projections one under the other, so that self-attention is one product.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise UnveilError(f"width {width} does not divide into {heads} heads: use a number of heads that divides it")
        self.heads, self.dropout = heads, dropout
        self.query_key_value = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def project(
        self,
        x: Tensor,
        context: Tensor | None = None,
        norm: nn.Module | None = None,
        projected: Tensor | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (B, heads, tokens, width / heads); arguments as in `forward`."""
        weight, bias, d = self.query_key_value.weight, self.query_key_value.bias, x.shape[-1]
        if context is not None or (last is not None and projected is None):
            x = x if norm is None else norm(x)
            asking = linear(x if last is None else x[:, -last:], weight[:d], bias[:d])
            parts = (asking, *linear(x if context is None else context, weight[d:], bias[d:]).chunk(2, dim=-1))
        else:
            query, key, value = (self.query_key_value(x, norm) if projected is None else projected).chunk(3, dim=-1)
            parts = (query if last is None else query[:, -last:], key, value)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return query, key, value

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S D"] | None = None,
        *,
        norm: nn.Module | None = None,
        allowed: Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
        causal: bool = False,
        projected: Float[Tensor, "B T D3"] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B _ D"]:
        """Self-attention, or cross-attention to `context`; masks as in `attend`.

        Args:
            x: Tokens that look.
            context: Tokens that are looked at; `x` by default.
            norm: What `x` goes through first.
            allowed: As in `attend`.
            bias: As in `attend`.
            causal: As in `attend`.
            projected: `query_key_value(norm(x))`, where it is known already.
            last: Only the last so many tokens of `x` look, and only they come back; all are looked at.
        """
        query, key, value = self.project(x, context, norm, projected, last)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, allowed=allowed, bias=bias, causal=causal, dropout=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return out

    @torch.no_grad()
    def weights(
        self, x: Float[Tensor, "B T D"], bias: Tensor | None = None, context: Float[Tensor, "B S D"] | None = None
    ) -> Float[Tensor, "B h T S"]:
        """The attention weights of self-attention, or of that to `context`, for looking at them."""
        query, key, _ = self.project(x, context)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights: Tensor = (scores if bias is None else scores + bias).softmax(dim=-1)
        return weights
