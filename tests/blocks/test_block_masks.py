"""Masks made of rectangles, against slow ones, and I-JEPA's by hand."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.blocks.test_masks import check_partition
from unveil.blocks.block_masks import BLOCK_NOISE, block_mask, in_rectangle, multi_block_mask, unit_mask, units_of
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
    noise = torch.rand(3, BLOCK_NOISE, generator=torch.Generator().manual_seed(seed))
    keep, hide = block_mask(noise, (rows, columns), ratio, smallest)
    check_partition(keep, hide, 3, patches, visible)
    again = block_mask(noise[1:2], (rows, columns), ratio, smallest)
    assert torch.equal(again[1][0], hide[1])  # does not depend on the rest of the batch


def slow_direction(number: float, rows: int, columns: int) -> list[tuple[int, int]]:
    """All patches in one of eight orders: which corner comes first, and whether rows or columns are walked."""
    way = int(8 * number)
    up, left, by_column = way // 4, way // 2 % 2, way % 2
    ys, xs = range(rows)[:: -1 if up else 1], range(columns)[:: -1 if left else 1]
    return [(y, x) for x in xs for y in ys] if by_column else [(y, x) for y in ys for x in xs]


def slow_block(noise: list[list[float]], last: float, rows: int, columns: int, hidden: int, smallest: int) -> list[bool]:
    """One image, one rectangle and one patch at a time."""
    gone = [[False] * columns for _ in range(rows)]
    order, count = slow_direction(last, rows, columns), 0
    for area, aspect, top, left in [*noise, None]:  # if the rectangles run out, the rest goes by the direction
        size = min(smallest, hidden) + area * (hidden - min(smallest, hidden))
        ratio = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
        height = min(max(round(math.sqrt(size * ratio)), 1), rows)
        width = min(max(round(math.sqrt(size / ratio)), 1), columns)
        y, x = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        for row, column in order:
            if count < hidden and y <= row < y + height and x <= column < x + width and not gone[row][column]:
                gone[row][column], count = True, count + 1
        if count == hidden:
            return [patch for line in gone for patch in line]
    raise AssertionError


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.4), ((14, 14), 0.75), ((8, 12), 0.5)])
def test_block_masks_equal_a_slow_one(grid, ratio):
    noise = torch.rand(40, BLOCK_NOISE, generator=torch.Generator().manual_seed(3))
    _, hide = block_mask(noise, grid, ratio)
    found = as_bool(hide, grid[0] * grid[1])
    for image in range(40):
        slow = slow_block(noise[image, :-1].reshape(-1, 4).tolist(), float(noise[image, -1]), *grid, hide.shape[1], 16)
        assert found[image].tolist() == slow


def published_mask(chance: random.Random, side: int, wanted: int, smallest: int = 16) -> torch.Tensor:
    """BEiT's algorithm 1 as its public code draws it: blocks of at most what is still missing, those that do not fit drawn anew."""
    mask = torch.zeros(side, side)
    while (missing := wanted - int(mask.sum())) > 0:
        for _ in range(10):
            area, aspect = chance.uniform(smallest, missing), math.exp(chance.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = chance.randint(0, side - height), chance.randint(0, side - width)
            block = mask[top : top + height, left : left + width]
            if 0 < (block == 0).sum() <= missing:
                block.fill_(1)
                break
        else:
            break
    return mask


def frequencies(hide: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return as_bool(hide, grid[0] * grid[1]).double().mean(dim=0).reshape(grid)


def check_even(found: torch.Tensor, draws: int) -> None:
    """A map of frequencies is the same upside down, mirrored and, if it is square, transposed: 5 standard errors at most."""
    error = 5 * (2 * found * (1 - found) / draws).sqrt()
    for other in (found.flip(0), found.flip(1), *([found.T] if found.shape[0] == found.shape[1] else [])):
        assert ((found - other).abs() <= error).all()


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.4), ((14, 14), 0.75), ((8, 12), 0.5), ((7, 7), 0.5)])
def test_block_masks_hide_opposite_places_alike(grid, ratio):
    """At d98af96, the last block was cut from its top: the top row was masked in 18.5 % of the images, the bottom row in 11.2 %."""
    keys = sample_keys(0, 0, 5000)
    check_even(frequencies(block_mask(uniform(keys, BLOCK_NOISE, Stream.MASK), grid, ratio)[1], grid), 5000)


def test_block_masks_are_like_the_published_ones():
    """Frequencies of rows, corners and neighbours. The published count varies: 75 are wanted, 74.5 +- 1 are masked."""
    chance = random.Random(0)
    published = torch.stack([published_mask(chance, 14, 79) for _ in range(500)])
    keys = sample_keys(1, 0, 3000)
    ours = as_bool(block_mask(uniform(keys, BLOCK_NOISE, Stream.MASK), (14, 14), 0.4)[1], 196).float().reshape(-1, 14, 14)
    assert (ours.sum(dim=(1, 2)) == 79).all()
    assert 77.5 < published.sum(dim=(1, 2)).mean() < 79
    for lines in ((0, 2), (0, 1)):  # rows, columns
        torch.testing.assert_close(ours.mean(dim=lines), published.mean(dim=lines), rtol=0, atol=0.03)
    corners = [(masks[:, ::13, ::13].mean()) for masks in (ours, published)]
    assert abs(corners[0] - corners[1]) < 0.01
    together = [(masks[:, 1:] * masks[:, :-1]).sum() / masks.sum() for masks in (ours, published)]
    assert abs(together[0] - together[1]) < 0.02


