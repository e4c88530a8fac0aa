"""Translation: trains a Transformer on sentence pairs with label-smoothed cross-entropy (Vaswani et al., 2017, section 5.4)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.smoothed_cross_entropy import smoothed_cross_entropy
from unveil.blocks.special_tokens import BEGIN, END, PAD
from unveil.errors import UnveilError
from unveil.learner import Step, Task
from unveil.metrics import Metric
from unveil.models.beam_search import beam_search, greedy_search
from unveil.models.seq2seq import CachedDecoder, Seq2Seq
from unveil.ranges import ShareBelowOne
from unveil.text.parallel_corpus import PairBatch, Rows

AVERAGED_PART = 8
"""Exponent of the average of the weights, which then covers about the last eighth of the run."""
BATCH_SIZE = 64
"""Number of sentences in a batch of translations."""
EXTRA_LENGTH = 50
"""Number of tokens by which a translation may be longer than its source (section 6.1)."""


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """The options of learning from sentence pairs."""

    smoothing: ShareBelowOne = 0.1
    """Label smoothing: share of the target distribution that is spread evenly over the vocabulary."""


class Translation(Task):
    """A translator in training, and an average of its weights over the last part of the run. The average is the result.

    The average replaces the average of the last checkpoints (section 6.1). Step n enters it with weight (8 + 1) / (8 + n)
    (polynomial decay; Shamir and Zhang, 2013). So it always covers the last part of the run so far, and the length of the run
    need not be known in advance.
    """

    modality = "text"
    on_encoder = False
    Config = TranslationConfig
    DEFAULTS = {
        "schedule": "inverse_sqrt",
        "base_lr": 4e-3,
        "warmup_ratio": 0.1,
        "beta2": 0.98,
        "eps": 1e-9,
        "weight_decay": 0.0,
        "epochs": 40.0,
        "batch_size": 128,
    }
    """The recipe of 2017, scaled to tens of thousands of pairs."""
    steps: Tensor

    def __init__(self, translator: Seq2Seq, config: TranslationConfig) -> None:
        super().__init__()
        self.translator, self.config, self.classes = translator, config, ()
        self.average = copy.deepcopy(translator).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.float32))

    @classmethod
    def build(cls, encoder: Seq2Seq, config: TranslationConfig, augment: Any = None, classes: Sequence[str] = ()) -> "Translation":
        """`encoder` is the whole translator. `augment` and `classes` are not used."""
        return cls(encoder, config)

    def forward(self, batch: PairBatch) -> Step:
        """Label-smoothed cross-entropy, averaged over the tokens of the step. The cross-entropy without smoothing is logged."""
        logits, tokens = self.translator(batch.source, batch.target[:, :-1]), batch.target[:, 1:]  # (B, T, K), (B, T)
        weight = torch.where(tokens == PAD, 0.0, batch.weight[:, None])
        loss, plain = smoothed_cross_entropy(logits, tokens, weight, self.config.smoothing)
        return Step(loss, {"cross_entropy": plain})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the average towards the current weights."""
        self.steps += 1
        share = (AVERAGED_PART + 1) / (AVERAGED_PART + self.steps)
        for mean, weight in zip(self.average.parameters(), self.translator.parameters(), strict=True):
            mean.lerp_(weight, share)

    def train(self, mode: bool = True) -> "Translation":
        """Keeps the average in eval mode, without dropout."""
        super().train(mode)
        self.average.eval()
        return self

    def layer_of(self, name: str) -> int:
        """All layers have the same learning rate."""
        return 0

    def predict(self, batch: PairBatch) -> list[list[int]]:
        """Greedy translations by the averaged weights, as token ids without special tokens."""
        rows = [[token for token in row if token not in (PAD, END)] for row in batch.source.tolist()]
        return translate_tokens(self.average, rows, beams=1, length_penalty=0.0)

    def metric(self) -> Metric:
        return BLEU()


class BLEU(Metric):
    """BLEU as sacrebleu computes it, 0 to 100, of detokenised translations.

    Raises:
        UnveilError: If sacrebleu is not installed.
    """

    primary = "bleu"

    def __init__(self) -> None:
        try:
            from sacrebleu.metrics.bleu import BLEU as SACREBLEU
        except ImportError:
            raise UnveilError("BLEU needs the library sacrebleu: pip install 'unveil[text]'") from None
        self.sacrebleu: Any = SACREBLEU()
        self.translations: list[str] = []
        self.references: list[str] = []

    def update(self, predictions: Sequence[str], targets: Sequence[str]) -> None:
        """Adds translations and their references, as plain text."""
        self.translations += predictions
        self.references += targets

    def compute(self) -> dict[str, Any]:
        return {"bleu": float(self.sacrebleu.corpus_score(self.translations, [self.references]).score)}


@torch.no_grad()
def translate_tokens(
    translator: Seq2Seq, rows: Sequence[Sequence[int]], *, beams: int, length_penalty: float, batch_size: int = BATCH_SIZE
) -> list[list[int]]:
    """Translates sentences, given and returned as token ids without special tokens. With one beam the search is greedy.

    Args:
        translator: A translator in eval mode, on any device.
        rows: Sentences in any order; those of similar length are translated together. Empty ones stay empty: no pair with an
            empty side is trained on.
        beams: See `unveil.models.beam_search.beam_search`.
        length_penalty: See there.
        batch_size: Number of sentences that are translated together.
    """
    device, most = translator.embedding.device, translator.config.longest
    results, full = [list[int]()] * len(rows), [index for index, row in enumerate(rows) if row]
    if not full:
        return results
    source = Rows([[*rows[index], END] for index in full])
    for indices in source.lengths.argsort(descending=True).split(batch_size):
        lengths = source.lengths[indices]
        longest = (lengths + EXTRA_LENGTH).clamp(max=most).to(device)
        decoder = CachedDecoder(translator, source.padded(indices, int(lengths.max())).to(device), beams)
        if beams == 1:
            found = greedy_search(decoder, longest)
        else:
            found, _ = beam_search(decoder, longest, beams=beams, alpha=length_penalty)
        for index, row in zip(indices.tolist(), found.tolist(), strict=True):
            results[full[index]] = row[: row.index(END)] if END in row else row
    return results


def cross_attention(translator: Seq2Seq, source: Sequence[int], target: Sequence[int]) -> Float[Tensor, "depth T S"]:
    """Attention to the source when each token of a translation, and END, is predicted: the mean over heads, for each block."""
    device = translator.embedding.device
    weights = translator.attention(torch.tensor([[*source, END]], device=device), torch.tensor([[BEGIN, *target]], device=device))
    return weights[:, 0].mean(dim=1).cpu()
