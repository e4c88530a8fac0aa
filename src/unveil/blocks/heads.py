"""A classification head for features, and its loss."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.distributed import RunningBatchNorm


class ProbeHead(nn.Module):
    """A batch norm without affine parameters, then a linear layer (MAE, appendix A.1): features (B, D) to class scores (B, K)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = RunningBatchNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        scores: Tensor = self.linear(self.norm(features.float()))
        return scores

    def folded(self) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
        """Weight and bias of one linear layer with the same scores in eval mode: the batch norm is folded into it."""
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        weight = self.linear.weight.detach() / (self.norm.running_var + self.norm.eps).sqrt()
        return weight, self.linear.bias.detach() - weight @ self.norm.running_mean


def cross_entropy_with_accuracy(scores: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy, and the accuracy as a metric."""
    return F.cross_entropy(scores.float(), labels), {"accuracy": (scores.argmax(dim=1) == labels).float().mean()}
