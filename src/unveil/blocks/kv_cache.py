"""Decoding one token at a time with cached keys and values.

Letters: B contexts, R rows (several of them, such as beams, share a context), S tokens of a context, t tokens so far, h heads,
d width of a head, D = h x d.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.attention import Attention, attend
from unveil.blocks.transformer import Block


class KVCache(NamedTuple):
    """Keys and values of a decoder block. R / B neighbouring rows share a context."""

    key: Float[Tensor, "R h t d"]
    value: Float[Tensor, "R h t d"]
    context_key: Float[Tensor, "B h S d"]
    context_value: Float[Tensor, "B h S d"]

    def select(self, rows: Int[Tensor, " R"]) -> "KVCache":
        """Selects rows of the cache, for example when beams are reordered. The contexts do not change."""
        return self._replace(key=self.key[rows], value=self.value[rows])


def empty_cache(block: Block, context: Float[Tensor, "B S D"], rows: int) -> KVCache:
    """The cache of a block before the first token of each row."""
    key, value = block.cross.key_value(context)
    empty = key.new_empty(rows, key.shape[1], 0, key.shape[3])
    return KVCache(empty, empty, key, value)


def decode_step(
    block: Block, x: Float[Tensor, "R 1 D"], cache: KVCache, context_allowed: Bool[Tensor, "..."]
) -> tuple[Float[Tensor, "R 1 D"], KVCache]:
    """The result of `Block.forward` for the last token of each row, and the cache extended by that token. Only for eval mode."""
    contexts, width = len(cache.context_key), x.shape[-1]

    def self_attention(x: Tensor) -> Tensor:
        nonlocal cache
        query, key, value = block.attention.project(x)
        cache = cache._replace(key=torch.cat([cache.key, key], dim=2), value=torch.cat([cache.value, value], dim=2))
        out: Tensor = block.branch1(merge_heads(block.attention, attend(query, cache.key, cache.value)))
        return out

    def cross_attention(x: Tensor) -> Tensor:
        query = block.cross.query(x.view(contexts, -1, width))  # the rows of a context are its queries
        mixed = attend(query, cache.context_key, cache.context_value, allowed=context_allowed)
        out: Tensor = block.branch_cross(merge_heads(block.cross, mixed).view(x.shape))
        return out

    x = residual(block, block.norm1, x, self_attention)
    x = residual(block, block.norm_cross, x, cross_attention)
    return residual(block, block.norm2, x, lambda x: block.branch2(block.mlp(x))), cache


def residual(block: Block, norm: nn.Module, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Pre-norm: x + branch(norm(x)). Post-norm: norm(x + branch(x))."""
    out: Tensor = x + branch(norm(x)) if block.pre else norm(x + branch(x))
    return out


def merge_heads(attention: Attention, mixed: Float[Tensor, "B h T d"]) -> Float[Tensor, "B T D"]:
    """Concatenates the heads and projects them."""
    out: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
    return out
