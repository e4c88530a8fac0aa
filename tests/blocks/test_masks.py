"""Masks: how many patches they hide, which, and how evenly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from unveil.blocks.masks import as_bool, block_mask, grid_mask, hide_lowest, random_mask, split, unit_mask, units_of, visible_count
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
        with pytest.raises(UnveilError, match="hides all of"):
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


@given(
    rows=st.integers(2, 16),
    columns=st.integers(2, 16),
    ratio=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**20),
    smallest=st.integers(1, 20),
)
@settings(max_examples=80, deadline=None)
def test_block_masks_hide_the_exact_count(rows, columns, ratio, seed, smallest):
    patches = rows * columns
    visible = int(patches * (1 - ratio))
    if not 1 <= visible < patches:
        return
    noise = torch.rand(3, 4 * 64, generator=torch.Generator().manual_seed(seed))
    keep, hide = block_mask(noise, (rows, columns), ratio, smallest)
    check_partition(keep, hide, 3, patches, visible)
    again = block_mask(noise[1:2], (rows, columns), ratio, smallest)
    assert torch.equal(again[1][0], hide[1])  # does not depend on the rest of the batch


def slow_block(noise: list[list[float]], rows: int, columns: int, hidden: int, smallest: int) -> list[bool]:
    """One image, one rectangle and one patch at a time."""
    gone = [False] * (rows * columns)
    for area, aspect, top, left in noise:
        size = min(smallest, hidden) + area * (hidden - min(smallest, hidden))
        ratio = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
        height = min(max(round(math.sqrt(size * ratio)), 1), rows)
        width = min(max(round(math.sqrt(size / ratio)), 1), columns)
        y, x = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        for row in range(y, y + height):
            for column in range(x, x + width):
                if sum(gone) < hidden:
                    gone[row * columns + column] = True
    place = 0
    while sum(gone) < hidden:  # rectangles ran out: by position
        gone[place] = True
        place += 1
    return gone


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.4), ((14, 14), 0.75), ((8, 12), 0.5)])
def test_block_masks_equal_a_slow_one(grid, ratio):
    noise = torch.rand(20, 4 * 64, generator=torch.Generator().manual_seed(3))
    _, hide = block_mask(noise, grid, ratio)
    found = as_bool(hide, grid[0] * grid[1])
    for image in range(20):
        slow = slow_block(noise[image].reshape(-1, 4).tolist(), *grid, hide.shape[1], 16)
        assert found[image].tolist() == slow


def test_block_masks_are_in_blocks():
    """Hidden patches hang together in few pieces, where random masks of the same ratio crumble."""

    def pieces(hide: torch.Tensor) -> float:
        hidden = as_bool(hide, 196).reshape(-1, 14, 14).numpy()
        return sum(ndimage.label(one)[1] for one in hidden) / len(hidden)

    chance = torch.Generator().manual_seed(0)
    block = block_mask(torch.rand(200, 256, generator=chance), (14, 14), 0.4)[1]
    scattered = random_mask(torch.rand(200, 196, generator=chance), 0.4)[1]
    assert pieces(block) < 3
    assert pieces(scattered) > 10


@pytest.mark.parametrize(("grid", "ratio", "side"), [((4, 4), 0.75, 2), ((6, 9), 0.889, 3), ((8, 8), 0.9375, 4), ((6, 4), 0.75, 2)])
def test_grid_masks_keep_the_upper_left(grid, ratio, side):
    keep, hide = grid_mask(2, grid, ratio, CPU)
    expected = [r * grid[1] + c for r in range(grid[0]) for c in range(grid[1]) if r % side == 0 and c % side == 0]
    assert keep.tolist() == [expected, expected]
    check_partition(keep, hide, 2, grid[0] * grid[1], len(expected))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7, 0.8, 0.9])
def test_grid_masks_refuse_other_ratios(ratio):
    with pytest.raises(UnveilError, match=f"grid sampling cannot hide {ratio}: use 0.75"):
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


@pytest.mark.parametrize(("grid", "unit", "hidden"), [((14, 14), 2, 120), ((8, 8), 2, 40), ((6, 4), 1, 15), ((7, 7), 2, 31)])
def test_units_are_hidden_whole(grid, unit, hidden):
    rows, columns = units_of(grid, unit)
    noise = torch.rand(50, rows * columns, generator=torch.Generator().manual_seed(0))
    keep, hide = unit_mask(noise, grid, 0.6, unit)
    check_partition(keep, hide, 50, grid[0] * grid[1], grid[0] * grid[1] - hidden)
    for row, scores in zip(as_bool(hide, grid[0] * grid[1]).reshape(-1, *grid), noise, strict=True):
        parts = []
        for u in scores.argsort().tolist():  # squares from the first hidden to the last
            y, x = divmod(u, columns)
            square = row[y * unit : (y + 1) * unit, x * unit : (x + 1) * unit].float()
            parts.append(float(square.mean()))
        whole = sum(part == 1 for part in parts)
        assert parts[:whole] == [1.0] * whole
        assert sum(0 < part < 1 for part in parts) <= (grid[0] % unit > 0)  # one is cut where they do not tile the grid
        assert not any(parts[whole + 1 :])
    assert (as_bool(hide, grid[0] * grid[1]).float().mean(0) > 0.3).all()
