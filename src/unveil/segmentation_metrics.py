"""Metrics of class maps: mean IoU, and accuracies of pixels and of classes, over all pixels of a test set."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.pixels import IGNORE
from unveil.data.targets import PixelTargets
from unveil.metrics import Metric, mean_of

CHUNK = 2**22
"""Pixels that are counted at once, so that a large image needs no more memory than a small one."""


class MeanIoU(Metric):
    """The intersection over union of each class, from sums over all images, and its mean.

    It is not a mean over images: a class that fills a few pixels of one image and all of another counts by its pixels. Pixels that
    are `IGNORE` in the truth count nowhere. A class that is neither in the truth nor predicted is left out of the mean; one that
    is predicted but not in the truth has an IoU of 0, as in MMSegmentation and scikit-learn.

    Args:
        classes: The names of the classes.
    """

    primary = "mean_iou"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.images = 0
        self.confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)

    def update(self, predictions: Int[Tensor, "B H W"], targets: PixelTargets) -> None:
        """Adds predicted classes (B, H, W). Where the truth is `IGNORE`, they may be anything."""
        for predicted, true in zip(predictions, targets.maps, strict=True):  # one by one: a large image needs memory enough
            self.confusion += confusion_of(predicted, true, len(self.classes)).cpu()
        self.images += len(predictions)

    @property
    def absent(self) -> list[str]:
        """The classes without any true pixel."""
        counts = self.confusion.sum(dim=1).tolist()
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]

    def compute(self) -> dict[str, Any]:
        """`mean_iou`, `pixel_accuracy`, `mean_accuracy` of the classes, IoU and accuracy of each, and the confusion matrix."""
        counts = self.confusion.tolist()
        true, predicted = self.confusion.sum(dim=1).tolist(), self.confusion.sum(dim=0).tolist()
        hits = [row[number] for number, row in enumerate(counts)]
        triples = list(zip(hits, true, predicted, strict=True))
        ious = [hit / (real + guessed - hit) if real or guessed else None for hit, real, guessed in triples]
        accuracies = [hit / real if real else None for hit, real, _ in triples]
        found = {
            "mean_iou": mean_of(ious),
            "pixel_accuracy": sum(hits) / total if (total := sum(true)) else None,
            "mean_accuracy": mean_of(accuracies),
            "per_class": ious,
            "per_class_accuracy": accuracies,
            "confusion": counts,
            "unit": "pixels",
            "count": self.images,
        }
        return {key: value for key, value in found.items() if value is not None}


def confusion_of(predicted: Int[Tensor, "H W"], true: Int[Tensor, "H W"], classes: int) -> Int[Tensor, "K K"]:
    """How many pixels of each true class (rows) were predicted as each class (columns), without those that are `IGNORE`."""
    table = torch.zeros(classes * classes, dtype=torch.int64, device=true.device)
    for some, guesses in zip(true.flatten().split(CHUNK), predicted.flatten().split(CHUNK), strict=True):
        known = some != IGNORE
        table += torch.bincount(some[known].long() * classes + guesses[known].long(), minlength=classes * classes)
    return table.reshape(classes, classes)


def iou_of_image(predicted: Int[Tensor, "H W"], true: Int[Tensor, "H W"], classes: int) -> float | None:
    """The mean IoU of the classes that one image has, true or predicted, to find the worst images; None without a known pixel."""
    table = confusion_of(predicted, true, classes)
    hits, union = table.diagonal(), table.sum(dim=0) + table.sum(dim=1) - table.diagonal()
    return float((hits[union > 0] / union[union > 0]).mean()) if bool((union > 0).any()) else None
