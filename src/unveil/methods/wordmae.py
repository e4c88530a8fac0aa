"""A masked autoencoder of words: the architecture of MAE (He et al., 2021) with the samples of BERT, to compare the two.

    text -> word pieces -> [mask some] -> visible tokens -> encoder -> [add mask tokens] -> decoder -> masked words

B texts, T tokens, V visible, M masked, D width, E decoder width, K words in the vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.init import small_normal, xavier
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.predictor import predict_tokens
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.transformer import Transformer, TransformerConfig
from unveil.blocks.word_masks import WordMask, mask_words, masked_word_loss, masked_word_metrics, vocabulary_logits
from unveil.errors import UnveilError
from unveil.learner import Step, TextMethod
from unveil.models.bert import TextConfig, TextEncoder
from unveil.ranges import Depth, Share, Width
from unveil.text.wordpiece import SPECIAL, TextBatch


@dataclass(frozen=True, kw_only=True)
class WordMAEConfig:
    """The options of a masked autoencoder of words."""

    mask_ratio: Share = 0.4
    """Share of the word pieces that is masked."""
    decoder_depth: Depth = 2
    """Blocks of the decoder."""
    decoder_width: Width | None = None
    """Width of the decoder; by default 512, or that of the encoder if it is smaller."""


class WordMAE(TextMethod):
    """An encoder of the visible tokens, and a light decoder that predicts the masked words."""

    Config = WordMAEConfig
    DEFAULTS = {  # the same as for BERT, so that the two methods can be compared
        "base_lr": 1e-3,
        "schedule": "linear",
        "weight_decay": 0.01,
        "beta2": 0.98,
        "eps": 1e-6,
        "clip_grad": 1.0,
        "epochs": 20.0,
    }
    encoder: TextEncoder
    config: WordMAEConfig
    special: Tensor

    def __init__(self, encoder: TextEncoder, config: WordMAEConfig) -> None:
        super().__init__()
        shape = encoder.config
        if not 0 < config.mask_ratio < 1:
            raise UnveilError(f"mask ratio {config.mask_ratio} is not between 0 and 1: use for example 0.4")
        if config.decoder_depth < 1:
            raise UnveilError("a decoder of 0 blocks cannot attend to the visible words: use --decoder-depth 1, or --method bert")
        width = config.decoder_width or min(512, shape.width)
        self.config, self.encoder = config, encoder
        heads, again = width * shape.heads // shape.width, shape.grad_checkpointing
        self.decoder_embed = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder_positions = nn.Parameter(torch.randn(shape.length, width) * 0.02)
        self.decoder = Transformer(
            TransformerConfig(width=width, depth=config.decoder_depth, heads=heads, grad_checkpointing=again)
        )
        self.dense, self.norm = nn.Linear(width, shape.width), LayerNorm(shape.width, eps=shape.eps)
        self.bias = nn.Parameter(torch.zeros(len(shape.vocabulary)))
        xavier(self.decoder_embed)
        small_normal(self.dense)
        self.register_buffer("special", torch.tensor([piece in SPECIAL for piece in shape.vocabulary]), persistent=False)

    @classmethod
    def build(cls, shape: TextConfig, config: WordMAEConfig, augment: Any = None) -> "WordMAE":
        return cls(TextEncoder(shape), config)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"decoder_positions"}

    def forward(self, batch: TextBatch) -> Step:
        """Masks tokens, encodes the visible ones, predicts the masked words, and computes the loss."""
        mask = self.mask_texts(batch.ids, batch.keys)
        return Step(masked_word_loss(self.predict_words(batch, mask), mask), {})

    def mask_texts(self, ids: Int[Tensor, "B T"], keys: Int[Tensor, " B"]) -> WordMask:
        """Masks the same number of tokens in each text, and special tokens only if no other tokens are left."""
        mask = mask_words(uniform(keys, ids.shape[1], Stream.MASK), ids, self.special, self.config.mask_ratio)
        return mask._replace(keep=mask.keep.sort(dim=1).values)

    def predict_words(self, batch: TextBatch, mask: WordMask) -> Float[Tensor, "B M K"]:
        """Logits over the vocabulary at each masked position."""
        encoded = self.encoder(batch.ids, batch.segments, order=mask.keep)  # (B, V, D): masked tokens are never read
        positions = self.decoder_positions[: batch.ids.shape[1]]
        embed, mask_token = self.decoder_embed, self.mask_token
        tokens = predict_tokens(
            encoded, mask.keep, mask.hide, embed=embed, positions=positions, mask_token=mask_token, decoder=self.decoder
        )
        return vocabulary_logits(tokens, self.dense, self.norm, self.encoder.words.weight, self.bias)

    @torch.no_grad()
    def validation_metrics(self, batch: TextBatch) -> dict[str, float]:
        """Cross-entropy in nats, and accuracy, of the predicted masked words."""
        mask = self.mask_texts(batch.ids, batch.keys)
        return masked_word_metrics(self.predict_words(batch, mask), mask)
