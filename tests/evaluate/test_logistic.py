"""Logistic regression by L-BFGS, against scikit-learn; and whitened k-NN."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import linear_model
from sklearn.covariance import ledoit_wolf

from unveil.evaluate import logistic
from unveil.evaluate.knn import knn_scores, shrunk_covariance, whiten
from unveil.evaluate.logistic import LogisticRegression, choose_penalty, fit_logistic, parts_of


def samples(count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes in correlated features, with means far from 0 and standard deviations from 0.01 to 10."""
    chance = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    mixing = torch.randn(width, width, generator=fixed) / width**0.5
    centres = 0.6 * torch.randn(classes, width, generator=fixed)
    labels = torch.randint(classes, (count,), generator=chance)
    plain = (torch.randn(count, width, generator=chance) + centres[labels]) @ mixing
    return plain * torch.logspace(-2, 1, width) + torch.linspace(-5, 5, width), labels


@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_it_reaches_the_loss_and_accuracy_of_scikit_learn(penalty: float) -> None:
    features, labels = samples(3000, 24, 5)
    test, test_labels = samples(2000, 24, 5, seed=1)
    task, chosen = fit_logistic(features, labels, [str(i) for i in range(5)], penalties=(penalty,))
    assert chosen == penalty
    mean, deviation = features.double().mean(0), features.double().std(0, correction=0)
    plain = ((features - mean) / deviation).numpy()
    peer = linear_model.LogisticRegression(C=1 / (3000 * penalty), tol=1e-8, max_iter=5000).fit(plain, labels.numpy())

    def loss(weight: np.ndarray, bias: np.ndarray) -> float:
        scores = torch.from_numpy(plain @ weight.T + bias)
        return float(torch.nn.functional.cross_entropy(scores, labels)) + penalty / 2 * float(np.square(weight).sum())

    ours = loss(task.head.linear.weight.detach().double().numpy(), task.head.linear.bias.detach().double().numpy())
    assert ours <= loss(peer.coef_, peer.intercept_) * (1 + 1e-4)
    with torch.no_grad():
        accuracy = float((task.logits(test).argmax(dim=1) == test_labels).float().mean())
    assert accuracy == pytest.approx(peer.score(((test - mean) / deviation).numpy(), test_labels.numpy()), abs=1e-3)
    assert 0.3 < accuracy < 0.95


def test_the_gradient_is_that_of_autograd_in_any_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = samples(500, 8, 3)
    joint = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mean, deviation = features.double().mean(0), (features.double().var(0, correction=0) + 1e-6).sqrt()
    scores = (features - mean) / deviation @ joint[:, :8].double().T + joint[:, 8]
    expected = torch.nn.functional.cross_entropy(scores, labels) + 0.05 * joint[:, :8].square().sum()
    expected.backward()
    for rows, copy in ((64, 0), (4096, 4000)):
        monkeypatch.setattr(logistic, "MAX_ROWS", rows)
        monkeypatch.setattr(logistic, "MAX_COPY", copy)
        regression = LogisticRegression(features, labels, 3)
        torch.testing.assert_close(regression.deviation, deviation.float())
        loss, gradient = regression.loss_and_gradient(joint.detach(), 0.1)
        torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, joint.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", [1e-1, 1e-2])
def test_fewer_samples_than_features(penalty: float) -> None:
    features, labels = samples(60, 200, 3)
    test, _ = samples(50, 200, 3, seed=1)
    mean, deviation = features.double().mean(0), (features.double().var(0, correction=0) + 1e-6).sqrt()
    plain, plain_test = (((each - mean) / deviation).numpy() for each in (features, test))
    peer = linear_model.LogisticRegression(C=1 / (60 * penalty), tol=1e-8, max_iter=5000).fit(plain, labels.numpy())
    regression = LogisticRegression(features, labels, 3)
    strict = {"tolerance": 1e-7, "max_steps": 2000}
    weight, bias = regression.fit(penalty, **strict)
    ours = torch.nn.functional.linear(torch.from_numpy(plain_test).float(), weight, bias).log_softmax(dim=1)
    torch.testing.assert_close(ours, torch.from_numpy(peer.predict_log_proba(plain_test)).float(), atol=0.02, rtol=0.01)
    again, _ = regression.fit(penalty, regression.fit(10 * penalty), **strict)
    torch.testing.assert_close(again, weight, atol=1e-3, rtol=0.02)


