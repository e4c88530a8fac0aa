"""Cross-entropy with label smoothing (Szegedy et al., 2015), as the Transformer uses it (section 5.4)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unveil.blocks.fast import choose
from unveil.blocks.fast.loss_by_rows import smoothed_loss_by_rows


def smoothed_cross_entropy(
    scores: Float[Tensor, "*B K"], labels: Int[Tensor, "*B"], weight: Float[Tensor, "*B"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The weighted sum of losses with smoothing, to minimise; and the same sum without smoothing and without gradient, to log.

    Args:
        scores: Class scores, for example one for each word of a vocabulary.
        labels: True classes.
        weight: Weight of each loss; 0 for padding.
        smoothing: Share of each label that is spread evenly over the classes.
    """
    scores, labels, weight = scores.flatten(0, -2), labels.flatten(), weight.flatten()
    if choose.loss_by_rows(scores):
        return smoothed_loss_by_rows(scores, labels, weight, smoothing)
    logs = scores.float().log_softmax(dim=-1)  # (N, K)
    exact = F.nll_loss(logs, labels, reduction="none")
    smoothed = torch.lerp(exact, -logs.mean(dim=-1), smoothing)
    return (smoothed * weight).sum(), (exact * weight).sum().detach()
