"""Metrics of the predictions of a task, accumulated over batches."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.targets import ClassTargets


class Metric(ABC):
    """Accumulates predictions and targets over batches, and computes named numbers at the end."""

    primary: ClassVar[str]
    """The most important key of `compute`: it is logged during training and shown first."""

    @abstractmethod
    def update(self, predictions: Any, targets: Any) -> None:
        """Adds a batch: predictions from `Task.predict`, and targets from `Batch.targets`."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The result for all samples added so far, as JSON values. Accuracies are between 0 and 1.

        A report shows every number. It also draws "confusion" (K x K counts, true classes as rows) and "per_class", if present.
        """


class ClassificationMetric(Metric):
    """Top-1 and top-5 accuracy, accuracy per class, and the confusion matrix, of one class per sample."""

    primary = "top1"

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.top5 = 0

    def update(self, predictions: Float[Tensor, "B K"], targets: ClassTargets) -> None:
        """Adds class scores and true classes. Samples without a class (-1) are ignored."""
        labelled = targets.labels >= 0
        scores, labels = predictions[labelled].cpu(), targets.labels[labelled].cpu()
        ranked = scores.topk(min(5, self.classes), dim=1).indices  # (B, 5)
        self.top5 += int((ranked == labels[:, None]).any(dim=1).sum())
        pairs = torch.bincount(labels * self.classes + ranked[:, 0], minlength=self.classes**2)
        self.confusion += pairs.reshape(self.classes, self.classes)

    def compute(self) -> dict[str, Any]:
        count, correct = int(self.confusion.sum()), self.confusion.diagonal()
        per_class = (correct / self.confusion.sum(dim=1)).tolist()  # NaN for a class without samples
        return {
            "top1": int(correct.sum()) / max(count, 1),
            "top5": self.top5 / max(count, 1),
            "per_class": [accuracy if accuracy == accuracy else None for accuracy in per_class],
            "confusion": self.confusion.tolist(),
            "count": count,
        }


def classification_metrics(scores: Float[Tensor, "n K"], labels: Int[Tensor, " n"]) -> dict[str, Any]:
    """`ClassificationMetric` of all samples at once."""
    metric = ClassificationMetric(scores.shape[1])
    metric.update(scores, ClassTargets(labels))
    return metric.compute()
