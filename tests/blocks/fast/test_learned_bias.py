"""Relative position biases, bit for bit the plain ones: the lookup in the table, and attention that gives the bias a gradient."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from unveil.blocks.attention import attend
from unveil.blocks.fast import choose
from unveil.blocks.positions import RelativePositionBias

B, H, D = 3, 2, 8
WAYS = [("learned_bias",), ("selected_biases",), ("learned_bias", "selected_biases")]


def results(bias: RelativePositionBias, grid: tuple[int, int] | None, *off: str) -> list[Tensor]:
    """Biases, attention of random tokens, and the gradients of the tokens and of the table."""
    tokens = 1 + (grid or bias.grid)[0] * (grid or bias.grid)[1]
    query, key, value, weight = torch.randn(4, B, H, tokens, D, generator=torch.Generator().manual_seed(1), dtype=bias.table.dtype)
    inputs = [each.requires_grad_() for each in (query, key, value)]
    with choose.turned_off(*off):
        biases = bias(grid)
        out = attend(query, key, value, bias=biases)
    return [biases, out, *torch.autograd.grad((out * weight).sum(), [*inputs, bias.table])]


@pytest.mark.parametrize("off", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [None, (5, 2)])
def test_every_bit_is_that_of_the_plain_way(off: tuple[str, ...], dtype: torch.dtype, grid: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias((3, 4), H)
    torch.nn.init.normal_(bias.table)
    bias = bias.to(dtype)
    for fast, plain in zip(results(bias, grid), results(bias, grid, *off), strict=True):
        assert torch.equal(fast, plain)


def test_scores_are_not_searched_for_queries_without_keys() -> None:
    query, bias = torch.randn(B, H, 5, D), torch.randn(H, 5, 5, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        attend(query, query, query, bias=bias)
    operators = {event.key for event in found.key_averages()}
    assert "aten::softmax" in operators
    assert not operators & {"aten::_safe_softmax", "aten::all", "aten::where"}


def test_only_for_biases_with_a_gradient_in_full_precision() -> None:
    assert choose.learned_bias(torch.zeros(2, requires_grad=True))
    assert not choose.learned_bias(torch.zeros(2))  # the fused kernel takes it
    assert not choose.learned_bias(torch.zeros(2, dtype=torch.bfloat16, requires_grad=True))
    assert not choose.learned_bias(torch.zeros(2, device="meta", requires_grad=True))
