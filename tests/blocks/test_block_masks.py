"""Masks made of rectangles, against slow ones, and I-JEPA's by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.blocks.test_masks import check_partition
from unveil.blocks.block_masks import block_mask, in_rectangle, multi_block_mask, unit_mask, units_of
from unveil.blocks.masks import as_bool, random_mask
from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.errors import UnveilError


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


def test_rectangles():
    top, left, height, width = (torch.tensor([[float(x)]]) for x in (1, 2, 2, 1))
    assert in_rectangle((4, 4), top, left, height, width)[0, 0].nonzero().flatten().tolist() == [6, 10]


def slow_multi_block(u: list[float], rows: int, columns: int, blocks: int, size: int, tall: int, wide: int):
    """One image: the patches that may be in the context, and those of each target block, one at a time."""
    ratio = 0.75 + u[0] * 0.75
    height = min(max(round(math.sqrt(size * ratio)), math.ceil(size / columns)), rows)
    width = math.ceil(size / height)
    targets = []
    for k in range(blocks):
        top, left = int(u[3 + 2 * k] * (rows - height + 1)), int(u[4 + 2 * k] * (columns - width + 1))
        targets.append([(top + i) * columns + left + j for i in range(height) for j in range(width)][:size])
    top, left = int(u[1] * (rows - tall + 1)), int(u[2] * (columns - wide + 1))
    context = {(top + i) * columns + left + j for i in range(tall) for j in range(wide)}
    return context - {n for block in targets for n in block}, targets


@pytest.mark.parametrize(("grid", "size", "tall", "wide"), [((14, 14), 34, 13, 13), ((8, 8), 11, 8, 8), ((6, 12), 13, 6, 12)])
def test_multi_block_masks_equal_a_slow_one(grid, size, tall, wide):
    keys = sample_keys(3, 0, 40)
    keep, targets = multi_block_mask(keys, grid)
    visible = tall * wide - 4 * size
    assert keep.shape == (40, visible)
    assert targets.shape == (40, 4, size)
    noise = uniform(keys, 11 + grid[0] * grid[1], Stream.MASK)
    for b in range(40):
        free, blocks = slow_multi_block(noise[b].tolist(), *grid, 4, size, tall, wide)
        assert targets[b].tolist() == blocks
        chosen = sorted(free, key=lambda n: noise[b, 11 + n].item())[:visible]
        assert keep[b].tolist() == chosen
        assert not set(keep[b].tolist()) & set(targets[b].flatten().tolist())
    assert len({tuple(row) for row in targets[:, 0].tolist()}) > 20


def test_multi_block_masks_depend_on_the_key_alone():
    keys = sample_keys(0, 0, 9)
    whole = multi_block_mask(keys, (14, 14), blocks=2)
    for part, rows in ((keys[:4], slice(0, 4)), (keys[4:], slice(4, 9))):
        for found, expected in zip(multi_block_mask(part, (14, 14), blocks=2), whole, strict=True):
            assert torch.equal(found, expected[rows])


def test_blocks_that_leave_no_context_are_refused():
    with pytest.raises(UnveilError, match="4 target blocks of 49 patches in a context block of 13 x 13 patches"):
        multi_block_mask(sample_keys(0, 0, 1), (14, 14), scale=0.25)
    with pytest.raises(UnveilError, match="blocks of 0 patches"):
        multi_block_mask(sample_keys(0, 0, 1), (2, 1))
