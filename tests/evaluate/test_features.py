"""Features and the classifiers on them, which the main process alone computes."""

import pytest
import torch
import torch.distributed as dist

from unveil.blocks import distributed
from unveil.evaluate.features import evaluate_features


def test_the_main_process_fits_its_classifier_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch norm must not wait for processes that do not evaluate: the run would hang when its training is over."""
    chance = torch.Generator().manual_seed(0)
    features, labels = torch.randn(64, 8, generator=chance), torch.arange(64) % 2
    features[:, 0] += 4 * labels
    data = (features[:48], labels[:48], features[48:], labels[48:], ["a", "b"])
    expected = evaluate_features(*data)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.AllGather, "apply", lambda x: pytest.fail("a collective in the main process alone"))
    assert distributed.world_size() == 2
    assert all(torch.equal(correct, expected[probe]) for probe, correct in evaluate_features(*data).items())
    assert expected["linear"].float().mean() > 0.9
    assert distributed.world_size() == 2
