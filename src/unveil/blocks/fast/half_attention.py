"""Attention as two matrix products and a softmax, for half precision on a CPU.

PyTorch's fused CPU kernel is fast forward, but in half precision its backward pass takes five times as long as this.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.dropout import drop


def attention_by_products(
    query: Float[Tensor, "B h T d"],
    key: Float[Tensor, "B h S d"],
    value: Float[Tensor, "B h S d"],
    *,
    allowed: Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B h T d"]:
    """softmax(Q K^T / sqrt(d) + bias) V; arguments as in `unveil.blocks.attention.attend`."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT  # (B, h, T, S)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        allowed = past if allowed is None else allowed & past
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return drop(scores.softmax(dim=-1), dropout) @ value