def test_block_masks_are_in_blocks():
    """Hidden patches hang together in few pieces, where random masks of the same ratio crumble."""

    def pieces(hide: torch.Tensor) -> float:
        hidden = as_bool(hide, 196).reshape(-1, 14, 14).numpy()
        return sum(ndimage.label(one)[1] for one in hidden) / len(hidden)

    chance = torch.Generator().manual_seed(0)
    block = block_mask(torch.rand(200, BLOCK_NOISE, generator=chance), (14, 14), 0.4)[1]
    scattered = random_mask(torch.rand(200, 196, generator=chance), 0.4)[1]
    assert pieces(block) < 3
    assert pieces(scattered) > 10


@pytest.mark.parametrize(("grid", "unit", "hidden"), [((14, 14), 2, 120), ((8, 8), 2, 40), ((6, 4), 1, 15), ((7, 7), 2, 31)])
def test_units_are_hidden_whole(grid, unit, hidden):
    rows, columns = units_of(grid, unit)
    noise = torch.rand(50, rows * columns + 1, generator=torch.Generator().manual_seed(0))
    keep, hide = unit_mask(noise, grid, 0.6, unit)
    check_partition(keep, hide, 50, grid[0] * grid[1], grid[0] * grid[1] - hidden)
    for row, scores in zip(as_bool(hide, grid[0] * grid[1]).reshape(-1, *grid), noise, strict=True):
        parts = []
        for u in scores[:-1].argsort().tolist():  # squares from the first hidden to the last
            y, x = divmod(u, columns)
            square = row[y * unit : (y + 1) * unit, x * unit : (x + 1) * unit].float()
            parts.append(float(square.mean()))
        whole = sum(part == 1 for part in parts)
        assert parts[:whole] == [1.0] * whole
        assert sum(0 < part < 1 for part in parts) <= (grid[0] % unit > 0)  # one is cut where they do not tile the grid
        assert not any(parts[whole + 1 :])
    assert (as_bool(hide, grid[0] * grid[1]).float().mean(0) > 0.3).all()


@pytest.mark.parametrize(("grid", "unit", "ratio"), [((14, 14), 2, 0.6), ((12, 8), 4, 0.5), ((6, 4), 1, 0.6)])
def test_units_that_tile_the_grid_are_hidden_uniformly(grid, unit, ratio):
    keys, draws = sample_keys(2, 0, 10_000), 10_000
    rows, columns = units_of(grid, unit)
    _, hide = unit_mask(uniform(keys, rows * columns + 1, Stream.MASK), grid, ratio, unit)
    share = hide.shape[1] / (grid[0] * grid[1])
    assert ((frequencies(hide, grid) - share).abs() < 5 * (share * (1 - share) / draws) ** 0.5).all()


def test_a_unit_that_is_cut_is_cut_from_any_side():
    """Squares of 2 x 2 patches on 7 x 7 patches: within the squares that are whole, no corner is masked more than another."""
    keys, draws = sample_keys(3, 0, 20_000), 20_000
    found = frequencies(unit_mask(uniform(keys, 17, Stream.MASK), (7, 7), 0.6, 2)[1], (7, 7))[:6, :6]
    corners = torch.stack([found[i::2, j::2].mean() for i in (0, 1) for j in (0, 1)])
    assert (corners - corners.mean()).abs().max() < 5 * (0.25 / (9 * draws)) ** 0.5


def test_rectangles():
    top, left, height, width = (torch.tensor([[float(x)]]) for x in (1, 2, 2, 1))
    assert in_rectangle((4, 4), top, left, height, width)[0, 0].nonzero().flatten().tolist() == [6, 10]


def slow_multi_block(u: list[float], rows: int, columns: int, blocks: int, size: int, tall: int, wide: int):
    """One image: the patches that may be in the context, and those of each target block, one at a time."""
    ratio = 0.75 + u[0] * 0.75
    height = min(max(round(math.sqrt(size * ratio)), math.ceil(size / columns)), rows)
    width = math.ceil(size / height)
    order, targets = slow_direction(u[-1], rows, columns), []
    for k in range(blocks):
        top, left = int(u[3 + 2 * k] * (rows - height + 1)), int(u[4 + 2 * k] * (columns - width + 1))
        inside = [(y, x) for y, x in order if top <= y < top + height and left <= x < left + width]
        targets.append([y * columns + x for y, x in inside[:size]])
    top, left = int(u[1] * (rows - tall + 1)), int(u[2] * (columns - wide + 1))
    context = {(top + i) * columns + left + j for i in range(tall) for j in range(wide)}
    return context - {n for block in targets for n in block}, targets


@pytest.mark.parametrize("grid", [(14, 14), (8, 8)])
def test_target_blocks_lie_alike_in_opposite_places(grid):
    _, targets = multi_block_mask(sample_keys(5, 0, 10_000), grid, blocks=1)
    check_even(frequencies(targets[:, 0], grid), 10_000)


@pytest.mark.parametrize(("grid", "size", "tall", "wide"), [((14, 14), 34, 13, 13), ((8, 8), 11, 8, 8), ((6, 12), 13, 6, 12)])
def test_multi_block_masks_equal_a_slow_one(grid, size, tall, wide):
    keys = sample_keys(3, 0, 40)
    keep, targets = multi_block_mask(keys, grid)
    visible = tall * wide - 4 * size
    assert keep.shape == (40, visible)
    assert targets.shape == (40, 4, size)
    noise = uniform(keys, 12 + grid[0] * grid[1], Stream.MASK)
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
