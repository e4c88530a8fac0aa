"""BERT (Devlin et al., 2018): masked words, guessed from both sides.

    text -> word pieces -> [hide 15 %: 80 % as [MASK], 10 % as another word, 10 % as they are] -> encoder -> the hidden words

B texts, T tokens, M hidden, D width, V words in the vocabulary.
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
from unveil.errors import UnveilError
from unveil.learner import Step, TextMethod
from unveil.models.bert import TextConfig, TextEncoder, small_normal
from unveil.text.wordpiece import SPECIAL, TextBatch

DEFAULTS = {"base_lr": 1e-3, "schedule": "line", "weight_decay": 0.01, "beta2": 0.98, "epsilon": 1e-6, "clip": 1.0, "epochs": 20.0}
"""BERT's optimiser (appendix A.2) at a rate for small models: bert-base wants --base-lr 1e-4."""


@dataclass(frozen=True, kw_only=True)
class BERTConfig:
    """The knobs of BERT."""

    mask_ratio: float = 0.15
    """Share of a sequence's pieces that is hidden (section 3.1)."""
    whole_words: bool = False
    """Hide all pieces of a word or none of them."""
    next_sentence: bool = False
    """Also tell whether the second half of a sequence follows the first, or comes from elsewhere (section 3.1, task 2)."""


class Hidden(NamedTuple):
    """A sequence with some of its pieces hidden."""

    seen: Int[Tensor, "B T"]
    """What the encoder is shown."""
    order: Int[Tensor, "B T"]
    """All places, those of the hidden pieces last, and [CLS] just before them."""
    truth: Int[Tensor, "B M"]
    """The pieces that stood there."""
    counted: Bool[Tensor, "B M"]
    """False where a place is only there so that every row has as many: a special piece, or a part of a word that had no room."""


class BERT(TextMethod):
    """An encoder of texts, and a head that names the hidden words by the encoder's own table of words."""

    Config = BERTConfig
    encoder: TextEncoder
    config: BERTConfig
    special: Tensor
    goes_on: Tensor

    def __init__(self, encoder: TextEncoder, config: BERTConfig) -> None:
        super().__init__()
        shape = encoder.config
        if not 0 < config.mask_ratio < 1:
            raise UnveilError(f"mask ratio {config.mask_ratio} is not between 0 and 1: use for example 0.15")
        self.config, self.encoder, self.stand_in = config, encoder, shape.number("[MASK]")
        self.pairs = config.next_sentence
        self.dense, self.norm = Linear(shape.width, shape.width), LayerNorm(shape.width, eps=shape.eps)
        self.bias = nn.Parameter(torch.zeros(len(shape.vocabulary)))
        if self.pairs:
            self.pooler, self.follows = Linear(shape.width, shape.width), Linear(shape.width, 2)
        for layer in self.children():
            if layer is not encoder:
                small_normal(layer)
        self.register_buffer("special", torch.tensor([piece in SPECIAL for piece in shape.vocabulary]), persistent=False)
        self.register_buffer("goes_on", torch.tensor([piece[:2] == "##" for piece in shape.vocabulary]), persistent=False)

    @classmethod
    def build(cls, shape: TextConfig, config: BERTConfig, augment: Any = None) -> "BERT":
        """An untrained BERT; texts have no augmentation."""
        return cls(TextEncoder(shape), config)

    def forward(self, batch: TextBatch) -> Step:
        """Hide, encode, name, compare."""
        hidden = self.hide(batch.ids, batch.keys)
        count = hidden.truth.shape[1]
        seen = self.encoder(hidden.seen, batch.segments, order=hidden.order, last=1 + count)  # (B, 1 + M, D)
        loss = self.compare(self.name(seen[:, 1:]), hidden)
        if batch.labels is None:
            return Step(loss, {})
        guess = self.follow(seen[:, 0])
        found = guess.argmax(dim=1).eq(batch.labels).float().mean()
        metrics = {"masked_words": loss.detach(), "next_sentence": found}
        return Step(loss + F.cross_entropy(guess.float(), batch.labels), metrics)

    def hide(self, ids: Int[Tensor, "B T"], keys: Int[Tensor, " B"]) -> Hidden:
        """Hides the same count of pieces in each row, and no special one."""
        length = ids.shape[1]
        count = max(1, round(self.config.mask_ratio * length))
        score, special = uniform(keys, length, stream=1), self.special[ids]
        if self.config.whole_words:
            word = (~self.goes_on[ids]).cumsum(dim=1).sub(1).clamp(min=0)  # (B, T): all pieces of a word share one score
            score = score.gather(1, word)
        first = torch.arange(length, device=ids.device) == 0  # [CLS]
        order = (score + 2 * special + first).argsort(dim=1, stable=True)  # lowest first, [CLS] last
        chosen, rest = order[:, :count], order[:, count:]
        truth = ids.gather(1, chosen)
        counted = ~self.special[truth]
        if self.config.whole_words:  # a word that does not fit is left out
            counted = counted & (word.gather(1, chosen) != word.gather(1, rest[:, :1]))
        fate, other = uniform(keys, 2 * count, stream=2).chunk(2, dim=1)
        other = (other * len(self.special)).long()  # any piece, as likely as any other
        shown = torch.where(fate < 0.8, self.stand_in, torch.where(fate < 0.9, other, truth))
        seen = ids.scatter(1, chosen, torch.where(counted, shown, truth))
        return Hidden(seen, torch.cat([rest, chosen], dim=1), truth, counted)

    def name(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M V"]:
        """A score for each word of the vocabulary (section 3.1; the decoder is the table of words)."""
        return F.linear(self.norm(F.gelu(self.dense(tokens))), self.encoder.words.weight, self.bias)

    def follow(self, first: Float[Tensor, "B D"]) -> Float[Tensor, "B 2"]:
        """Scores that the second part follows the first, and that it does not."""
        scores: Tensor = self.follows(torch.tanh(self.pooler(first)))
        return scores

    def compare(self, scores: Float[Tensor, "B M V"], hidden: Hidden) -> Float[Tensor, ""]:
        """Cross-entropy of the hidden words, a mean over all places: so any number of processes sums up to the same."""
        each = F.cross_entropy(scores.flatten(0, 1).float(), hidden.truth.flatten(), reduction="none")
        return (each * hidden.counted.flatten()).mean()

    def scores(
        self, ids: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None = None, real: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """A score for each word at each place; arguments as in `TextEncoder.forward`."""
        return self.name(self.encoder(ids, segments, real=real))

    @torch.no_grad()
    def validation_metrics(self, batch: TextBatch) -> dict[str, float]:
        """Cross-entropy of the hidden words, in nats, and the share of them that is named first."""
        hidden = self.hide(batch.ids, batch.keys)
        scores = self.name(self.encoder(hidden.seen, batch.segments, order=hidden.order, last=hidden.truth.shape[1]))
        right = ((scores.argmax(dim=2) == hidden.truth) & hidden.counted).sum() / hidden.counted.sum().clamp(min=1)
        return {"word_loss": float(self.compare(scores, hidden)), "word_accuracy": float(right)}
