"""Metrics against scikit-learn, in one go and batch by batch."""

import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

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
    assert found["balanced_accuracy"] == pytest.approx(recall.mean())
    assert found["macro_f1"] == pytest.approx(f1_score(labels, best, average="macro"))
    one_against_rest = [roc_auc_score(labels == name, scores.softmax(dim=1)[:, name]) for name in names[:-1]]
    assert found["auroc"] == pytest.approx(sum(one_against_rest) / len(one_against_rest))


def test_rare_classes_count_as_much_as_frequent_ones():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    scores = torch.randn(100, 3, generator=generator) + torch.tensor([2.0, 0.0, 0.0])
    scores[1, 0] = scores[2, 0] = scores[50, 0]  # ties
    found, best = classification_metrics(scores, labels), scores.argmax(dim=1)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, best))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, best, average="macro"))
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores.softmax(dim=1), multi_class="ovr", average="macro"))
    assert found["balanced_accuracy"] < 0.5 < found["top1"]


def test_two_classes_have_the_auroc_of_scikit_learn():
    scores, labels = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2
    expected = roc_auc_score(labels, scores.softmax(dim=1)[:, 1])
    assert classification_metrics(scores, labels)["auroc"] == pytest.approx(expected)


def test_the_calibration_error_by_hand():
    """Four samples with a probability of 0.9, of which three are right, and one of 0.6, which is wrong."""
    logits = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6]).logit()
    scores = torch.stack([logits, torch.zeros(5)], dim=1)
    found = classification_metrics(scores, torch.tensor([0, 0, 0, 1, 1]))
    assert found["calibration_error"] == pytest.approx(4 / 5 * abs(0.9 - 0.75) + 1 / 5 * 0.6, abs=1e-6)
    full = [row for row in found["reliability"] if row[0]]
    assert full == [[1, pytest.approx(0.6), 0.0], [4, pytest.approx(0.9), 0.75]]


def test_votes_are_shares_not_logits():
    votes = torch.tensor([[3.0, 1.0], [1.0, 3.0], [4.0, 0.0], [2.0, 2.5]])
    found = classification_metrics(votes, torch.tensor([0, 1, 0, 0]), votes=True)
    assert sum(count * mean for count, mean, _ in found["reliability"]) == pytest.approx(0.75 + 0.75 + 1 + 2.5 / 4.5)


def test_one_class_in_the_test_set_has_no_auroc():
    found = classification_metrics(torch.eye(3), torch.zeros(3, dtype=torch.int64))
    assert "auroc" not in found
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)


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