def test_the_penalty_is_the_best_on_images_kept_aside() -> None:
    """Few samples in many dimensions need a strong one, many samples in few a weak one."""
    few, labels = samples(60, 100, 3)
    many, more = samples(8000, 6, 3)
    strong = choose_penalty(few, labels, 3, logistic.PENALTIES, None, 0)
    weak = choose_penalty(many, more, 3, logistic.PENALTIES, None, 0)
    assert strong > weak
    assert fit_logistic(few, labels, ["a", "b", "c"])[1] == strong


def test_a_plateau_does_not_end_the_choice_of_the_penalty() -> None:
    """With one frequent class, strong penalties all predict it, with the same accuracy."""
    features, labels = samples(6000, 6, 3)
    kept = (labels == 0) | (torch.arange(6000) % 8 == 0)
    tried = (1e3, 1e2, 1e1, 1e-3)
    assert choose_penalty(features[kept], labels[kept], 3, tried, None, 0) == 1e-3


def test_crops_of_one_image_are_kept_aside_together(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = samples(60, 4, 2)
    groups = torch.arange(60) // 3
    seen: list[torch.Tensor] = []
    real = LogisticRegression.__init__

    def spy(self: LogisticRegression, rows: torch.Tensor, *others: Any) -> None:
        seen.append(rows)
        real(self, rows, *others)

    monkeypatch.setattr(LogisticRegression, "__init__", spy)
    choose_penalty(features, labels, 2, logistic.PENALTIES, groups, 0)
    members = [torch.isin(features[groups == group, 0], seen[0][:, 0]) for group in range(20)]
    assert all(each.all() or not each.any() for each in members)
    assert len(seen[0]) == 48
    assert len(seen) == 5  # of few samples, every fifth is kept aside in turn
    assert sum(60 - len(rows) for rows in seen) == 60


def test_for_few_samples_the_penalty_is_that_of_a_cross_validation_by_scikit_learn() -> None:
    features, labels = samples(200, 60, 4)
    features = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    place = torch.rand(200, generator=torch.Generator().manual_seed(3))
    right = dict.fromkeys(logistic.PENALTIES, 0)
    parts = parts_of(place, place.argsort())
    assert torch.equal(torch.cat([aside for aside, _ in parts]).sort().values, torch.arange(200))
    for aside, rest in parts:
        mean, deviation = features[rest].mean(0), features[rest].std(0, correction=0)
        plain = (features - mean) / deviation
        for penalty in right:
            peer = linear_model.LogisticRegression(C=1 / (len(rest) * penalty), max_iter=5000).fit(plain[rest], labels[rest])
            right[penalty] += int((peer.predict(plain[aside]) == labels[aside].numpy()).sum())
    chosen = choose_penalty(features, labels, 4, logistic.PENALTIES, None, 3)
    assert right[chosen] >= max(right.values()) - 1  # L-BFGS stops earlier for candidates
    assert max(right.values()) - min(right.values()) >= 5


def test_too_few_samples_to_keep_any_aside() -> None:
    features, labels = samples(2, 4, 2)
    task, _ = fit_logistic(features, labels, ["a", "b"])
    assert task.logits(features).isfinite().all()
    task, _ = fit_logistic(torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 0]), ["a", "b"])  # features without variance
    assert task.logits(torch.ones(1, 3)).argmax() == 0


@pytest.mark.parametrize(("count", "width"), [(20, 50), (500, 12), (3, 1)])
def test_the_covariance_is_that_of_scikit_learn(count: int, width: int) -> None:
    plain = torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.logspace(0, 1, width)
    centred = plain - plain.mean(dim=0)
    expected, _ = ledoit_wolf(centred.numpy(), assume_centered=True)
    torch.testing.assert_close(shrunk_covariance(centred), torch.from_numpy(expected))


def test_constant_features_can_be_whitened() -> None:
    """As those of a run that has collapsed."""
    for bank in (torch.ones(30, 4), torch.ones(1, 4), torch.randn(30, 1).expand(30, 4)):
        assert all(each.isfinite().all() for each in whiten(bank, torch.randn(3, 4)))


def test_whitened_features_have_unit_covariance_and_find_what_a_large_direction_hides() -> None:
    chance = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (900,), generator=chance)
    features = torch.randn(900, 5, generator=chance)
    features[:, 0] *= 300  # says nothing about the class
    features[:, 1] += 4 * labels
    bank, queries = whiten(features[:600], features[600:])
    covariance = torch.cov(bank.T)
    torch.testing.assert_close(covariance.diagonal(), torch.ones(5), rtol=0.2, atol=0)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.2
    accuracy = [
        float((knn_scores(b, a, labels[:600], 3).argmax(1) == labels[600:]).float().mean())
        for a, b in ((features[:600], features[600:]), (bank, queries))
    ]
    assert accuracy[1] > accuracy[0] + 0.1
