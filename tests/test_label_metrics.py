"""Metrics of labels and numbers against scikit-learn, with ties, unknown labels, and labels that never occur."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

from unveil.data.targets import MultiLabelTargets, NumberTargets
from unveil.label_metrics import MultiLabelMetric, RegressionMetric, average_precision


def drawn(samples: int = 200, labels: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits rounded to tenths, so that there are ties; and labels that follow them, noisily."""
    chance = np.random.default_rng(seed)
    logits = (chance.normal(-1, 1.5, (samples, labels))).round(1)
    values = (logits + chance.normal(0, 1.5, logits.shape) > 0).astype(float)
    return torch.from_numpy(logits).float(), torch.from_numpy(values).float()


def computed(logits: torch.Tensor, values: torch.Tensor) -> dict[str, Any]:
    metric = MultiLabelMetric(values.shape[1])
    for part in torch.arange(len(values)).split(37):
        metric.update(logits[part], MultiLabelTargets(values[part]))
    return metric.compute()


def test_labels_as_scikit_learn() -> None:
    logits, values = drawn()
    found = computed(logits, values)
    truth, scores, guess = values.numpy().astype(int), logits.numpy(), logits.numpy() >= 0
    for mine, average in (("per_class", None), ("mean_ap", "macro")):
        assert found[mine] == pytest.approx(theirs.average_precision_score(truth, scores, average=average))
    assert found["auroc"] == pytest.approx(theirs.roc_auc_score(truth, scores, average="macro"))
    assert found["per_class_AUROC"] == pytest.approx(theirs.roc_auc_score(truth, scores, average=None))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(truth, guess, average="macro"))
    assert found["micro_f1"] == pytest.approx(theirs.f1_score(truth, guess, average="micro"))
    assert found["per_class_F1"] == pytest.approx(theirs.f1_score(truth, guess, average=None))
    assert found["exact_match"] == pytest.approx(theirs.accuracy_score(truth, guess))
    assert found["count"] == 200


def test_unknown_labels_count_nowhere() -> None:
    logits, values = drawn(seed=1)
    chance = torch.Generator().manual_seed(0)
    values[torch.rand(values.shape, generator=chance) < 0.3] = torch.nan
    values[7] = torch.nan
    found = computed(logits, values)
    known = ~values.isnan().numpy()
    for label in range(values.shape[1]):
        rows = known[:, label]
        truth, scores = values[rows, label].numpy(), logits[rows, label].numpy()
        assert found["per_class"][label] == pytest.approx(theirs.average_precision_score(truth, scores))
        assert found["per_class_AUROC"][label] == pytest.approx(theirs.roc_auc_score(truth, scores))
        assert found["per_class_F1"][label] == pytest.approx(theirs.f1_score(truth, scores >= 0))
    assert found["mean_ap"] == pytest.approx(np.mean(found["per_class"]))
    flat = known.nonzero()
    assert found["micro_f1"] == pytest.approx(theirs.f1_score(values.numpy()[flat], logits.numpy()[flat] >= 0))
    assert found["count"] == int((~values.isnan().all(dim=1)).sum()) < 200
    right = ((logits >= 0) == (values == 1)) | values.isnan()
    assert found["exact_match"] == pytest.approx(float(right[~values.isnan().all(dim=1)].all(dim=1).float().mean()))


def test_labels_that_never_occur_are_left_out() -> None:
    """scikit-learn warns, and returns 0 or NaN for them."""
    logits, values = drawn(labels=4, seed=2)
    values[:, 1], values[:, 2] = 0, 1
    logits[:, 1] = -5
    found = computed(logits, values)
    assert (found["per_class"][1], found["per_class_AUROC"][1], found["per_class_F1"][1]) == (None, None, None)
    assert (found["per_class"][2], found["per_class_AUROC"][2]) == (1.0, None)
    truth, scores = values.numpy().astype(int), logits.numpy()
    kept = [0, 2, 3]
    assert found["mean_ap"] == pytest.approx(theirs.average_precision_score(truth[:, kept], scores[:, kept]))
    assert found["auroc"] == pytest.approx(theirs.roc_auc_score(truth[:, [0, 3]], scores[:, [0, 3]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["macro_f1"] == pytest.approx(theirs.f1_score(truth, scores >= 0, average="macro", zero_division=np.nan))
    nothing = computed(logits, torch.zeros_like(values))
    assert "mean_ap" not in nothing
    assert "auroc" not in nothing


def test_average_precision_of_equal_scores() -> None:
    assert average_precision(torch.zeros(4), torch.tensor([True, False, False, False])) == 0.25
    assert average_precision(torch.tensor([2.0, 1.0]), torch.tensor([False, False])) is None


def test_numbers_as_scikit_learn() -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(13, 5, 2300)
    predicted = values + chance.normal(0.5, 3, len(values))
    truth, guess = torch.from_numpy(values).float(), torch.from_numpy(predicted).float()
    missing = torch.zeros(len(truth), dtype=torch.bool)
    missing[::10] = True
    metric = RegressionMetric(12.0)
    for part in torch.arange(len(truth)).split(64):
        metric.update(guess[part], NumberTargets(torch.where(missing, torch.nan, truth)[part]))
    found, kept = metric.compute(), (~missing).numpy()
    mine, right = guess.numpy()[kept], truth.numpy()[kept]
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(right, mine))
    assert found["rmse"] == pytest.approx(theirs.root_mean_squared_error(right, mine))
    assert found["r2"] == pytest.approx(theirs.r2_score(right, mine), abs=1e-6)
    assert found["mae_of_mean"] == pytest.approx(theirs.mean_absolute_error(right, np.full_like(right, 12)))
    assert found["count"] == kept.sum()
    assert len(found["scatter"]) == 1000
    assert found["scatter"][0] == pytest.approx([right[0], mine[0]])
    assert found["scatter"][-1] == pytest.approx([right[-1], mine[-1]])


def test_equal_numbers_have_no_r2() -> None:
    metric = RegressionMetric(2.0)
    metric.update(torch.tensor([1.0, 3.0]), NumberTargets(torch.tensor([2.0, 2.0])))
    assert "r2" not in metric.compute()
    assert RegressionMetric(2.0).compute() == {"count": 0}
