"""Metrics of the predictions of a task, accumulated over batches."""

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.targets import ClassTargets

MAX_CONFUSION = 1000
"""Maximum number of classes of a confusion matrix. Its size grows with the square of their number."""


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
    """Top-1 and top-5 accuracy, accuracy per class, and the confusion matrix, of one class per sample.

    A sample may have a class that the task has no score for, because training lacks it: its number is `classes` or larger. Such a
    sample counts as wrong, and its class as a class of its own.
    """

    primary = "top1"

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.top5 = 0
        self._pairs = Counter[tuple[int, int]]()  # true and predicted class: there may be too many classes for a matrix

    def update(self, predictions: Float[Tensor, "B K"], targets: ClassTargets) -> None:
        """Adds class scores and true classes. Samples without a class (-1) are ignored."""
        labelled = targets.labels >= 0
        scores, labels = predictions[labelled].cpu(), targets.labels[labelled].cpu()
        ranked = scores.topk(min(5, self.classes), dim=1).indices  # (B, 5)
        self.top5 += int((ranked == labels[:, None]).any(dim=1).sum())
        self._pairs.update(zip(labels.tolist(), ranked[:, 0].tolist(), strict=True))

    def compute(self) -> dict[str, Any]:
        """Accuracies, with the confusion matrix if there are at most `MAX_CONFUSION` classes."""
        classes = max(self.classes, *(true + 1 for true, _ in self._pairs), 0)
        samples, correct = [0] * classes, [0] * classes
        for (true, predicted), count in self._pairs.items():
            samples[true] += count
            correct[true] += count * (true == predicted)
        total = sum(samples)
        found: dict[str, Any] = {
            "top1": sum(correct) / max(total, 1),
            "top5": self.top5 / max(total, 1),
            "per_class": [right / count if count else None for right, count in zip(correct, samples, strict=True)],
        }
        if classes <= MAX_CONFUSION:
            found["confusion"] = [[self._pairs[true, predicted] for predicted in range(classes)] for true in range(classes)]
        return found | {"count": total}


def classification_metrics(scores: Float[Tensor, "n K"], labels: Int[Tensor, " n"]) -> dict[str, Any]:
    """`ClassificationMetric` of all samples at once."""
    metric = ClassificationMetric(scores.shape[1])
    metric.update(scores, ClassTargets(labels))
    return metric.compute()
