"""`Block.forward` with less work: see `mask_tokens_once`, `last_tokens_only` and `recompute` in `unveil.blocks.fast.choose`."""

from typing import TYPE_CHECKING

from jaxtyping import Bool, Float
from torch import Tensor, nn

from unveil.blocks.attention import OnGrid
from unveil.blocks.fast import choose
from unveil.blocks.fast.recompute import linear_after
from unveil.blocks.fast.shared_tokens import append_projected
from unveil.blocks.mask_tokens import MaskTokens, append

if TYPE_CHECKING:
    from unveil.blocks.transformer import Block


def block_forward(
    block: "Block",
    x: Float[Tensor, "B T D"],
    context: Float[Tensor, "B S D"] | None,
    allowed: Bool[Tensor, "..."] | None,
    context_allowed: Bool[Tensor, "..."] | None,
    bias: Float[Tensor, "..."] | OnGrid | None,
    causal: bool,
    mask_tokens: MaskTokens | None,
    last: int | None,
) -> Float[Tensor, "B _ D"]:
    """The result of `Block.forward` for the same arguments."""
    attention, norm = block.attention, block.norm1 if block.pre else None
    few = last if choose.enabled("last_tokens_only") and bias is None and not causal and alike(allowed) else None
    if mask_tokens is not None and norm is not None and choose.enabled("mask_tokens_once"):
        x, projected = append_projected(x, mask_tokens, norm, attention.query_key_value)
        query, key, value = attention.split(projected)
        query = query if few is None else query[:, :, -few:]
    else:
        x = x if mask_tokens is None else append(x, mask_tokens)
        if few is None:
            query, key, value = attention.split(linear_after(norm, attention.query_key_value, x))
        else:
            normed = x if norm is None else norm(x)
            query, (key, value) = attention.query(normed[:, -few:]), attention.key_value(normed)
    mixed = attention.mix(query, key, value, allowed=allowed, bias=bias, causal=causal)
    x = (x if few is None else x[:, -few:]) + block.branch1(mixed)

    if block.pre:
        if context is not None:
            x = x + block.branch_cross(block.cross(block.norm_cross(x), context, allowed=context_allowed))
        x = x + block.branch2(mlp(block.mlp, block.norm2, x))
    else:
        x = block.norm1(x)
        if context is not None:
            x = block.norm_cross(x + block.branch_cross(block.cross(x, context, allowed=context_allowed)))
        x = block.norm2(x + block.branch2(mlp(block.mlp, None, x)))
    return x if last is None else x[:, -last:]


def alike(allowed: Bool[Tensor, "..."] | None) -> bool:
    """Whether all queries may attend to the same keys, so that the mask is valid for any subset of queries."""
    return allowed is None or allowed.ndim < 2 or allowed.shape[-2] == 1


def mlp(layers: nn.Sequential, norm: nn.Module | None, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """`layers(norm(x))`."""
    if not choose.may_recompute(x):
        out: Tensor = layers(x if norm is None else norm(x))
        return out
    widen, activation, narrow = layers
    assert isinstance(widen, nn.Linear)
    assert isinstance(narrow, nn.Linear)
    return linear_after(activation, narrow, linear_after(norm, widen, x))
