"""Positions against the formula, one number at a time."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from unveil.blocks.positions import RelativePositionBias, resize_biases, resize_positions, sincos_1d, sincos_2d
from unveil.errors import UnveilError


def slow_1d(place: float, width: int) -> list[float]:
    angles = [place / 10000 ** (i / (width / 2)) for i in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


@pytest.mark.parametrize("width", [2, 8, 30])
def test_sincos_1d_equals_the_formula(width):
    places = torch.tensor([0.0, 1.0, 2.5, 100.0])
    expected = torch.tensor([slow_1d(float(place), width) for place in places])
    torch.testing.assert_close(sincos_1d(places, width), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (5, 3), (1, 4)])
def test_sincos_2d_tells_the_column_then_the_row(grid):
    expected = [slow_1d(column, 8) + slow_1d(row, 8) for row in range(grid[0]) for column in range(grid[1])]
    torch.testing.assert_close(sincos_2d(grid, 16), torch.tensor(expected), rtol=0, atol=1e-6)


def test_every_place_of_a_grid_has_its_own_position():
    table = sincos_2d((14, 14), 96)
    assert (torch.cdist(table, table) + 10 * torch.eye(196)).min() > 0.1


def test_odd_widths_are_refused():
    with pytest.raises(UnveilError, match="even width, found 7"):
        sincos_1d(torch.zeros(1), 7)
    with pytest.raises(UnveilError, match="multiple of 4, found 6"):
        sincos_2d((2, 2), 6)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("new", [(4, 6), (6, 3), (2, 3), (8, 12)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resize(prefix, new, antialias):
    torch.manual_seed(0)
    table = torch.randn(prefix + 4 * 6, 5)
    found = resize_positions(table, (4, 6), new, antialias)
    assert found.shape == (prefix + new[0] * new[1], 5)
    assert torch.equal(found[:prefix], table[:prefix])
    if new == (4, 6):
        assert torch.equal(found, table)
        return
    planes = [  # one number of the width at a time
        F.interpolate(table[prefix:, i].reshape(1, 1, 4, 6), size=new, mode="bicubic", antialias=antialias).flatten()
        for i in range(5)
    ]
    torch.testing.assert_close(found[prefix:], torch.stack(planes, dim=1))


def cubic(distance: float, a: float = -0.75) -> float:
    """The weight of a sample in cubic convolution (Keys, 1981), with the coefficient of torch without antialiasing."""
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("old", "new"), [((14, 14), (28, 28)), ((14, 14), (6, 6)), ((4, 6), (7, 5))])
def test_resize_is_that_of_the_public_code_by_hand(old, new):
    """MAE's interpolate_pos_embed: bicubic without antialiasing, four neighbours an axis, repeated at the edges."""
    table = torch.randn(1 + old[0] * old[1], 3, generator=torch.Generator().manual_seed(1))
    found, image = resize_positions(table, old, new)[1:].reshape(*new, 3), table[1:].reshape(*old, 3).double()
    for row, column in [(0, 0), (new[0] - 1, new[1] - 1), (new[0] // 2, 1), (2, new[1] - 2)]:
        places = [(x + 0.5) * o / n - 0.5 for x, o, n in zip((row, column), old, new, strict=True)]
        total = torch.zeros(3, dtype=torch.float64)
        for i in range(math.floor(places[0]) - 1, math.floor(places[0]) + 3):
            for j in range(math.floor(places[1]) - 1, math.floor(places[1]) + 3):
                pixel = image[min(max(i, 0), old[0] - 1), min(max(j, 0), old[1] - 1)]
                total += cubic(places[0] - i) * cubic(places[1] - j) * pixel
        torch.testing.assert_close(found[row, column].double(), total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [(28, 28), (7, 7), (32, 10)])
def test_resize_is_that_of_timm(new, antialias):
    table = torch.randn(1 + 14 * 14, 8, generator=torch.Generator().manual_seed(2))
    theirs = resample_abs_pos_embed(table[None], list(new), [14, 14], num_prefix_tokens=1, antialias=antialias)[0]
    torch.testing.assert_close(resize_positions(table, (14, 14), new, antialias), theirs)


def test_resize_keeps_a_ramp_a_ramp():
    """Enlarging a linear ramp samples the same ramp at the new centres, away from the edges; rows and columns do not swap."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    table = torch.stack([y.flatten(), x.flatten()], dim=1)
    found = resize_positions(table, (8, 10), (16, 20), antialias=True).reshape(16, 20, 2)  # the other kernel bends a ramp by 2 %
    for row in range(5, 11):
        for column in range(5, 15):
            assert found[row, column].tolist() == pytest.approx([(row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5], abs=1e-4)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (4, 2)])
def test_relative_bias_equals_slow_loops(grid, class_token):
    bias = RelativePositionBias(grid, heads=2, class_token=class_token)
    rows, columns = grid
    offsets = (2 * rows - 1) * (2 * columns - 1)
    assert bias.table.shape == (offsets + (3 if class_token else 0), 2)
    assert not bias.table.any()
    with torch.no_grad():
        bias.table.copy_(torch.arange(bias.table.numel()).reshape(bias.table.shape))
    found = bias()
    found, table = found.detach(), bias.table.detach()
    first = 1 if class_token else 0
    assert found.shape == (2, first + rows * columns, first + rows * columns)
    seen: dict[tuple[int, int], float] = {}
    for a in range(rows * columns):
        for b in range(rows * columns):
            down, across = a // columns - b // columns, a % columns - b % columns
            entry = table[(down + rows - 1) * (2 * columns - 1) + across + columns - 1]
            assert torch.equal(found[:, first + a, first + b], entry)
            assert seen.setdefault((down, across), float(entry[0])) == float(entry[0])
    assert len(set(seen.values())) == offsets  # each offset has an entry of its own
    if class_token:
        assert set(found[0, 0, 1:].tolist()) == {float(table[offsets, 0])}
        assert set(found[0, 1:, 0].tolist()) == {float(table[offsets + 1, 0])}
        assert found[0, 0, 0] == table[offsets + 2, 0]


def test_relative_bias_learns():
    bias = RelativePositionBias((2, 3), heads=1)
    bias().sum().backward()
    uses = torch.bincount(bias.index.flatten(), minlength=len(bias.table)).float()
    assert torch.equal(bias.table.grad[:, 0], uses)
    assert "index" not in bias.state_dict()


@pytest.mark.parametrize("class_token", [True, False])
def test_relative_bias_for_another_grid(class_token):
    """The same as a module of that grid with a resized table; and offset 0, at the centre, keeps its bias."""
    bias, other = RelativePositionBias((3, 4), 2, class_token), RelativePositionBias((5, 2), 2, class_token)
    with torch.no_grad():
        bias.table.normal_()
        other.table.copy_(resize_biases(bias.table, (3, 4), (5, 2)))
    torch.testing.assert_close(bias((5, 2)), other())
    torch.testing.assert_close(bias((5, 2))[:, -1, -1], bias()[:, -1, -1])
    assert torch.equal(bias((3, 4)), bias())
    bias((5, 2)).sum().backward()
    assert bias.table.grad.any()
