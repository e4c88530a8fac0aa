"""Greedy search and beam search (Transformer, section 6.1) for a batch of sentences.

Letters: B sentences, A sentences that are not finished, R = A x beams rows, C candidates, T tokens, K words in the vocabulary.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.fast.top_words import top_words
from unveil.blocks.special_tokens import BEGIN, END

LEAVING = 8
"""Finished sentences leave the batch when they are at least 1/8 of it: each time, what is cached of the others is copied."""


class NextWord(Protocol):
    """Predicts the next word. The rows of a sentence, one for each beam, are consecutive."""

    def __call__(self, words: Int[Tensor, " R"], parents: Int[Tensor, " R"] | None) -> Float[Tensor, "R K"]:
        """Logits of the next word. Row r continues the previous row `parents[r]`, or r if there are none, with `words[r]`.

        There are fewer rows than before if sentences are finished: all rows of a sentence leave together.
        """


def length_penalty(length: Any, alpha: float) -> Any:
    """The divisor of log-probabilities. Without it, short sentences would be preferred (Wu et al., 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def may_leave(done: Bool[Tensor, " A"]) -> bool:
    """Whether enough sentences are finished to leave the batch."""
    count = int(done.sum())
    return count == len(done) or count * LEAVING >= len(done)


@torch.no_grad()
def greedy_search(next_word: NextWord, max_lengths: Int[Tensor, " B"]) -> Int[Tensor, "B T"]:
    """Returns a sentence for each source, padded with `END`, whose words are the likeliest one after the other.

    Args:
        next_word: The model.
        max_lengths: Maximum number of words of each sentence, including `END`.
    """
    device, count, most = max_lengths.device, len(max_lengths), int(max_lengths.max())
    written = torch.full((count, most), END, device=device)
    active, words, parents = torch.arange(count, device=device), torch.full((count,), BEGIN, device=device), None
    done = torch.zeros_like(active, dtype=torch.bool)
    for length in range(1, most + 1):
        words = top_words(next_word(words, parents), 1)[1][:, 0].masked_fill(done, END)
        written[active, length - 1] = words
        done = (words == END) | (max_lengths[active] <= length)
        parents = None
        if may_leave(done):
            parents = (~done).nonzero()[:, 0]
            active, words, done = active[parents], words[parents], done[parents]
            if len(active) == 0:
                break
    return written


@torch.no_grad()
def beam_search(
    next_word: NextWord, max_lengths: Int[Tensor, " B"], *, beams: int, alpha: float
) -> tuple[Int[Tensor, "B T"], Float[Tensor, " B"]]:
    """Returns the best sentence found for each source, padded with `END`, and its score: log-probability over length penalty.

    In each step, those of the `beams` best continuations that end with `END` become complete hypotheses, and the best `beams`
    continuations without `END` are continued. The search stops when `beams` hypotheses are complete, or when no other
    hypothesis can become the best. If no hypothesis is complete at the maximum length, the best one is cut there.

    Args:
        next_word: The model.
        max_lengths: Maximum number of words of each sentence, including `END`.
        beams: Number of hypotheses for each sentence.
        alpha: Exponent of the length penalty: 0 for none, 0.6 in the paper.
    """
    device, count, most = max_lengths.device, len(max_lengths), int(max_lengths.max())
    found, scores = torch.full((count, most), END, device=device), torch.full((count,), float("-inf"), device=device)
    active, limit = torch.arange(count, device=device), max_lengths
    running = torch.full((count, beams), float("-inf"), device=device)  # log-probabilities; at first, all beams are equal
    running[:, 0] = 0.0
    written = torch.full((count, beams, most), END, device=device)
    best, score = found, scores
    ended, done = torch.zeros_like(max_lengths), torch.zeros_like(max_lengths, dtype=torch.bool)
    words, parents = torch.full((count * beams,), BEGIN, device=device), None
    for length in range(1, most + 1):
        # The best continuations of a sentence are among the best ones of each of its beams.
        top, word = top_words(next_word(words, parents).log_softmax(dim=-1), 2 * beams)  # (R, C)
        options = (running.flatten()[:, None] + top).view(len(active), -1)  # (A, beams x C)
        logs, index = options.topk(min(2 * beams, options.shape[1]))
        word, beam = word.view(options.shape).gather(1, index), index // top.shape[1]
        ends = word == END

        complete = (logs / length_penalty(length, alpha)).masked_fill(~ends, float("-inf"))[:, :beams]
        value, which = complete.max(dim=1)
        better = (value > score) & ~done
        own = torch.arange(len(active), device=device)
        sentence = written[own, beam[own, which]]  # (A, T), already padded with END
        best, score = torch.where(better[:, None], sentence, best), torch.where(better, value, score)
        ended += complete.isfinite().sum(dim=1)

        running, order = logs.masked_fill(ends, float("-inf")).topk(beams)
        beam, word = beam.gather(1, order), word.gather(1, order)
        written = written[own[:, None], beam]
        written[:, :, length - 1] = word
        cut = (length >= limit) & score.isinf() & ~done
        best = torch.where(cut[:, None], written[:, 0], best)
        score = torch.where(cut, running[:, 0] / length_penalty(length, alpha), score)
        bound = running[:, 0] / length_penalty(limit, alpha)  # each further word makes a sentence less likely
        done |= (ended >= beams) | (score >= bound) | (length >= limit)
        rows = own[:, None] * beams + beam
        if may_leave(done):
            found[active[done]], scores[active[done]] = best[done], score[done]
            kept = (~done).nonzero()[:, 0]
            if len(kept) == 0:
                break
            states = (active, limit, running, written, best, score, ended, done, word, rows)
            active, limit, running, written, best, score, ended, done, word, rows = (state[kept] for state in states)
        words, parents = word.flatten(), rows.flatten()
    return found, scores
