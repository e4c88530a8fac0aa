"""Beam search (Transformer, section 6.1), many sentences at once; with one beam it is greedy."""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.blocks.special_tokens import BEGIN, END


class Next(Protocol):
    """What knows the next word. R rows are the beams of the sentences, those of a sentence side by side."""

    def __call__(self, words: Int[Tensor, " R"], parents: Int[Tensor, " R"]) -> Float[Tensor, "R K"]:
        """Log-probabilities of what follows, after row r has gone on with the row `parents[r]` of before, and `words[r]`."""


def penalty(length: Any, alpha: float) -> Any:
    """What log-probabilities of so many words are divided by: else short sentences would win (Wu et al., 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


@torch.no_grad()
def beam_search(
    following: Next, longest: Int[Tensor, " B"], *, beams: int, alpha: float
) -> tuple[Int[Tensor, "B T"], Float[Tensor, " B"]]:
    """The best sentence that was found for each, padded with `END`, and its log-probability over the penalty of its length.

    Of all ways to go on, the best `beams` are looked at: those that end are done, and the best `beams` that do not end go on. A
    sentence is finished when as many have ended as there are beams, or when none that goes on could still win. One that nothing
    ended for is cut at its longest.

    Args:
        following: Says what follows.
        longest: Words of each sentence at most, its `END` included.
        beams: Sentences that are followed at a time.
        alpha: Of the penalty: 0 for none; 0.6 in the paper.
    """
    device, count, most = longest.device, len(longest), int(longest.max())
    own = torch.arange(count, device=device)[:, None]
    running = torch.full((count, beams), float("-inf"), device=device)  # log-probabilities; the beams are all alike at first
    running[:, 0] = 0.0
    written = torch.full((count, beams, most), END, device=device)
    best, score = written[:, 0].clone(), running[:, -1].clone().fill_(float("-inf"))
    ended, done = torch.zeros_like(longest), torch.zeros_like(longest, dtype=torch.bool)
    words, parents = torch.full((count * beams,), BEGIN, device=device), torch.arange(count * beams, device=device)
    for length in range(1, most + 1):
        ways = (running.flatten()[:, None] + following(words, parents)).view(count, -1)  # (B, beams x K)
        size = ways.shape[1] // beams
        chances, places = ways.topk(min(2 * beams, ways.shape[1]))
        ends = places % size == END

        closing = (chances / penalty(length, alpha)).masked_fill(~ends, float("-inf"))[:, :beams]
        value, which = closing.max(dim=1)
        better = (value > score) & ~done
        before = written[own[:, 0], places[own[:, 0], which] // size]  # (B, T): END is there already
        best, score = torch.where(better[:, None], before, best), torch.where(better, value, score)
        ended += closing.isfinite().sum(dim=1)

        running, order = chances.masked_fill(ends, float("-inf")).topk(beams)
        places = places.gather(1, order)
        rows = own * beams + places // size
        words, parents = (places % size).flatten(), rows.flatten()
        written = written.flatten(0, 1)[rows]
        written[:, :, length - 1] = words.view(count, beams)
        cut = (length >= longest) & score.isinf() & ~done
        best = torch.where(cut[:, None], written[:, 0], best)
        score = torch.where(cut, running[:, 0] / penalty(length, alpha), score)
        hope = running[:, 0] / penalty(longest, alpha)  # each further word makes it less likely
        done |= (ended >= beams) | (score >= hope) | (length >= longest)
        if done.all():
            break
    return best, score
