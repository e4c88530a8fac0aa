"""Test images that come from the same original count less than independent ones."""

import numpy as np
import pytest
import torch

from unveil.data.digits import digits, originals, scans
from unveil.data.sources import open_both
from unveil.data.splits import held_out_split
from unveil.evaluate.features import independent_count


def test_it_gives_the_standard_error_of_a_bootstrap_by_group() -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 300, 2000)
    ease = generator.beta(2, 1, 300)  # some originals are easier than others
    correct = generator.random(2000) < ease[groups]
    members = [np.flatnonzero(groups == group) for group in range(300)]
    draws = [np.concatenate([members[i] for i in generator.integers(0, 300, 300)]) for _ in range(2000)]
    error = np.std([correct[draw].mean() for draw in draws])
    count = independent_count(torch.from_numpy(correct), torch.from_numpy(groups))
    share = correct.mean()
    assert np.sqrt(share * (1 - share) / count) == pytest.approx(error, rel=0.06)
    assert count < 1500


def test_groups_of_one_are_independent() -> None:
    correct = torch.rand(500, generator=torch.Generator().manual_seed(0)) < 0.7
    assert independent_count(correct, torch.arange(500)) == pytest.approx(500, rel=0.01)


@pytest.mark.parametrize("value", [True, False])
def test_without_any_difference_the_number_of_groups_counts(value: bool) -> None:
    assert independent_count(torch.full((12,), value), torch.arange(12) // 3) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_originals_of_the_digits_are_their_scans(split) -> None:
    _, labels = digits(split)
    _, scan_labels = scans(split)
    assert np.array_equal(scan_labels[originals(split)], labels)
    train, test = open_both("digits")
    source = train if split == "train" else test
    assert source is not None
    assert np.array_equal(source.groups, originals(split))


def test_images_of_one_original_are_held_out_together() -> None:
    groups = torch.from_numpy(originals("train"))
    kept, held_out = held_out_split(len(groups), 1000, groups)
    assert 980 < len(held_out) <= 1000
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(groups)))
    assert not set(groups[kept].tolist()) & set(groups[held_out].tolist())
