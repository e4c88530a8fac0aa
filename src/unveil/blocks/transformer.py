"""A stack of Transformer blocks, pre-norm (ViT, MAE) or post-norm (Transformer, BERT), as encoder or decoder.

Letters: B samples, T tokens, S tokens of the context, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unveil.blocks.activations import ACTIVATIONS, SwiGLU
from unveil.blocks.attention import Attention, OnGrid
from unveil.blocks.fast import choose
from unveil.blocks.fast.block import block_forward
from unveil.blocks.fast.cast_together import call_in_half
from unveil.blocks.init import xavier
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.mask_tokens import MaskTokens, append
from unveil.blocks.patches import Size
from unveil.blocks.residual import ResidualBranch
from unveil.blocks.windows import GridAttention


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a stack of blocks."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "relu", "quick_gelu", "gelu_tanh", "swiglu"] = "gelu"
    """A SwiGLU has a gate beside the values of the MLP, so its first layer is twice as wide."""
    norm: Literal["pre", "post"] = "pre"
    """`pre` for x + f(norm(x)), with one more norm after the last block; `post` for norm(x + f(x))."""
    final_norm: bool = True
    """Whether a pre-norm stack ends with a norm."""
    eps: float = 1e-6
    cross: bool = False
    """Whether each block also attends to a context, as the decoder of a translator does."""
    dropout: float = 0.0
    drop_path: float = 0.0
    """Drop-path rate of the last block; it grows linearly from 0 in the first block (Huang et al., 2016)."""
    layer_scale: float | None = None
    """Initial value of LayerScale, a learned factor for each channel of a branch (BEiT: 0.1); None means no LayerScale."""
    grad_checkpointing: bool = False
    """Whether to recompute activations in the backward pass, which saves memory for a third more time."""
    window: int = 0
    """Side of the windows within which patches attend; 0 for global attention. Such stacks need an `OnGrid` for each block."""
    global_blocks: tuple[int, ...] = ()
    """Indices of blocks without windows."""
    relative_grid: Size | None = None
    """Rows and columns of patches, for decomposed relative positions in each block; None for no such positions."""

    def window_of(self, block: int) -> int:
        """Side of the windows of a block; 0 if it attends globally."""
        return 0 if block in self.global_blocks else self.window


class Block(nn.Module):
    """Self-attention, optional cross-attention, and an MLP, each with a residual connection.

    Args:
        config: The shape of the stack.
        drop_path: Drop-path rate of this block.
        window: Side of the windows of this block, in patches; 0 for global attention.
    """

    def __init__(self, config: TransformerConfig, drop_path: float = 0.0, window: int = 0) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.pre = config.norm == "pre"
        self.norm1 = LayerNorm(width, eps=config.eps)
        if window or config.relative_grid:
            relative = (window, window) if window and config.relative_grid else config.relative_grid
            self.attention: Attention = GridAttention(width, config.heads, config.dropout, window=window, relative=relative)
        else:
            self.attention = Attention(width, config.heads, config.dropout)
        self.branch1, self.branch2 = (ResidualBranch(width, config.dropout, drop_path, config.layer_scale) for _ in range(2))
        if config.cross:
            self.norm_cross = LayerNorm(width, eps=config.eps)
            self.cross = Attention(width, config.heads, config.dropout)
            self.branch_cross = ResidualBranch(width, config.dropout, drop_path, config.layer_scale)
        self.norm2 = LayerNorm(width, eps=config.eps)
        activation = ACTIVATIONS[config.activation]()
        widened = 2 * hidden if isinstance(activation, SwiGLU) else hidden
        self.mlp = nn.Sequential(nn.Linear(width, widened), activation, nn.Linear(hidden, width))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S D"] | None = None,
        *,
        allowed: Bool[Tensor, "..."] | None = None,
        context_allowed: Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | OnGrid | None = None,
        causal: bool = False,
        mask_tokens: MaskTokens | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B _ D"]:
        """Computes one block. For `allowed`, `bias` and `causal` see `attend`; `context_allowed` is the mask of the context.

        `mask_tokens` are appended to x first. `last` is the number of tokens to return, counted from the end; all by default.
        """
        if choose.fast_block():
            return block_forward(self, x, context, allowed, context_allowed, bias, causal, mask_tokens, last)
        x = x if mask_tokens is None else append(x, mask_tokens)
        if self.pre:
            x = x + self.branch1(self.attention(self.norm1(x), allowed=allowed, bias=bias, causal=causal))
            if context is not None:
                x = x + self.branch_cross(self.cross(self.norm_cross(x), context, allowed=context_allowed))
            x = x + self.branch2(self.mlp(self.norm2(x)))
        else:
            x = self.norm1(x + self.branch1(self.attention(x, allowed=allowed, bias=bias, causal=causal)))
            if context is not None:
                x = self.norm_cross(x + self.branch_cross(self.cross(x, context, allowed=context_allowed)))
            x = self.norm2(x + self.branch2(self.mlp(x)))
        return x if last is None else x[:, -last:]


class Transformer(nn.Module):
    """A stack of blocks, and a final norm if they are pre-norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        steps = max(config.depth - 1, 1)
        rates = [config.drop_path * i / steps for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate, config.window_of(i)) for i, rate in enumerate(rates))
        self.norm = LayerNorm(config.width, eps=config.eps) if config.norm == "pre" and config.final_norm else nn.Identity()
        self.apply(xavier)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S D"] | None = None,
        *,
        allowed: Bool[Tensor, "..."] | None = None,
        context_allowed: Bool[Tensor, "..."] | None = None,
        biases: Sequence[Tensor | OnGrid | None] = (),
        causal: bool = False,
        mask_tokens: MaskTokens | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B _ D"]:
        """Computes all blocks and the final norm; arguments as in `Block.forward`. `biases` has one per block, or one for all."""
        x = append(x, mask_tokens) if mask_tokens is not None and not self.blocks else x
        for i, block in enumerate(self.blocks):
            x = self.caller(block, x, mask_tokens if i == 0 else None)(
                x,
                context,
                allowed=allowed,
                context_allowed=context_allowed,
                bias=biases[i % len(biases)] if biases else None,
                causal=causal,
                mask_tokens=mask_tokens if i == 0 else None,
                last=last if i == len(self.blocks) - 1 else None,
            )
        x = self.norm(x if last is None else x[:, -last:])
        return x

    def intermediates(
        self, x: Float[Tensor, "B T D"], biases: Sequence[Tensor | OnGrid | None] = ()
    ) -> list[Float[Tensor, "B T D"]]:
        """The tokens after each block, without the final norm."""
        found: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = self.caller(block, x)(x, bias=biases[i % len(biases)] if biases else None)
            found.append(x)
        return found

    def caller(self, block: nn.Module, x: Tensor, mask_tokens: MaskTokens | None = None) -> Callable[..., Tensor]:
        """The block, with gradient checkpointing if it is configured and gradients are computed."""
        assert isinstance(block, Block)
        call: Callable[..., Tensor] = block
        if mask_tokens is None and choose.cast_together(x, block.norm1.weight):  # norms of mask tokens are in float32
            call = partial(call_in_half, block)
        active = self.config.grad_checkpointing and self.training and torch.is_grad_enabled()
        return partial(checkpoint, call, use_reentrant=False) if active else call
