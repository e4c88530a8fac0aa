"""Masks: how many patches they hide, which, and how evenly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unveil.blocks.block_masks import grid_mask
from unveil.blocks.masks import as_bool, hide_lowest, random_mask, split, visible_count
from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.errors import UnveilError

CPU = torch.device("cpu")


def check_partition(keep: torch.Tensor, hide: torch.Tensor, batch: int, patches: int, visible: int) -> None:
    assert keep.shape == (batch, visible)
    assert hide.shape == (batch, patches - visible)
    for row in torch.cat([keep, hide], dim=1).tolist():
        assert sorted(row) == list(range(patches))


@given(patches=st.integers(1, 400), ratio=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**20))
@settings(max_examples=150, deadline=None)
def test_counts_and_partition_of_random_masks(patches, ratio, seed):
    visible = int(patches * (1 - ratio))
    if visible < 1:
        with pytest.raises(UnveilError, match="masks all of"):
            visible_count(patches, ratio)
        return
    assert visible_count(patches, ratio) == visible
    keep, hide = random_mask(torch.rand(2, patches, generator=torch.Generator().manual_seed(seed)), ratio)
    check_partition(keep, hide, 2, patches, visible)


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(196, 0.75, 49), (196, 0.6, 78), (10, 0.3, 7), (64, 0.9, 6)])
def test_known_counts(patches, ratio, visible):
    assert visible_count(patches, ratio) == visible


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan])
def test_ratios_outside_0_to_1_are_refused(ratio):
    with pytest.raises(UnveilError, match="is outside 0 to 1"):
        visible_count(16, ratio)


def test_the_lowest_scores_are_hidden_and_ties_go_by_position():
    keep, hide = hide_lowest(torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.2, 0.2, 0.2, 0.2]]), 2)
    assert [set(row) for row in hide.tolist()] == [{1, 3}, {0, 1}]
    assert [set(row) for row in keep.tolist()] == [{0, 2}, {2, 3}]


def test_equal_scores_are_hidden_by_the_order_of_ties():
    score, ties = torch.tensor([[0.5, 0.1, 0.5, 0.5], [0.2, 0.2, 0.2, 0.1]]), torch.tensor([[3, 0, 1, 2], [0, 3, 2, 1]])
    keep, hide = hide_lowest(score, 2, ties)
    assert hide.tolist() == [[1, 2], [3, 0]]
    assert keep.tolist() == [[3, 0], [2, 1]]


@pytest.mark.parametrize(("patches", "ratio"), [(196, 0.75), (64, 0.6), (196, 0.9)])
def test_random_masks_of_a_run_hide_every_place_alike(patches, ratio):
    draws = 10_000
    _, hide = random_mask(uniform(sample_keys(7, 0, draws), patches, Stream.MASK), ratio)
    share = hide.shape[1] / patches
    found = as_bool(hide, patches).double().mean(dim=0)
    assert ((found - share).abs() < 5 * (share * (1 - share) / draws) ** 0.5).all()


def test_random_masks_are_uniform():
    """Each patch is hidden equally often, and each pair of patches too."""
    draws, patches = 20_000, 8
    keep, hide = random_mask(torch.rand(draws, patches, generator=torch.Generator().manual_seed(0)), 0.75)
    hidden = as_bool(hide, patches).double()
    assert keep.shape[1] == 2
    assert stats.chisquare(torch.bincount(keep.flatten(), minlength=patches).numpy()).pvalue > 0.001
    together = (1 - hidden).T @ (1 - hidden)  # how often two patches are kept together
    pairs = [int(together[i, j]) for i in range(patches) for j in range(i)]
    assert sum(pairs) == draws
    assert stats.chisquare(pairs).pvalue > 0.001


@pytest.mark.parametrize(("grid", "ratio", "side"), [((4, 4), 0.75, 2), ((6, 9), 0.889, 3), ((8, 8), 0.9375, 4), ((6, 4), 0.75, 2)])
def test_grid_masks_keep_the_upper_left(grid, ratio, side):
    keep, hide = grid_mask(2, grid, ratio, CPU)
    expected = [r * grid[1] + c for r in range(grid[0]) for c in range(grid[1]) if r % side == 0 and c % side == 0]
    assert keep.tolist() == [expected, expected]
    check_partition(keep, hide, 2, grid[0] * grid[1], len(expected))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7, 0.8, 0.9])
def test_grid_masks_refuse_other_ratios(ratio):
    with pytest.raises(UnveilError, match=f"grid sampling cannot mask {ratio}: use 0.75"):
        grid_mask(1, (4, 4), ratio, CPU)


@given(patches=st.integers(1, 30), data=st.data())
@settings(max_examples=60, deadline=None)
def test_split_and_as_bool_are_inverse(patches, data):
    count = data.draw(st.integers(0, patches))
    rows = [data.draw(st.permutations(range(patches)))[:count] for _ in range(3)]
    hidden = torch.tensor([[n in row for n in range(patches)] for row in rows])
    keep, hide = split(hidden)
    check_partition(keep, hide, 3, patches, patches - count)
    assert [sorted(row) for row in hide.tolist()] == [sorted(row) for row in rows]
    assert torch.equal(as_bool(hide, patches), hidden)
