"""The numbers that tell a collapse, against singular values, and on features that have collapsed."""

import math

import pytest
import torch
from torch import Tensor

from unveil.evaluate.collapse import collapse, deviation, rank_me


def noise(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rows", "width"), [(200, 12), (12, 30), (64, 64)])
def test_rank_is_that_of_the_singular_values(rows: int, width: int) -> None:
    features = noise(rows, width) * torch.linspace(0, 3, width) + 0.5
    singular = torch.linalg.svdvals(features.double())
    shares = [float(value / singular.sum()) + 1e-7 for value in singular]
    assert rank_me(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)


def test_deviation_is_that_of_unit_vectors() -> None:
    features = noise(50, 8)
    unit = torch.stack([row / row.norm() for row in features])
    slow = sum(float(column.std(correction=0)) for column in unit.T) / 8 * 8**0.5
    assert deviation(features) == pytest.approx(slow, rel=1e-5)
    assert deviation(7 * features) == pytest.approx(slow, rel=1e-5)


def test_features_that_fill_their_space() -> None:
    assert deviation(noise(5000, 32)) == pytest.approx(1, abs=0.01)
    assert rank_me(noise(5000, 32)) == pytest.approx(32, rel=0.01)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_features_that_are_all_the_same(value: float) -> None:
    assert deviation(torch.full((100, 16), value)) == pytest.approx(0, abs=1e-9)
    assert rank_me(torch.full((100, 16), value)) == pytest.approx(1, abs=1e-3)


def test_features_that_keep_two_dimensions() -> None:
    flat = noise(1000, 2) @ torch.linalg.qr(noise(32, 32)).Q[:2]
    assert rank_me(flat) == pytest.approx(2, rel=0.01)
    assert deviation(flat) > 0.8  # which this number alone would not tell
    assert collapse(flat).keys() == {"feature_deviation", "rank_me"}
