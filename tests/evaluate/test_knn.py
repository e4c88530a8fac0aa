"""k-NN against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from unveil.evaluate.knn import knn_scores


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_knn_equals_sklearn(neighbours, temperature):
    chance = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=chance)
    labels = torch.randint(0, 5, (120,), generator=chance)
    bank = (centres[labels] + torch.randn(120, 8, generator=chance)) * torch.rand(120, 1, generator=chance)
    queries = torch.randn(1100, 8, generator=chance)  # more than are compared at a time
    peer = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature))
    peer.fit(bank.double().numpy(), labels.numpy())
    found = knn_scores(queries, bank, labels, 5, neighbours=neighbours, temperature=temperature)
    shares = peer.predict_proba(queries.double().numpy())
    np.testing.assert_allclose((found / found.sum(dim=1, keepdim=True)).numpy(), shares, atol=1e-3)
    assert (found.argmax(dim=1).numpy() == peer.predict(queries.double().numpy())).mean() > 0.999


def test_knn_with_a_small_bank_and_an_absent_class():
    bank, labels = torch.eye(3), torch.tensor([2, 0, 2])
    found = knn_scores(torch.tensor([[2.0, 0, 0]]), bank, labels, 4, temperature=0.5)
    expected = [1.0, 0, float(torch.tensor(2.0).exp()) + 1.0, 0]
    assert found[0].tolist() == pytest.approx(expected)
