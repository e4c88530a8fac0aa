"""A stack of Transformer blocks: encoder or decoder, pre- or post-norm."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unveil.blocks.attention import Attention


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


class Branch(nn.Module):
    """What stands between a residual sum and a branch: dropout, layer scale, drop path."""

    def __init__(self, config: TransformerConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.dropout = nn.Dropout(config.dropout)
        scaled = config.layer_scale is not None
        self.scale = nn.Parameter(torch.full((config.width,), config.layer_scale or 0.0)) if scaled else None

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = self.dropout(x)
        if self.scale is not None:
            x = x * self.scale
        if self.training and self.drop_path:
            kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_path
            x = x * kept.to(x.dtype) / (1 - self.drop_path)
        return x


class Block(nn.Module):
    """Self-attention, perhaps cross-attention, then an MLP, each around a residual sum."""

    def __init__(self, config: TransformerConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.pre = config.norm == "pre"
        self.norm1 = nn.LayerNorm(width, eps=config.eps)
        self.attention = Attention(width, config.heads, config.dropout)
        self.branch1 = Branch(config, drop_path)
        if config.cross:
            self.norm_cross = nn.LayerNorm(width, eps=config.eps)
            self.cross = Attention(width, config.heads, config.dropout)
            self.branch_cross = Branch(config, drop_path)
        self.norm2 = nn.LayerNorm(width, eps=config.eps)
        activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))
        self.branch2 = Branch(config, drop_path)

    def forward(
        self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B S D"] | None = None, *,
        allowed: Bool[Tensor, "..."] | None = None, context_allowed: Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None, causal: bool = False,
    ) -> Float[Tensor, "B T D"]:  # fmt: skip
        """One block; masks as in `attend`, those of the context apart."""
        if self.pre:
            x = x + self.branch1(self.attention(self.norm1(x), allowed=allowed, bias=bias, causal=causal))
            if context is not None:
                x = x + self.branch_cross(self.cross(self.norm_cross(x), context, allowed=context_allowed))
            x = x + self.branch2(self.mlp(self.norm2(x)))
            return x
        x = self.norm1(x + self.branch1(self.attention(x, allowed=allowed, bias=bias, causal=causal)))
        if context is not None:
            x = self.norm_cross(x + self.branch_cross(self.cross(x, context, allowed=context_allowed)))
        x = self.norm2(x + self.branch2(self.mlp(x)))
        return x


class Transformer(nn.Module):
    """Blocks one after the other, with a last norm where they are pre-norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        steps = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / steps) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.norm == "pre" else nn.Identity()
        self.apply(xavier)

    def forward(self, x: Float[Tensor, "B T D"], context: Tensor | None = None, **masks: Any) -> Float[Tensor, "B T D"]:
        """All blocks and the last norm; `masks` as in `Block.forward`."""
        recompute = self.config.recompute and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, context, use_reentrant=False, **masks) if recompute else block(x, context, **masks)
        x = self.norm(x)
        return x


def xavier(module: nn.Module) -> None:
    """Initialises linear layers as ViT and MAE do: Xavier-uniform weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
