"""Mean IoU over a whole set equals scikit-learn's confusion matrix and Jaccard score."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from unveil import segmentation_metrics
from unveil.data.targets import PixelTargets
from unveil.segmentation_metrics import MeanIoU, iou_of_image

CLASSES = list("abcde")


def maps(seed: int, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, classes, (3, 11, 7), generator=generator)
    noise = torch.randint(0, classes, true.shape, generator=generator)
    predicted = torch.where(torch.rand(true.shape, generator=generator) < 0.6, true, noise).to(torch.uint8)
    true[torch.rand(true.shape, generator=generator) < 0.2] = 255
    return predicted, true


@pytest.mark.parametrize("chunk", [2**22, 5])
def test_it_equals_scikit_learn(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_metrics, "CHUNK", chunk)
    metric, pairs = MeanIoU(CLASSES), [maps(seed) for seed in range(4)]
    pairs.append((torch.full((1, 50, 50), 3, dtype=torch.uint8), torch.full((1, 50, 50), 3)))  # which a mean over images would hide
    pairs.append((torch.zeros(1, 9, 9, dtype=torch.uint8), torch.full((1, 9, 9), 255)))  # without any class
    for predicted, true in pairs:
        metric.update(predicted, PixelTargets(true))
    found = metric.compute()
    predicted, true = (np.concatenate([each[i].flatten().numpy() for each in pairs]) for i in range(2))
    known = true != 255
    predicted, true = predicted[known], true[known]
    assert found["confusion"] == confusion_matrix(true, predicted, labels=range(5)).tolist()
    assert found["per_class"] == pytest.approx(jaccard_score(true, predicted, average=None).tolist(), abs=1e-12)
    assert found["mean_iou"] == pytest.approx(jaccard_score(true, predicted, average="macro"), abs=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    assert found["mean_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-12)
    assert (found["count"], found["unit"]) == (14, "pixels")


@pytest.mark.parametrize("is_predicted", [False, True])
def test_a_class_without_true_pixels_is_said(is_predicted: bool) -> None:
    """It is left out of the mean or, if it is predicted nevertheless, has an IoU of 0, as in scikit-learn."""
    metric = MeanIoU(CLASSES)
    predicted, true = maps(0, 4)
    if is_predicted:
        predicted[0, 0] = 4
    metric.update(predicted, PixelTargets(true))
    found = metric.compute()
    assert metric.absent == ["e"]
    assert found["per_class"][4] == (0 if is_predicted else None)
    assert found["per_class_accuracy"][4] is None
    known = true != 255
    assert found["mean_iou"] == pytest.approx(jaccard_score(true[known], predicted[known], average="macro"))


def test_nothing_labelled_is_no_score() -> None:
    metric = MeanIoU(CLASSES)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.uint8), PixelTargets(torch.full((1, 2, 2), 255)))
    assert "mean_iou" not in metric.compute()


def test_the_score_of_one_image() -> None:
    predicted, true = torch.tensor([[0, 1], [1, 4]]), torch.tensor([[0, 0], [1, 255]])
    assert iou_of_image(predicted, true, 5) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert iou_of_image(predicted, torch.full((2, 2), 255), 5) is None
