"""How good predictions are."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """Accuracies between 0 and 1, and who was taken for whom."""

    top1: float
    top5: float
    per_class: list[float]
    """Share of each class's images that were recognised; nan for a class without images."""
    confusion: list[list[int]]
    """Rows are the true classes, columns the predicted ones."""
    count: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain numbers; nan becomes null."""
        return asdict(self) | {"per_class": [x if x == x else None for x in self.per_class]}


def score(scores: Float[Tensor, "n K"], labels: Int[Tensor, " n"]) -> Score:
    """Judges a score for each class against the true classes."""
    classes, scores, labels = scores.shape[1], scores.cpu(), labels.cpu()
    ranked = scores.topk(min(5, classes), dim=1).indices  # (n, 5)
    hits = ranked == labels[:, None]
    confusion = torch.bincount(labels * classes + ranked[:, 0], minlength=classes**2).reshape(classes, classes)
    per_class = confusion.diagonal() / confusion.sum(dim=1)
    return Score(
        hits[:, 0].float().mean().item(), hits.any(dim=1).float().mean().item(), per_class.tolist(), confusion.tolist(), len(labels)
    )
