"""A masked autoencoder of words: MAE's way (He et al., 2021) with BERT's samples (Devlin et al., 2018), to compare the two.

    text -> word pieces -> [hide some] -> visible pieces -> encoder -> [mask tokens in the gaps] -> decoder -> hidden words

B texts, T tokens, V visible, M hidden, D width, E decoder width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.fast.recompute import Linear
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.stateless_random import uniform
from unveil.blocks.transformer import Transformer, TransformerConfig, xavier
from unveil.errors import UnveilError
from unveil.learner import Step, TextMethod
from unveil.models.bert import TextConfig, TextEncoder, small_normal
from unveil.text.wordpiece import SPECIAL, TextBatch

DEFAULTS = {"base_lr": 1e-3, "schedule": "line", "weight_decay": 0.01, "beta2": 0.98, "epsilon": 1e-6, "clip": 1.0, "epochs": 20.0}
"""BERT's optimiser, so that the two differ in nothing else."""


@dataclass(frozen=True, kw_only=True)
class WordMAEConfig:
    """The knobs of a masked autoencoder of words."""

    mask_ratio: float = 0.4
    """Share of a sequence's pieces that is hidden."""
    decoder_depth: int = 2
    """Blocks of the decoder."""
    decoder_width: int | None = None
    """Width of the decoder: 512, or the encoder's where that is smaller."""


class Split(NamedTuple):
    """Where the pieces of a sequence go."""

    keep: Int[Tensor, "B V"]
    hide: Int[Tensor, "B M"]
    truth: Int[Tensor, "B M"]
    """The pieces that are hidden."""
    counted: Bool[Tensor, "B M"]
    """False where a special piece had to be hidden, so that every row hides as many."""


class WordMAE(TextMethod):
    """An encoder that sees the visible pieces only, and a light decoder that names the rest."""

    Config = WordMAEConfig
    encoder: TextEncoder
    config: WordMAEConfig
    special: Tensor

    def __init__(self, encoder: TextEncoder, config: WordMAEConfig) -> None:
        super().__init__()
        shape = encoder.config
        if not 0 < config.mask_ratio < 1:
            raise UnveilError(f"mask ratio {config.mask_ratio} is not between 0 and 1: use for example 0.4")
        if config.decoder_depth < 1:
            raise UnveilError("a decoder of 0 blocks would see no word: use --decoder-depth 1, or --method bert")
        width = config.decoder_width or min(512, shape.width)
        self.config, self.encoder = config, encoder
        heads = width * shape.heads // shape.width
        self.decoder_embed = Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder_positions = nn.Parameter(torch.randn(shape.length, width) * 0.02)
        blocks = TransformerConfig(width=width, depth=config.decoder_depth, heads=heads, recompute=shape.recompute)
        self.decoder = Transformer(blocks)
        self.dense, self.norm = Linear(width, shape.width), LayerNorm(shape.width, eps=shape.eps)
        self.bias = nn.Parameter(torch.zeros(len(shape.vocabulary)))
        xavier(self.decoder_embed)
        small_normal(self.dense)
        self.register_buffer("special", torch.tensor([piece in SPECIAL for piece in shape.vocabulary]), persistent=False)

    @classmethod
    def build(cls, shape: TextConfig, config: WordMAEConfig, augment: Any = None) -> "WordMAE":
        """An untrained masked autoencoder; texts have no augmentation."""
        return cls(TextEncoder(shape), config)

    def forward(self, batch: TextBatch) -> Step:
        """Hide, encode, fill the gaps, compare."""
        split = self.split(batch.ids, batch.keys)
        return Step(self.compare(self.name(batch, split), split), {})

    def split(self, ids: Int[Tensor, "B T"], keys: Int[Tensor, " B"]) -> Split:
        """Hides the same count of pieces in each row, a special one only where nothing else is left."""
        length = ids.shape[1]
        count = max(1, round(self.config.mask_ratio * length))
        first = torch.arange(length, device=ids.device) == 0  # [CLS]
        order = (uniform(keys, length, stream=1) + 2 * self.special[ids] + first).argsort(dim=1, stable=True)
        hide, keep = order[:, :count], order[:, count:].sort(dim=1).values
        truth = ids.gather(1, hide)
        return Split(keep, hide, truth, ~self.special[truth])

    def name(self, batch: TextBatch, split: Split) -> Float[Tensor, "B M W"]:
        """A score for each of the W words of the vocabulary at each hidden place."""
        seen = self.encoder(batch.ids, batch.segments, order=split.keep)  # (B, V, D): what is hidden is never touched
        places = self.decoder_positions[: batch.ids.shape[1]]
        x = self.decoder_embed(seen)
        x = x + F.embedding(split.keep, places).to(x.dtype)
        x = self.decoder(x, gaps=(self.mask_token + places, split.hide), last=split.hide.shape[1])
        return F.linear(self.norm(F.gelu(self.dense(x))), self.encoder.words.weight, self.bias)

    def compare(self, scores: Float[Tensor, "B M W"], split: Split) -> Float[Tensor, ""]:
        """Cross-entropy of the hidden words, a mean over all places."""
        each = F.cross_entropy(scores.flatten(0, 1).float(), split.truth.flatten(), reduction="none")
        return (each * split.counted.flatten()).mean()

    @torch.no_grad()
    def validation_metrics(self, batch: TextBatch) -> dict[str, float]:
        """Cross-entropy of the hidden words, in nats, and the share of them that is named first."""
        split = self.split(batch.ids, batch.keys)
        scores = self.name(batch, split)
        right = ((scores.argmax(dim=2) == split.truth) & split.counted).sum() / split.counted.sum().clamp(min=1)
        return {"word_loss": float(self.compare(scores, split)), "word_accuracy": float(right)}
