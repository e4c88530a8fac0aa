"""Metrics of the predictions of a task, accumulated over batches."""

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.targets import ClassTargets

MAX_CONFUSION = 1000
"""Maximum number of classes of a confusion matrix. Its size grows with the square of their number."""
MAX_PROBABILITIES = 2**27
"""Maximum number of probabilities that are kept for AUROC and calibration: 128,000 samples of 1,000 classes."""
BINS = 15
"""Bins of the calibration error (Guo et al., 2017, section 2)."""


class Metric(ABC):
    """Accumulates predictions and targets over batches, and computes named numbers at the end."""

    primary: str
    """The most important key of `compute`: it is logged during training, chooses the best checkpoint, and is shown first."""
    lower_is_better: bool = False
    """Whether the primary number is an error."""

    def primary_for(self, *, has_masks: bool) -> str:
        """`primary` on samples whose objects have masks, or have none."""
        return self.primary

    @abstractmethod
    def update(self, predictions: Any, targets: Any) -> None:
        """Adds a batch: predictions from `Task.predict`, and targets from `Batch.targets`."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The result for all samples added so far, as JSON values. Accuracies are between 0 and 1.

        A report shows every number. It also draws "confusion" (K x K counts, true classes as rows) and "per_class", if present.
        """


class ClassificationMetric(Metric):
    """Accuracies, macro F1, AUROC, calibration and the confusion matrix of one class per sample.

    A sample may have a class that the task has no score for, because training lacks it: its number is `classes` or larger. Such a
    sample counts as wrong, and its class as a class of its own.

    Args:
        classes: The number of classes that have a score.
        primary: The most important number: "top1" or, if rare classes count as much as frequent ones, "balanced_accuracy".
        votes: Whether scores are weights of votes (k-NN), whose shares are the probabilities, and not the input of a softmax.
    """

    def __init__(self, classes: int, primary: str = "top1", *, votes: bool = False) -> None:
        self.classes, self.primary, self.votes = classes, primary, votes
        self.top5 = 0
        self._pairs = Counter[tuple[int, int]]()  # true and predicted class: there may be too many classes for a matrix
        self._probabilities: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._kept = 0

    def update(self, predictions: Float[Tensor, "B K"], targets: ClassTargets) -> None:
        """Adds class scores and true classes. Samples without a class (-1) are ignored."""
        labelled = targets.labels >= 0
        scores, labels = predictions[labelled].cpu(), targets.labels[labelled].cpu()
        ranked = scores.topk(min(5, self.classes), dim=1).indices  # (B, 5)
        self.top5 += int((ranked == labels[:, None]).any(dim=1).sum())
        self._pairs.update(zip(labels.tolist(), ranked[:, 0].tolist(), strict=True))
        self._kept += scores.numel()
        if self._kept <= MAX_PROBABILITIES:
            self._probabilities.append(class_probabilities(scores.float(), votes=self.votes))
            self._labels.append(labels)

    def compute(self) -> dict[str, Any]:
        """Accuracies and macro F1; with the confusion matrix, AUROC and calibration unless there are too many classes or samples.

        Balanced accuracy, macro F1 and AUROC are means over the classes that have test samples, or a prediction (F1), as in
        scikit-learn. AUROC compares each class with all others.
        """
        classes = max(self.classes, *(true + 1 for true, _ in self._pairs), 0)
        samples, predicted, correct = [0] * classes, [0] * classes, [0] * classes
        for (true, guess), count in self._pairs.items():
            samples[true] += count
            predicted[guess] += count
            correct[true] += count * (true == guess)
        total = sum(samples)
        recalls = [right / count if count else None for right, count in zip(correct, samples, strict=True)]
        counts = zip(correct, samples, predicted, strict=True)
        f1 = [2 * right / (count + guesses) for right, count, guesses in counts if count or guesses]
        found: dict[str, Any] = {
            "top1": sum(correct) / max(total, 1),
            "top5": self.top5 / max(total, 1),
            "balanced_accuracy": mean_of(recalls),
            "macro_f1": mean_of(f1),
        }
        if total and self._kept <= MAX_PROBABILITIES:
            probabilities, labels = torch.cat(self._probabilities), torch.cat(self._labels)
            found["auroc"] = mean_of(auroc_of_classes(probabilities, labels))
            found |= calibration(probabilities, labels)
        found["per_class"] = recalls
        if classes <= MAX_CONFUSION:
            found["confusion"] = [[self._pairs[true, guess] for guess in range(classes)] for true in range(classes)]
        return {key: value for key, value in found.items() if value is not None} | {"count": total}


def class_probabilities(scores: Float[Tensor, "n K"], *, votes: bool = False) -> Float[Tensor, "n K"]:
    """The softmax of class scores or, for weights of votes (k-NN), their shares."""
    return scores / scores.sum(dim=1, keepdim=True) if votes else scores.softmax(dim=1)


def mean_of(values: list[float | None] | list[float]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def auroc_of_classes(scores: Float[Tensor, "n K"], labels: Int[Tensor, " n"]) -> list[float | None]:
    """The area under the ROC curve of each class against all others; None for a class without positive or negative samples."""
    return auroc_of_columns(scores, labels[:, None] == torch.arange(scores.shape[1]))


def auroc_of_columns(scores: Float[Tensor, "n K"], positive: Tensor) -> list[float | None]:
    """The area under the ROC curve of each column, from ranks (Mann and Whitney, 1947); ties count half.

    Args:
        scores: Scores.
        positive: (n, K) bool, True where a sample is positive.
    """
    from scipy.stats import rankdata  # imported here, since it takes a while

    found: list[float | None] = []
    for column, truth in zip(scores.double().T, positive.T, strict=True):
        count = int(truth.sum())
        others = len(truth) - count
        if not count or not others:
            found.append(None)
            continue
        ranks = torch.from_numpy(rankdata(column.numpy()))
        found.append((float(ranks[truth].sum()) - count * (count + 1) / 2) / (count * others))
    return found


def calibration(probabilities: Float[Tensor, "n K"], labels: Int[Tensor, " n"]) -> dict[str, Any]:
    """The expected calibration error of the predicted classes (Guo et al., 2017), and what a reliability diagram shows.

    Returns:
        "calibration_error", and "reliability": for each bin of the probability of the predicted class, the number of samples, their
        mean probability, and the share of them that is correct.
    """
    confidence, guess = probabilities.double().max(dim=1)
    correct = (guess == labels).double()
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin holds its upper edge
    rows, error = [], 0.0
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        mean, share = (float(each[inside].mean()) if count else 0.0 for each in (confidence, correct))
        rows.append([count, mean, share])
        error += count / len(labels) * abs(mean - share)
    return {"calibration_error": error, "reliability": rows}


def classification_metrics(scores: Float[Tensor, "n K"], labels: Int[Tensor, " n"], *, votes: bool = False) -> dict[str, Any]:
    """`ClassificationMetric` of all samples at once."""
    metric = ClassificationMetric(scores.shape[1], votes=votes)
    metric.update(scores, ClassTargets(labels))
    return metric.compute()
