"""Smoothed cross-entropy of a large vocabulary in one pass over the scores instead of ten, for a CPU."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 64
"""Rows that are processed together, so that their scores stay in the caches of a core."""


def smoothed_loss_by_rows(
    scores: Float[Tensor, "N K"], labels: Int[Tensor, " N"], weight: Float[Tensor, " N"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Arguments and results as in `unveil.blocks.smoothed_cross_entropy.smoothed_cross_entropy`."""
    smoothed, exact = LossByRows.apply(scores, labels, weight, smoothing)
    return smoothed, exact


class LossByRows(torch.autograd.Function):
    """Computes the gradient in the forward pass, a few rows at a time, while their scores are in the cache."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, weight: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        gradient, (smoothed, exact) = torch.empty_like(scores), weight.new_zeros(2)
        for rows, label, scale, out in zip(*(x.split(ROWS) for x in (scores, labels, weight, gradient)), strict=True):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
            total = rows.logsumexp(dim=-1)  # (n,)
            loss = total - rows.gather(1, label[:, None])[:, 0]
            exact += (loss * scale).sum()
            smoothed += (torch.lerp(loss, total - rows.mean(dim=-1), smoothing) * scale).sum()
            # The gradient is softmax - (1 - smoothing) x one-hot - smoothing / K.
            shares = rows.sub_(total[:, None]).exp_().sub_(smoothing / rows.shape[1])
            shares.scatter_add_(1, label[:, None], shares.new_full((len(label), 1), smoothing - 1.0))
            out.copy_(shares.mul_(scale[:, None]))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(exact)
        return smoothed, exact

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (of_scores,) = ctx.saved_tensors
        return of_scores * gradient.to(of_scores.dtype), None, None, None
