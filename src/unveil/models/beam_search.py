"""Beam search (Transformer, section 6.1) for a batch of sentences. With one beam, it is greedy search.

Letters: B sentences, R = B x beams rows, T tokens, K words in the vocabulary.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.blocks.special_tokens import BEGIN, END


class NextWord(Protocol):
    """Predicts the next word. The rows of a sentence, one for each beam, are consecutive."""

    def __call__(self, words: Int[Tensor, " R"], parents: Int[Tensor, " R"]) -> Float[Tensor, "R K"]:
        """Log-probabilities of the next word. Row r continues the previous row `parents[r]` with the word `words[r]`."""


def length_penalty(length: Any, alpha: float) -> Any:
    """The divisor of log-probabilities. Without it, short sentences would be preferred (Wu et al., 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


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
    own = torch.arange(count, device=device)[:, None]
    running = torch.full((count, beams), float("-inf"), device=device)  # log-probabilities; at first, all beams are equal
    running[:, 0] = 0.0
    written = torch.full((count, beams, most), END, device=device)
    best, score = written[:, 0].clone(), running[:, -1].clone().fill_(float("-inf"))
    ended, done = torch.zeros_like(max_lengths), torch.zeros_like(max_lengths, dtype=torch.bool)
    words, parents = torch.full((count * beams,), BEGIN, device=device), torch.arange(count * beams, device=device)
    for length in range(1, most + 1):
        continued = (running.flatten()[:, None] + next_word(words, parents)).view(count, -1)  # (B, beams x K)
        size = continued.shape[1] // beams
        logs, index = continued.topk(min(2 * beams, continued.shape[1]))
        ends = index % size == END

        complete = (logs / length_penalty(length, alpha)).masked_fill(~ends, float("-inf"))[:, :beams]
        value, which = complete.max(dim=1)
        better = (value > score) & ~done
        sentence = written[own[:, 0], index[own[:, 0], which] // size]  # (B, T), already padded with END
        best, score = torch.where(better[:, None], sentence, best), torch.where(better, value, score)
        ended += complete.isfinite().sum(dim=1)

        running, order = logs.masked_fill(ends, float("-inf")).topk(beams)
        index = index.gather(1, order)
        rows = own * beams + index // size
        words, parents = (index % size).flatten(), rows.flatten()
        written = written.flatten(0, 1)[rows]
        written[:, :, length - 1] = words.view(count, beams)
        cut = (length >= max_lengths) & score.isinf() & ~done
        best = torch.where(cut[:, None], written[:, 0], best)
        score = torch.where(cut, running[:, 0] / length_penalty(length, alpha), score)
        bound = running[:, 0] / length_penalty(max_lengths, alpha)  # each further word makes a sentence less likely
        done |= (ended >= beams) | (score >= bound) | (length >= max_lengths)
        if done.all():
            break
    return best, score
