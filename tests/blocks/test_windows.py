"""Attention on a grid of patches, against loops over windows, patches and heads."""

import pytest
import torch
from torch.nn import functional as F

from unveil.blocks.attention import Attention, OnGrid
from unveil.blocks.positions import RelativePositionBias
from unveil.blocks.transformer import Block, TransformerConfig
from unveil.blocks.windows import GridAttention, from_windows, offsets, resize_offsets, to_windows
from unveil.errors import UnveilError

H, D, HEAD = 2, 8, 4
pytestmark = pytest.mark.usefixtures("way")


def filled(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def by_hand(attention: GridAttention, x: torch.Tensor, grid: tuple[int, int], bias: torch.Tensor | None = None) -> torch.Tensor:
    """One window, one head, one pair of patches at a time, with zeros for the patches that pad the grid."""
    rows, columns = grid
    height, width = (attention.window,) * 2 if attention.window else grid
    down, across = -(-rows // height), -(-columns // width)
    out = torch.zeros(len(x), rows, columns, D)
    for b in range(len(x)):
        canvas = torch.zeros(down * height, across * width, D)
        canvas[:rows, :columns] = x[b].reshape(rows, columns, D)
        for i in range(down):
            for j in range(across):
                patches = canvas[i * height : (i + 1) * height, j * width : (j + 1) * width].reshape(-1, D)
                query, key, value = attention.query_key_value(patches).unflatten(1, (3, H, HEAD)).unbind(1)
                mixed = torch.zeros(height * width, H, HEAD)
                for head in range(H):
                    scores = torch.zeros(height * width, height * width)
                    for s in range(height * width):
                        for t in range(height * width):
                            score = query[s, head] @ key[t, head] / HEAD**0.5
                            if attention.rows is not None:
                                score = score + query[s, head] @ attention.rows[s // width - t // width + height - 1]
                                score = score + query[s, head] @ attention.columns[s % width - t % width + width - 1]
                            scores[s, t] = score + (0 if bias is None else bias[head, s, t])
                    mixed[:, head] = scores.softmax(dim=1) @ value[:, head]
                window = attention.out(mixed.flatten(1)).reshape(height, width, D)
                top, left = i * height, j * width
                out[b, top : top + height, left : left + width] = window[: max(rows - top, 0), : max(columns - left, 0)]
    return out.flatten(1, 2)


@pytest.mark.parametrize(("grid", "window"), [((4, 6), 2), ((5, 3), 2), ((2, 3), 4), ((3, 4), 0)])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_equals_loops(grid, window, relative, biased):
    sides = (window, window) if window else grid
    attention = filled(GridAttention(D, H, window=window, relative=sides if relative else None))
    x = torch.randn(2, grid[0] * grid[1], D)
    bias = torch.randn(H, sides[0] * sides[1], sides[0] * sides[1]) if biased else None
    found = attention(x, bias=OnGrid(grid, bias))
    true = by_hand(attention, x, grid, bias)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    push = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * push).sum(), list(attention.parameters())) for y in (found, true)]
    for a, b in zip(*gradients, strict=True):  # those of the biases of the padding too
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_one_window_as_large_as_the_image_is_global_attention():
    plain = filled(Attention(D, H))
    window = GridAttention(D, H, window=3)
    window.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, D)
    torch.testing.assert_close(window(x, bias=OnGrid((3, 3))), plain(x))
    assert not torch.allclose(window(x[:, :6], bias=OnGrid((2, 3))), plain(x[:, :6]), atol=1e-3)  # padding is attended to


def test_relative_positions_start_at_zero_and_change_nothing_then():
    plain, relative = Attention(D, H), GridAttention(D, H, relative=(2, 3))
    assert relative.rows.shape == (3, HEAD)
    assert relative.columns.shape == (5, HEAD)
    missing = relative.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["rows", "columns"]
    x = torch.randn(2, 6, D)
    torch.testing.assert_close(relative(x, bias=OnGrid((2, 3))), plain(x))


def test_windows_and_back():
    x = torch.arange(2 * 15.0).reshape(2, 1, 15, 1)
    windows = to_windows(x, (3, 5), 2, torch.full((1, 1), -1.0))
    assert windows.shape == (2 * 6, 1, 4, 1)
    assert windows[2].flatten().tolist() == [4, -1, 9, -1]
    assert windows[5].flatten().tolist() == [14, -1, -1, -1]
    assert windows[6].flatten().tolist() == [15, 16, 20, 21]
    assert torch.equal(from_windows(windows, (3, 5), 2), x)


def test_offsets_are_from_the_second_to_the_first():
    table = torch.arange(5.0)[:, None]
    assert offsets(table, 3)[:, :, 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    resized = resize_offsets(table, 5)
    torch.testing.assert_close(resized, F.interpolate(table.t()[None], size=9, mode="linear")[0].t())
    assert resized[4] == 2  # no offset stays no offset


@pytest.mark.parametrize("window", [2, 3])
def test_a_table_of_biases_within_windows(window):
    table = RelativePositionBias((3, 4), H)
    torch.nn.init.normal_(table.table)
    found, whole = table.within(window), table()[:, 1:, 1:].reshape(H, 3, 4, 3, 4)
    assert found.shape == (H, window**2, window**2)
    found = found.reshape(H, *(window,) * 4)
    torch.testing.assert_close(found, whole[:, :window, :window, :window, :window])
    torch.testing.assert_close(table.within(5), table((5, 5))[:, 1:, 1:])  # larger than the grid: interpolated


def test_what_is_missing_is_said():
    attention, x = GridAttention(D, H, window=2), torch.randn(1, 4, D)
    with pytest.raises(UnveilError, match="needs the rows and columns"):
        attention(x)
    with pytest.raises(UnveilError, match="takes no masks"):
        attention(x, bias=OnGrid((2, 2)), allowed=torch.ones(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("half", [False, True])
def test_a_block_computes_and_learns_the_same_under_autocast(half):
    config = TransformerConfig(width=D, depth=1, heads=H, relative_grid=(2, 2))
    block, x = filled(Block(config, window=2)), torch.randn(2, 15, D)
    place = OnGrid((3, 5))
    exact = block(x, bias=place)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = block(x, bias=place)
    torch.testing.assert_close(found.float(), exact, rtol=0.1 if half else 1e-5, atol=0.2 if half else 1e-5)
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
