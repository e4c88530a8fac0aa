"""Decoding one token at a time with cached keys and values.

Letters: L blocks, B contexts, R rows (several of them, such as beams, share a context), S tokens of a context, T tokens that the
cache has room for, t tokens so far, h heads, d width of a head, D = h x d.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.attention import attend
from unveil.blocks.fast import choose
from unveil.blocks.fast.half_attention import attention_by_products
from unveil.blocks.transformer import Block

ROOM = 16
"""Number of tokens by which a full cache grows.

It grows in small steps because a processor reads memory without gaps twice as fast as rows with unused room between them.
"""


class KVCache:
    """Keys and values of the tokens so far, in all blocks. New ones are written in place, and nothing is concatenated."""

    def __init__(self, blocks: int, rows: int, heads: int, like: Float[Tensor, "B h S d"]) -> None:
        self.tensor = like.new_zeros(blocks, 2, rows, heads, 0, like.shape[-1])  # (L, 2, R, h, T, d)
        self.spare = self.tensor
        self.hidden = like.new_empty(0)
        """Added to the scores of the T tokens: 0 for tokens so far, -inf for unused room."""
        self.length = 0

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Keeps these rows, in this order. Some may be left out, and some repeated, but there must not be more than before.

        They are copied into a second tensor, and the two change places, so that no memory is allocated.
        """
        if self.spare is self.tensor:
            self.spare = torch.empty_like(self.tensor)
        out = self.spare[:, :, : len(rows)]
        self.spare = self.tensor[:, :, : len(rows)]
        self.tensor = torch.index_select(self.tensor, 2, rows, out=out)

    def add_token(self) -> None:
        """Makes room for one more token, which each block has to write."""
        if self.length == len(self.hidden):
            self.tensor = self.spare = F.pad(self.tensor, (0, 0, 0, ROOM))  # by zeros: unused room must not hold infinities
            self.hidden = F.pad(self.hidden, (0, ROOM), value=float("-inf"))
        self.hidden[self.length] = 0.0
        self.length += 1

    def write(self, block: int, key_value: Float[Tensor, "R 2 h d"]) -> tuple[Float[Tensor, "R h T d"], Float[Tensor, "R h T d"]]:
        """Writes the key and value of the newest token in a block, and returns those of all tokens, with the unused room."""
        own = self.tensor[block]
        own[:, :, :, self.length - 1] = key_value.transpose(0, 1)
        return own[0], own[1]


def attend_one(
    query: Float[Tensor, "B h T d"], key: Float[Tensor, "B h S d"], value: Float[Tensor, "B h S d"], hidden: Float[Tensor, "..."]
) -> Float[Tensor, "B h T d"]:
    """`attend` for a few queries; `hidden` is added to the scores."""
    attention = attention_by_products if choose.products_of_few(query) else attend
    return attention(query, key, value, bias=hidden)


class CachedBlocks:
    """The decoder blocks of a Transformer in eval mode, for one token at a time.

    Args:
        blocks: Blocks with cross-attention.
        context: What the tokens attend to. Its keys and values are computed once.
        allowed: True where a token of the context may be attended to.
        rows_each: Number of rows that share a context; they are consecutive.
    """

    def __init__(
        self, blocks: Sequence[Block], context: Float[Tensor, "B S D"], allowed: Bool[Tensor, "B 1 1 S"], rows_each: int
    ) -> None:
        self.blocks, self.rows_each = blocks, rows_each
        self.hidden = torch.zeros_like(allowed, dtype=context.dtype).masked_fill_(~allowed, float("-inf"))  # added to the scores
        self.contexts = [[part.contiguous() for part in block.cross.key_value(context)] for block in blocks]
        self.cache = KVCache(len(blocks), len(context) * rows_each, blocks[0].attention.heads, self.contexts[0][0])

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Continues these rows, in this order. All rows of a context come from that context, or are left out with it."""
        self.cache.select(rows)
        if len(rows) < len(self.hidden) * self.rows_each:
            kept = rows[:: self.rows_each] // self.rows_each
            self.hidden = self.hidden[kept]
            self.contexts = [[part[kept] for part in parts] for parts in self.contexts]

    def __call__(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """The result of the blocks for the next token of each row."""
        self.cache.add_token()
        for i, block in enumerate(self.blocks):
            x = self.step(i, block, x)
        return x

    def step(self, i: int, block: Block, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """The result of `Block.forward` for the newest token of each row."""
        rows, heads = len(x), block.attention.heads

        def self_attention(x: Tensor) -> Tensor:
            projected = block.attention.query_key_value(x).view(rows, 3, heads, -1)  # (R, 3, h, d)
            key, value = self.cache.write(i, projected[:, 1:])
            mixed = attend_one(projected[:, 0, :, None], key, value, self.cache.hidden[None])  # (R, h, 1, d)
            out: Tensor = block.branch1(block.attention.out(mixed.flatten(1)))
            return out

        def cross_attention(x: Tensor) -> Tensor:
            query = block.cross.query(x.view(-1, self.rows_each, x.shape[-1]))  # (B, h, R / B, d)
            key, value = self.contexts[i]
            mixed = attend_one(query, key, value, self.hidden)
            out: Tensor = block.branch_cross(block.cross.out(mixed.transpose(1, 2).reshape(x.shape)))
            return out

        x = residual(block, block.norm1, x, self_attention)
        x = residual(block, block.norm_cross, x, cross_attention)
        return residual(block, block.norm2, x, lambda x: block.branch2(block.mlp(x)))


def residual(block: Block, norm: nn.Module, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Pre-norm: x + branch(norm(x)). Post-norm: norm(x + branch(x))."""
    out: Tensor = x + branch(norm(x)) if block.pre else norm(x + branch(x))
    return out
