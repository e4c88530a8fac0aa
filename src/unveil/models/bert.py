"""BERT's encoder (Devlin et al., 2018): word pieces, learned positions and segments, a post-norm Transformer.

Letters: B texts, T tokens, D width.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.init import small_normal
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.transformer import Transformer, TransformerConfig
from unveil.errors import UnveilError
from unveil.ranges import Count, Depth, Positive, Share, ShareBelowOne, Width

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
    """The shape of a text encoder, and its vocabulary."""

    width: Width
    depth: Depth
    heads: Width
    vocabulary: tuple[str, ...] = field(repr=False)
    """The word pieces, in the order of their ids; a piece that continues a word begins with ##."""
    length: Count = 128
    """Maximum number of tokens in a sequence, including special tokens."""
    lower: bool = True
    """Whether texts are lower-cased and stripped of accents first."""
    segments: Count = 2
    mlp_ratio: Positive = 4.0
    dropout: ShareBelowOne = 0.1
    eps: Share = 1e-12
    grad_checkpointing: bool = False

    def token_id(self, piece: str) -> int:
        """The id of a word piece. Raises `UnveilError` if the vocabulary does not have it."""
        if piece not in self.vocabulary:
            raise UnveilError(f"the vocabulary of {len(self.vocabulary):,} word pieces has no {piece}: use a BERT vocabulary")
        return self.vocabulary.index(piece)


class TextEncoder(nn.Module):
    """A text encoder: token ids (B, T) to one vector per token, (B, T, D). The first token is [CLS]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config, self.padding = config, config.token_id("[PAD]")
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
                grad_checkpointing=config.grad_checkpointing,
            )
        )
        self.apply(small_normal)
        for table in (self.words.weight, self.positions, self.segments):
            nn.init.normal_(table, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Positions are not decayed."""
        return {"positions"}

    def layer_of(self, name: str) -> int:
        """The depth of a parameter, for layer-wise learning rates: 0 for the embeddings, 1 + i for block i."""
        return 1 + int(name.split(".")[2]) if name.startswith("transformer.blocks.") else 0

    def tokens(
        self, ids: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None = None, order: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """The normalised sum of word, position and segment embeddings; arguments as in `forward`."""
        if ids.shape[1] > self.config.length:
            raise UnveilError(f"a sequence has {ids.shape[1]} tokens, but the model takes up to {self.config.length}: shorten it")
        positions = self.positions[: ids.shape[1]]
        if order is not None:
            ids, positions = ids.gather(1, order), F.embedding(order, positions)
            segments = None if segments is None else segments.gather(1, order)
        of_segment = self.segments[0] if segments is None else F.embedding(segments, self.segments)
        x: Tensor = self.dropout(self.norm(self.words(ids) + positions + of_segment))
        device = x.device.type  # keeps half precision under autocast
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
            ids: Token ids.
            segments: The segment of each token; the first for all tokens by default.
            real: False for padding, to which no token attends; by default there is no padding.
            order: Indices of the tokens to encode, in the order of the result. Each token keeps its position.
            last: Number of tokens to return, counted from the end of `order`; all by default.
        """
        if real is not None and order is not None:
            real = real.gather(1, order)
        allowed = None if real is None else real[:, None, None, :]
        tokens: Tensor = self.transformer(self.tokens(ids, segments, order), allowed=allowed, last=last)
        return tokens

    def features(self, ids: Int[Tensor, "B T"], pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "B D"]:
        """One vector for each text: the mean of its tokens without padding, or the [CLS] token."""
        real = ids != self.padding
        tokens: Tensor = self(ids, real=real)
        if pool == "class":
            return tokens[:, 0]
        share = real / real.sum(dim=1, keepdim=True)
        return (tokens * share[:, :, None]).sum(dim=1)
