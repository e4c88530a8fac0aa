"""The files with the predictions of a task whose labels are not classes: labels, or a number."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unveil.atomic_files import replacing
from unveil.data.label_values import SEPARATOR
from unveil.data.splits import Subset
from unveil.label_metrics import THRESHOLD
from unveil.learner import Task
from unveil.plain_text import csv_cell


class Judged(NamedTuple):
    """Predictions beside the truth, as people read them."""

    true: list[str]
    """"cat|dog" or "13"; "" if it is unknown."""
    predicted: list[str]
    error: Tensor
    """(n,) how wrong each prediction is: the sum of the cross-entropies of its labels, or the predicted minus the true number."""
    is_wrong: Tensor
    """(n,) whether a prediction is wrong."""
    measure: str
    """What `error` is: "loss" or "error"."""


def judged(task: Task, subset: Subset, predictions: Tensor) -> Judged:
    """Compares predictions with the labels of images.

    Args:
        task: The trained task.
        subset: The images.
        predictions: The results of `Task.predict` for them: logits (n, K) or numbers (n,).
    """
    values = torch.from_numpy(np.asarray(subset.dataset.source.values))[subset.indices]
    if values.ndim == 1:
        error = predictions.double() - values
        true, guesses = ([number(x) for x in each.tolist()] for each in (values, predictions.double()))
        return Judged(true, guesses, error, error != 0, "error")
    columns, known = task.columns(predictions), ~values.isnan()
    guess = task.probabilities(predictions) >= THRESHOLD
    losses = F.binary_cross_entropy_with_logits(predictions.double(), values.double().nan_to_num(0.0), reduction="none")
    true = [SEPARATOR.join(task.classes[i] for i in (row == 1).nonzero()[:, 0].tolist()) for row in values]
    is_wrong = (known & (guess != (values == 1))).any(dim=1)
    return Judged(true, columns["labels"].tolist(), (losses * known).sum(dim=1), is_wrong, "loss")


def number(value: float) -> str:
    """A number for people; "" for NaN."""
    return "" if value != value else f"{value:.7g}"


def write_values(path: Path, subset: Subset, predictions: Tensor, found: Judged, task: Task) -> None:
    """Writes a table with one row per image: its name, its labels, the predicted ones and, of labels, the logit of each."""
    heads = ["file", "value", "predicted"]
    scores: list[list[str]] = [[] for _ in range(len(predictions))]
    if predictions.ndim == 2:
        heads = ["file", "labels", "predicted", *(csv_cell(f"score {name}") for name in task.classes)]
        scores = [[f"{x:.6g}" for x in row] for row in predictions.tolist()]
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        for name, true, guess, row in zip(subset.names, found.true, found.predicted, scores, strict=True):
            writer.writerow([csv_cell(name), csv_cell(true), csv_cell(guess), *row])


def worst(found: Judged, count: int) -> Tensor:
    """The rows of the wrong predictions with the largest errors, the largest first."""
    wrong = found.is_wrong.nonzero()[:, 0]
    return wrong[found.error[wrong].abs().argsort(descending=True, stable=True)[:count]]
