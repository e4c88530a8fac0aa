"""The fits from which heads start, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from unveil.evaluate.label_fits import RIDGE_PENALTIES, LabelRegressions, fit_labels, fit_ridge


def drawn(samples: int = 300, width: int = 8, labels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of different scales, and labels of which a fifth is unknown."""
    chance = np.random.default_rng(0)
    rows = chance.normal(2, 1, (samples, width)) * np.linspace(0.1, 5, width)
    values = (rows[:, :8] @ chance.normal(0, 1, (8, labels)) / 5 + chance.normal(0, 1, (samples, labels)) > 2).astype(float)
    values[chance.random(values.shape) < 0.2] = np.nan
    return torch.from_numpy(rows).float(), torch.from_numpy(values).float()


@pytest.mark.parametrize(("penalty", "width"), [(1e-1, 8), (1e-3, 8), (1e-1, 400)])
def test_each_label_is_a_logistic_regression_of_its_own(penalty: float, width: int) -> None:
    rows, values = drawn(width=width)
    regression = LabelRegressions(rows, values, values.shape[1])
    weight, bias = regression.fit(penalty, tolerance=1e-7)
    plain = StandardScaler().fit_transform(rows.double().numpy())
    for label in range(values.shape[1]):
        known = ~values[:, label].isnan().numpy()
        theirs = Theirs(C=1 / (known.sum() * penalty), tol=1e-8, max_iter=1000)
        theirs.fit(plain[known], values[known, label].numpy())
        np.testing.assert_allclose(weight[label], theirs.coef_[0], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(bias[label], theirs.intercept_[0], rtol=2e-3, atol=2e-3)


def test_the_head_is_for_features_as_they_are() -> None:
    rows, values = drawn()
    weight, bias = fit_labels(rows, values)
    logits = rows @ weight.T + bias
    known = ~values.isnan()
    guesses = (logits > 0) == (values == 1)
    assert float(guesses[known].float().mean()) > 0.75
    base = torch.stack([values[known[:, k], k].mean() for k in range(3)])
    assert float(torch.maximum(base, 1 - base).mean()) < 0.75
    torch.testing.assert_close(
        torch.stack([logits[known[:, k], k].sigmoid().mean() for k in range(3)]), base, rtol=0.02, atol=0.01
    )  # a fit with a free bias has the mean of its labels


def test_a_label_without_samples_of_one_kind() -> None:
    rows, values = drawn()
    values[:, 1] = 0
    weight, bias = fit_labels(rows, values)
    assert bool(weight.isfinite().all() and bias.isfinite().all())
    assert float((rows @ weight[1] + bias[1]).max()) < 0


def test_ridge() -> None:
    rows, _ = drawn()
    numbers = rows @ torch.linspace(-1, 1, 8) + 1000 + torch.randn(300, generator=torch.Generator().manual_seed(0))
    weight, bias = fit_ridge(rows, numbers)
    theirs = RidgeCV(RIDGE_PENALTIES).fit(StandardScaler().fit_transform(rows.double().numpy()), numbers.double().numpy())
    wanted = theirs.predict(StandardScaler().fit_transform(rows.double().numpy()))
    np.testing.assert_allclose((rows @ weight.T + bias)[:, 0], wanted, rtol=1e-5)
    groups = torch.arange(300) // 3
    weight, bias = fit_ridge(rows, numbers, groups=groups)
    assert float(((rows @ weight.T + bias)[:, 0] - numbers).abs().mean()) < 1
