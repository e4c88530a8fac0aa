"""Metrics of labels and of numbers, equal to those of scikit-learn."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.data.targets import MultiLabelTargets, NumberTargets
from unveil.metrics import Metric, auroc_of_columns, mean_of

THRESHOLD = 0.5
"""A label is predicted if its probability is at least this."""
MAX_POINTS = 1000
"""Maximum number of points of the scatter plot of true and predicted numbers."""


class MultiLabelMetric(Metric):
    """Mean average precision, AUROC, F1 and accuracy of any number of labels per sample.

    Unknown labels (NaN) count nowhere. Means over the labels leave out those for which a number is not defined, of which
    scikit-learn warns: average precision needs a positive sample, AUROC also a negative one, and F1 a positive one or a prediction.

    Args:
        classes: Number of labels.
    """

    primary = "mean_ap"

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._logits: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, predictions: Float[Tensor, "B K"], targets: MultiLabelTargets) -> None:
        """Adds logits and true labels. Samples of which no label is known are ignored."""
        known = ~targets.values.isnan().all(dim=1)
        self._logits.append(predictions[known].float().cpu())
        self._values.append(targets.values[known].cpu())

    def compute(self) -> dict[str, Any]:
        """`mean_ap` is macro-averaged; `exact_match` is the share of samples of which every known label is right.

        Per label there are the average precision (`per_class`), AUROC, F1 and the number of positive samples.
        """
        logits = torch.cat(self._logits) if self._logits else torch.empty(0, self.classes)
        values = torch.cat(self._values) if self._values else torch.empty(0, self.classes)
        known, positive = ~values.isnan(), values == 1  # (n, K)
        guess = (logits.sigmoid() >= THRESHOLD) & known
        right, guessed, actual = (each.sum(dim=0) for each in (guess & positive, guess, positive))  # (K,)
        precision, areas, f1 = list[float | None](), list[float | None](), list[float | None]()
        for column in range(values.shape[1]):
            rows = known[:, column]
            scores, truth = logits[rows, column], positive[rows, column]
            precision.append(average_precision(scores, truth))
            areas += auroc_of_columns(scores[:, None], truth[:, None])
            total = int(actual[column] + guessed[column])
            f1.append(2 * int(right[column]) / total if total else None)
        everything = int(actual.sum() + guessed.sum())
        exact = (guess == positive).all(dim=1)
        found = {
            "mean_ap": mean_of(precision),
            "auroc": mean_of(areas),
            "macro_f1": mean_of(f1),
            "micro_f1": 2 * int(right.sum()) / everything if everything else None,
            "exact_match": float(exact.double().mean()) if len(exact) else None,
            "per_class": precision,
            "per_class_AUROC": areas,
            "per_class_F1": f1,
        }
        return {key: value for key, value in found.items() if value is not None} | {"count": len(values)}


def average_precision(scores: Float[Tensor, " n"], positive: Tensor) -> float | None:
    """The area under the curve of precision and recall, as a sum of steps (scikit-learn's `average_precision_score`).

    Args:
        scores: Scores; equal ones are one step.
        positive: (n,) bool.

    Returns:
        None if no sample is positive.
    """
    total = int(positive.sum())
    if not total:
        return None
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], positive[order].double().cumsum(dim=0)
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]  # the last of equal scores
    found = hits[last]
    precision = found / (last.nonzero()[:, 0] + 1)
    gained = torch.diff(found, prepend=found.new_zeros(1)) / total
    return float((precision * gained).sum())


class RegressionMetric(Metric):
    """Mean absolute error, root mean squared error and R2 of one number per sample, beside always predicting the mean.

    Args:
        mean: The mean of the numbers of the train set.
    """

    primary = "mae"
    lower_is_better = True

    def __init__(self, mean: float) -> None:
        self.mean = mean
        self._predicted: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, predictions: Float[Tensor, " B"], targets: NumberTargets) -> None:
        """Adds predicted and true numbers. Samples without a number (NaN) are ignored."""
        known = ~targets.values.isnan()
        self._predicted.append(predictions[known].double().cpu())
        self._values.append(targets.values[known].double().cpu())

    def compute(self) -> dict[str, Any]:
        """R2 compares with the mean of the test set, as in scikit-learn, and is left out if its numbers are all the same.

        "scatter" has up to 1,000 pairs of a true and a predicted number, evenly spaced.
        """
        if not self._values or not sum(map(len, self._values)):
            return {"count": 0}
        predicted, values = torch.cat(self._predicted), torch.cat(self._values)
        errors = predicted - values
        around = (values - values.mean()).square().sum()
        some = torch.linspace(0, len(values) - 1, min(MAX_POINTS, len(values))).long()
        found = {
            "mae": float(errors.abs().mean()),
            "rmse": float(errors.square().mean().sqrt()),
            **({"r2": 1 - float(errors.square().sum() / around)} if float(around) else {}),
            "mae_of_mean": float((values - self.mean).abs().mean()),
            "scatter": torch.stack([values[some], predicted[some]], dim=1).tolist(),
        }
        return found | {"count": len(values)}
