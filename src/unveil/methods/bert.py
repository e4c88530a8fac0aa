"""BERT (Devlin et al., 2018): predicts masked words from both sides.

    text -> word pieces -> [mask 15 %: 80 % become [MASK], 10 % another word, 10 % stay] -> encoder -> the masked words

B texts, T tokens, M masked, D width, K words in the vocabulary.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.init import small_normal
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.word_masks import WordMask, mask_words, masked_word_loss, masked_word_metrics, vocabulary_logits
from unveil.errors import UnveilError
from unveil.learner import Step, TextMethod
from unveil.models.bert import TextConfig, TextEncoder
from unveil.ranges import Share
from unveil.text.wordpiece import SPECIAL, TextBatch


@dataclass(frozen=True, kw_only=True)
class BERTConfig:
    """The options of BERT."""

    mask_ratio: Share = 0.15
    """Share of the word pieces that is masked (section 3.1)."""
    whole_words: bool = False
    """Mask whole words instead of single pieces."""
    next_sentence: bool = False
    """Also predict whether the second half of a sequence follows the first (section 3.1, task 2)."""


class MaskedTexts(NamedTuple):
    """Texts with some of their tokens masked."""

    ids: Int[Tensor, "B T"]
    """Token ids for the encoder, with the replacements of the masked tokens."""
    order: Int[Tensor, "B T"]
    """A permutation of all indices that puts the masked tokens last, and [CLS] just before them."""
    mask: WordMask
    """Which tokens are masked, and their true ids."""


class BERT(TextMethod):
    """A text encoder, and a head that predicts the masked words. The head shares the word embeddings of the encoder."""

    Config = BERTConfig
    DEFAULTS = {
        "base_lr": 1e-3,  # for small models; use 1e-4 for bert-base
        "schedule": "linear",
        "weight_decay": 0.01,
        "beta2": 0.98,  # as RoBERTa, which is stable at this rate; BERT has 0.999, and 1 % of warm-up
        "eps": 1e-6,
        "clip_grad": 1.0,
        "epochs": 20.0,
    }
    encoder: TextEncoder
    config: BERTConfig
    special: Tensor
    continues: Tensor

    def __init__(self, encoder: TextEncoder, config: BERTConfig) -> None:
        super().__init__()
        shape = encoder.config
        if not 0 < config.mask_ratio < 1:
            raise UnveilError(f"mask ratio {config.mask_ratio} is not between 0 and 1: use for example 0.15")
        self.config, self.encoder, self.mask_id = config, encoder, shape.token_id("[MASK]")
        self.pairs = config.next_sentence
        self.dense, self.norm = nn.Linear(shape.width, shape.width), LayerNorm(shape.width, eps=shape.eps)
        self.bias = nn.Parameter(torch.zeros(len(shape.vocabulary)))
        if self.pairs:
            self.pooler, self.follows = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, 2)
        for layer in self.children():
            if layer is not encoder:
                small_normal(layer)
        self.register_buffer("special", torch.tensor([piece in SPECIAL for piece in shape.vocabulary]), persistent=False)
        self.register_buffer("continues", torch.tensor([piece[:2] == "##" for piece in shape.vocabulary]), persistent=False)

    @classmethod
    def build(cls, shape: TextConfig, config: BERTConfig, augment: Any = None) -> "BERT":
        return cls(TextEncoder(shape), config)

    def forward(self, batch: TextBatch) -> Step:
        """Masks tokens, encodes the text, predicts the masked tokens, and computes the loss."""
        masked = self.masked(batch.ids, batch.keys)
        count = masked.mask.hide.shape[1]
        tokens = self.encoder(masked.ids, batch.segments, order=masked.order, last=1 + count)  # (B, 1 + M, D)
        loss = masked_word_loss(self.predict_words(tokens[:, 1:]), masked.mask)
        if batch.follows is None:
            return Step(loss, {})
        scores = self.predict_next_sentence(tokens[:, 0])
        accuracy = scores.argmax(dim=1).eq(batch.follows).float().mean()
        metrics = {"masked_words": loss.detach(), "next_sentence": accuracy}
        return Step(loss + F.cross_entropy(scores.float(), batch.follows), metrics)

    def masked(self, ids: Int[Tensor, "B T"], keys: Int[Tensor, " B"]) -> MaskedTexts:
        """Masks the same number of tokens in each text, and no special token."""
        score = uniform(keys, ids.shape[1], Stream.MASK)
        if self.config.whole_words:
            word = (~self.continues[ids]).cumsum(dim=1).sub(1).clamp(min=0)  # (B, T): the index of the word of each piece
            score = score.gather(1, word)
        keep, hide, labels, counted = mask_words(score, ids, self.special, self.config.mask_ratio)
        if self.config.whole_words:  # a word that does not fit as a whole is not masked
            counted = counted & (word.gather(1, hide) != word.gather(1, keep[:, :1]))
        action, other = uniform(keys, 2 * hide.shape[1], Stream.REPLACEMENT).chunk(2, dim=1)
        other = (other * len(self.special)).long()  # every word is equally likely
        replacement = torch.where(action < 0.8, self.mask_id, torch.where(action < 0.9, other, labels))
        replaced = ids.scatter(1, hide, torch.where(counted, replacement, labels))
        return MaskedTexts(replaced, torch.cat([keep, hide], dim=1), WordMask(keep, hide, labels, counted))

    def predict_words(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M K"]:
        """Logits over the vocabulary (section 3.1)."""
        return vocabulary_logits(tokens, self.dense, self.norm, self.encoder.words.weight, self.bias)

    def predict_next_sentence(self, first: Float[Tensor, "B D"]) -> Float[Tensor, "B 2"]:
        """Logits of two classes from the [CLS] token: the second segment follows the first, or it comes from another document."""
        scores: Tensor = self.follows(torch.tanh(self.pooler(first)))
        return scores

    def token_logits(
        self, ids: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None = None, real: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T K"]:
        """Logits over the vocabulary at each position; arguments as in `TextEncoder.forward`."""
        return self.predict_words(self.encoder(ids, segments, real=real))

    @torch.no_grad()
    def validation_metrics(self, batch: TextBatch) -> dict[str, float]:
        """Cross-entropy in nats, and accuracy, of the predicted masked words."""
        masked = self.masked(batch.ids, batch.keys)
        tokens = self.encoder(masked.ids, batch.segments, order=masked.order, last=masked.mask.hide.shape[1])
        return masked_word_metrics(self.predict_words(tokens), masked.mask)
