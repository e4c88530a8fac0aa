"""Metrics against scikit-learn, in one go and batch by batch."""

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, top_k_accuracy_score

from unveil.data.targets import ClassTargets
from unveil.metrics import ClassificationMetric, classification_metrics


@pytest.mark.parametrize("classes", [3, 8])
@pytest.mark.parametrize("size", [1, 64, 200])
def test_classification_equals_sklearn(classes, size):
    generator = torch.Generator().manual_seed(classes)
    scores, labels = torch.randn(200, classes, generator=generator), torch.randint(0, classes - 1, (200,), generator=generator)
    metric = ClassificationMetric(classes)
    for part, truth in zip(scores.split(size), labels.split(size), strict=True):
        metric.update(part, ClassTargets(truth))
    found, best, names = metric.compute(), scores.argmax(dim=1).numpy(), list(range(classes))
    assert found["count"] == 200
    assert found[metric.primary] == found["top1"] == pytest.approx(accuracy_score(labels, best))
    expected = top_k_accuracy_score(labels, scores.numpy(), k=5, labels=names) if classes > 5 else 1
    assert found["top5"] == pytest.approx(expected)
    assert found["confusion"] == confusion_matrix(labels, best, labels=names).tolist()
    recall = recall_score(labels, best, labels=names[:-1], average=None)
    assert found["per_class"][:-1] == pytest.approx(recall)
    assert found["per_class"][-1] is None  # no sample has the last class
    assert classification_metrics(scores, labels) == found


def test_samples_without_a_class_are_left_out():
    scores, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, -1, 1, -1])
    found = classification_metrics(scores, labels)
    assert (found["count"], found["top1"]) == (2, 0.5)
    assert found["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_classes_that_training_lacks_count_as_wrong():
    scores, labels = torch.eye(3)[[0, 1, 2, 0, 1]], torch.tensor([0, 1, 1, 3, 4])  # classes 3 and 4 have no score
    found = classification_metrics(scores, labels)
    best, names = scores.argmax(dim=1), list(range(5))
    assert (found["count"], found["top1"], found["top5"]) == (5, 2 / 5, 3 / 5)
    assert found["top1"] == accuracy_score(labels, best)
    assert found["confusion"] == confusion_matrix(labels, best, labels=names).tolist()
    assert found["per_class"] == [1.0, 0.5, None, 0.0, 0.0]


def test_memory_does_not_grow_with_the_square_of_the_classes():
    classes = 100_000  # a matrix would take 80 GB
    metric = ClassificationMetric(classes)
    for first in (0, 50_000):
        scores = torch.zeros(4, classes)
        scores[torch.arange(4), first + torch.arange(4)] = 1
        metric.update(scores, ClassTargets(first + torch.tensor([0, 1, 2, 9])))
    found = metric.compute()
    assert (found["count"], found["top1"], len(found["per_class"])) == (8, 6 / 8, classes)
    assert "confusion" not in found
