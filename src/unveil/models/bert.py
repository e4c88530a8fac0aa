"""BERT's encoder (Devlin et al., 2018): word pieces, learned positions and segments, a post-norm Transformer."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.fast.recompute import Linear
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.transformer import Transformer, TransformerConfig
from unveil.errors import UnveilError

MODELS: dict[str, tuple[int, int, int]] = {  # width, depth, heads (Turc et al., 2019)
    "bert-nano": (96, 4, 3),  # the shape of vit-nano
    "bert-tiny": (128, 2, 2),
    "bert-mini": (256, 4, 4),
    "bert-small": (512, 4, 8),
    "bert-medium": (512, 8, 8),
    "bert-base": (768, 12, 12),
    "bert-large": (1024, 24, 16),
}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shape of an encoder of texts, and the words that it knows."""

    width: int
    depth: int
    heads: int
    vocabulary: tuple[str, ...] = field(repr=False)
    """The pieces by number; one that goes on inside a word begins with ##."""
    length: int = 128
    """Pieces in the longest sequence, the special ones included."""
    lower: bool = True
    """Whether texts are put in lower case, without accents, before they are cut."""
    segments: int = 2
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    eps: float = 1e-12
    recompute: bool = False

    def number(self, piece: str) -> int:
        """The number of a piece. Raises `UnveilError` where the vocabulary lacks it."""
        if piece not in self.vocabulary:
            raise UnveilError(f"the vocabulary has {len(self.vocabulary):,} pieces, and no {piece}: expected one that BERT can use")
        return self.vocabulary.index(piece)


class TextEncoder(nn.Module):
    """An encoder of texts: (B, T) numbers of pieces to a token each, (B, T, D); the first is [CLS]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config, self.padding = config, config.number("[PAD]")
        self.words = nn.Embedding(len(config.vocabulary), config.width)
        self.positions = nn.Parameter(torch.empty(config.length, config.width))
        self.segments = nn.Parameter(torch.empty(config.segments, config.width))
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(
            TransformerConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                norm="post",
                dropout=config.dropout,
                eps=config.eps,
                recompute=config.recompute,
            )
        )
        self.apply(small_normal)
        for table in (self.words.weight, self.positions, self.segments):
            nn.init.normal_(table, std=0.02)

    def tokens(
        self, ids: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None = None, order: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Word + position + segment, and a norm; arguments as in `forward`."""
        if ids.shape[1] > self.config.length:
            raise UnveilError(f"a sequence has {ids.shape[1]} pieces, and the model takes up to {self.config.length}: cut it")
        places = self.positions[: ids.shape[1]]
        if order is not None:
            ids, places = ids.gather(1, order), F.embedding(order, places)
            segments = None if segments is None else segments.gather(1, order)
        of_part = self.segments[0] if segments is None else F.embedding(segments, self.segments)
        x: Tensor = self.dropout(self.norm(self.words(ids) + places + of_part))
        device = x.device.type  # under autocast, tokens stay in half precision
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        *,
        real: Bool[Tensor, "B T"] | None = None,
        order: Int[Tensor, "B T"] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B _ D"]:
        """The tokens after the last block.

        Args:
            ids: Numbers of pieces.
            segments: To which part each belongs; all to the first by default.
            real: False where a piece only fills up its row, and is not looked at; by default all are looked at.
            order: The places of the pieces in the order in which they come back: a token carries its position, wherever it stands.
            last: Only so many of them come back, the last in that order; the last block is computed for no others.
        """
        if real is not None and order is not None:
            real = real.gather(1, order)
        allowed = None if real is None else real[:, None, None, :]
        tokens: Tensor = self.transformer(self.tokens(ids, segments, order), allowed=allowed, last=last)
        return tokens

    def features(self, ids: Int[Tensor, "B T"], pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "B D"]:
        """One vector a text: the mean of its tokens, those that only fill up left out, or the token of [CLS]."""
        real = ids != self.padding
        tokens: Tensor = self(ids, real=real)
        if pool == "class":
            return tokens[:, 0]
        share = real / real.sum(dim=1, keepdim=True)
        return (tokens * share[:, :, None]).sum(dim=1)


def small_normal(module: nn.Module) -> None:
    """Initialises linear layers as BERT does: normal weights of deviation 0.02, zero biases."""
    if isinstance(module, Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
