"""One token at a time: a decoder's block that remembers the keys and values of what it saw before."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.attention import Attention, attend
from unveil.blocks.fast.recompute import linear
from unveil.blocks.transformer import Block


class KVCache(NamedTuple):
    """Keys and values of B contexts, and of the t tokens so far of R rows: R / B neighbours each have a context in common."""

    key: Float[Tensor, "R h t d"]
    value: Float[Tensor, "R h t d"]
    context_key: Float[Tensor, "B h S d"]
    context_value: Float[Tensor, "B h S d"]

    def of(self, rows: Int[Tensor, " R"]) -> "KVCache":
        """The tokens of other rows; contexts stay where they are."""
        return self._replace(key=self.key[rows], value=self.value[rows])


def begin(block: Block, context: Float[Tensor, "B S D"], rows: int) -> KVCache:
    """The memory of a block that has seen no token yet, for so many rows."""
    _, key, value = block.cross.project(context[:, :1], context)
    empty = key.new_empty(rows, key.shape[1], 0, key.shape[3])
    return KVCache(empty, empty, key, value)


def advance(
    block: Block, x: Float[Tensor, "R 1 D"], cache: KVCache, context_allowed: Bool[Tensor, "..."]
) -> tuple[Float[Tensor, "R 1 D"], KVCache]:
    """What `Block.forward` gives for the last token of a row, and the memory that has it too. For a block in eval mode."""
    contexts, width = len(cache.context_key), x.shape[-1]

    def look_back(x: Tensor) -> Tensor:
        nonlocal cache
        query, key, value = block.attention.project(x)
        cache = cache._replace(key=torch.cat([cache.key, key], dim=2), value=torch.cat([cache.value, value], dim=2))
        out: Tensor = block.branch1(merged(block.attention, attend(query, cache.key, cache.value)))
        return out

    def look_across(x: Tensor) -> Tensor:  # rows of a context ask together
        weight, bias = block.cross.query_key_value.weight[:width], block.cross.query_key_value.bias[:width]
        query = linear(x.view(contexts, -1, width), weight, bias).unflatten(-1, (block.cross.heads, -1)).transpose(1, 2)
        mixed = attend(query, cache.context_key, cache.context_value, allowed=context_allowed)
        out: Tensor = block.branch_cross(merged(block.cross, mixed).view(x.shape))
        return out

    x = residual(block, block.norm1, x, look_back)
    x = residual(block, block.norm_cross, x, look_across)
    return residual(block, block.norm2, x, lambda x: block.branch2(block.mlp(x))), cache


def residual(block: Block, norm: nn.Module, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """A branch around a residual sum, with the norm before it or after the sum."""
    out: Tensor = x + branch(norm(x)) if block.pre else norm(x + branch(x))
    return out


def merged(attention: Attention, mixed: Float[Tensor, "B h T d"]) -> Float[Tensor, "B T D"]:
    """The heads side by side, projected."""
    out: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
    return out
