"""Cross-entropy over a large vocabulary with smoothed labels (Transformer, section 5.4), in one pass over the scores."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 64
"""Rows whose scores are worked on together, so that they stay in the caches of a core."""


def smoothed_cross_entropy(
    scores: Float[Tensor, "*B K"], words: Int[Tensor, "*B"], weight: Float[Tensor, "*B"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The weighted sum over all words, with smoothing to descend, and without it (and without gradient) to read.

    Args:
        scores: Of each word of the vocabulary.
        words: The true ones.
        weight: What each counts; 0 for padding.
        smoothing: Share of each label that is spread evenly over the vocabulary.
    """
    scores, words, weight = scores.flatten(0, -2), words.flatten(), weight.flatten()
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        smooth, true = InRows.apply(scores, words, weight, smoothing)
        return smooth, true
    return smoothed_plainly(scores, words, weight, smoothing)


def smoothed_plainly(
    scores: Float[Tensor, "N K"], words: Int[Tensor, " N"], weight: Float[Tensor, " N"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The same as it stands in the paper: what the other way is tested against, and what a GPU runs."""
    logs = scores.float().log_softmax(dim=-1)
    true = F.nll_loss(logs, words, reduction="none")
    return (torch.lerp(true, -logs.mean(dim=-1), smoothing) * weight).sum(), (true * weight).sum().detach()


class InRows(torch.autograd.Function):
    """Some rows at a time, with the gradient made while their scores are at hand: one pass over memory instead of ten."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, words: Tensor, weight: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        gradient, (smooth, true) = torch.empty_like(scores), weight.new_zeros(2)
        for rows, word, scale, out in zip(*(x.split(ROWS) for x in (scores, words, weight, gradient)), strict=True):
            exact = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
            total = exact.logsumexp(dim=-1)  # (n,)
            missed = total - exact.gather(1, word[:, None])[:, 0]
            true += (missed * scale).sum()
            smooth += (torch.lerp(missed, total - exact.mean(dim=-1), smoothing) * scale).sum()
            shares = exact.sub_(total[:, None]).exp_().sub_(smoothing / rows.shape[1])
            shares.scatter_add_(1, word[:, None], shares.new_full((len(word), 1), smoothing - 1.0))
            out.copy_(shares.mul_(scale[:, None]))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(true)
        return smooth, true

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (each,) = ctx.saved_tensors
        return each * gradient.to(each.dtype), None, None, None
