"""Translation: a Transformer learns from sentence pairs, by label-smoothed cross-entropy (Vaswani et al., 2017, section 5.4)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.smoothed_cross_entropy import smoothed_cross_entropy
from unveil.blocks.special_tokens import BEGIN, END, PAD
from unveil.learner import Learner, Step
from unveil.models.beam_search import beam_search
from unveil.models.seq2seq import Cached, Seq2Seq
from unveil.text.parallel_corpus import PairBatch, Rows

RECENT = 8
"""The average of the weights reaches back over about one part in so many of the run."""
AT_ONCE = 64
"""Sentences that are translated together."""
FURTHER = 50
"""Words by which a translation may be longer than its source (section 6.1)."""


@dataclass(frozen=True, kw_only=True)
class TranslateConfig:
    """How to learn from pairs."""

    smoothing: float = 0.1
    """Label smoothing: share of each word that is spread evenly over the vocabulary."""


class Translation(Learner):
    """A translator that learns, and the average of its weights over the last part of the run, which is the one to keep.

    It stands in for the average of the last checkpoints (section 6.1). Step n is (RECENT + 1) / (RECENT + n) of it (Shamir and
    Zhang, 2013, polynomial decay): at every step it is one of the run so far, and it need not know how long the run will be.
    """

    steps: Tensor

    def __init__(self, translator: Seq2Seq, config: TranslateConfig) -> None:
        super().__init__()
        self.translator, self.config = translator, config
        self.average = copy.deepcopy(translator).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.float32))

    def forward(self, batch: PairBatch) -> Step:
        """Cross-entropy with smoothed words, in the mean over the words of the step; beside it that of the true words alone."""
        scores, words = self.translator(batch.source, batch.target[:, :-1]), batch.target[:, 1:]  # (B, T, K), (B, T)
        weight = torch.where(words == PAD, 0.0, batch.weight[:, None])
        loss, true = smoothed_cross_entropy(scores, words, weight, self.config.smoothing)
        return Step(loss, {"cross_entropy": true})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The average follows."""
        self.steps += 1
        share = (RECENT + 1) / (RECENT + self.steps)
        for mean, weight in zip(self.average.parameters(), self.translator.parameters(), strict=True):
            mean.lerp_(weight, share)

    def train(self, mode: bool = True) -> "Translation":
        """The average never drops anything."""
        super().train(mode)
        self.average.eval()
        return self


@torch.no_grad()
def translated(translator: Seq2Seq, rows: Sequence[Sequence[int]], *, beams: int, alpha: float) -> list[list[int]]:
    """The translations of sentences, all as numbers of words without marks; with one beam the search is greedy.

    Args:
        translator: In eval mode, on any device.
        rows: In any order; those of about one length are translated together.
        beams: See `unveil.models.beam_search.beam_search`.
        alpha: Of the length penalty.
    """
    device, most = translator.embedding.device, translator.config.longest
    source, results = Rows([[*row, END] for row in rows]), [list[int]()] * len(rows)
    for places in source.lengths.argsort(descending=True).split(AT_ONCE):
        lengths = source.lengths[places]
        longest = (lengths + FURTHER).clamp(max=most).to(device)
        following = Cached(translator, source.padded(places, int(lengths.max())).to(device), beams)
        found, _ = beam_search(following, longest, beams=beams, alpha=alpha)
        for place, row in zip(places.tolist(), found.tolist(), strict=True):
            results[place] = row[: row.index(END)] if END in row else row
    return results


def followed(translator: Seq2Seq, source: Sequence[int], target: Sequence[int]) -> Float[Tensor, "depth T S"]:
    """Where each word of a translation, its end too, looked as it was chosen: the mean over the heads of each block."""
    device = translator.embedding.device
    looks = translator.attention(torch.tensor([[*source, END]], device=device), torch.tensor([[BEGIN, *target]], device=device))
    return looks[:, 0].mean(dim=1).cpu()
