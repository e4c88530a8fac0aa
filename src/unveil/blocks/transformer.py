"""A stack of Transformer blocks: encoder or decoder, pre- or post-norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unveil.blocks.attention import Attention
from unveil.blocks.fast.recompute import Linear
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.mask_tokens import Gaps, append, append_projected
from unveil.blocks.residual import ResidualBranch


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a stack."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "relu"] = "gelu"
    norm: Literal["pre", "post"] = "pre"
    """`pre` as ViT and MAE: x + f(norm(x)), with one norm after the stack; `post` as 2017 and BERT: norm(x + f(x))."""
    eps: float = 1e-6
    cross: bool = False
    """Each block also attends to a context (the decoder of 2017)."""
    dropout: float = 0.0
    drop_path: float = 0.0
    """Share of samples that skip the last block's branches; grows linearly from 0 at the first (Huang et al., 2016)."""
    layer_scale: float | None = None
    """Initial value of a learned factor on each branch (BEiT: 0.1); none by default."""
    recompute: bool = False
    """Gradient checkpointing: forget activations inside a block and compute them again, for a third more time."""


class Block(nn.Module):
    """Self-attention, perhaps cross-attention, then an MLP, each around a residual sum."""

    def __init__(self, config: TransformerConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.pre = config.norm == "pre"
        self.norm1 = LayerNorm(width, eps=config.eps)
        self.attention = Attention(width, config.heads, config.dropout)
        self.branch1, self.branch2 = (ResidualBranch(width, config.dropout, drop_path, config.layer_scale) for _ in range(2))
        if config.cross:
            self.norm_cross = LayerNorm(width, eps=config.eps)
            self.cross = Attention(width, config.heads, config.dropout)
            self.branch_cross = ResidualBranch(width, config.dropout, drop_path, config.layer_scale)
        self.norm2 = LayerNorm(width, eps=config.eps)
        activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.mlp = MLP(Linear(width, hidden), activation, Linear(hidden, width))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S D"] | None = None,
        *,
        context_allowed: Bool[Tensor, "..."] | None = None,
        gaps: Gaps | None = None,
        last: int | None = None,
        **attention: Any,
    ) -> Float[Tensor, "B _ D"]:
        """One block; masks as in `attend`, that of the context apart.

        `gaps` are mask tokens that go behind `x` first (pre-norm); of all only the `last` so many are computed and come back.
        """
        if gaps is not None:
            x, attention["projected"] = append_projected(x, gaps, self.norm1, self.attention.query_key_value)
        mixed = self.attention(x, norm=self.norm1 if self.pre and gaps is None else None, last=last, **attention)
        x = (x if last is None else x[:, -last:]) + self.branch1(mixed)
        if self.pre:
            if context is not None:
                x = x + self.branch_cross(self.cross(self.norm_cross(x), context, allowed=context_allowed))
            x = x + self.branch2(self.mlp(x, self.norm2))
            return x
        x = self.norm1(x)
        if context is not None:
            x = self.norm_cross(x + self.branch_cross(self.cross(x, context, allowed=context_allowed)))
        x = self.norm2(x + self.branch2(self.mlp(x)))
        return x


class MLP(nn.Sequential):
    """Linear, activation, linear."""

    def forward(self, x: Float[Tensor, "B T D"], norm: nn.Module | None = None) -> Float[Tensor, "B T D"]:
        """`norm` is what x goes through first."""
        widen, activation, narrow = self
        out: Tensor = narrow(widen(x, norm), activation)
        return out


class Transformer(nn.Module):
    """Blocks one after the other, with a last norm where they are pre-norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        steps = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / steps) for i in range(config.depth))
        self.norm = LayerNorm(config.width, eps=config.eps) if config.norm == "pre" else nn.Identity()
        self.apply(xavier)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Tensor | None = None,
        *,
        gaps: Gaps | None = None,
        last: int | None = None,
        biases: Sequence[Tensor] = (),
        **masks: Any,
    ) -> Float[Tensor, "B _ D"]:
        """All blocks and the last norm; arguments as in `Block.forward`. `biases` of attention: one a block, or one for all."""
        if gaps is not None and not self.blocks:
            x = append(x, gaps)
        recompute = self.config.recompute and self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            options = {"gaps": gaps if i == 0 else None, "last": last if i == len(self.blocks) - 1 else None, **masks}
            if biases:
                options["bias"] = biases[i % len(biases)]
            x = checkpoint(block, x, context, use_reentrant=False, **options) if recompute else block(x, context, **options)
        x = self.norm(x if last is None else x[:, -last:])
        return x


def xavier(module: nn.Module) -> None:
    """Initialises linear layers as ViT and MAE do: Xavier-uniform weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
