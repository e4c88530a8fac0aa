"""The hand-written backward pass against autograd's, and what it keeps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.fast.recompute import linear_after
from unveil.blocks.layer_norm import LayerNorm
from unveil.train.memory_trial import LiveTensors

BEFORE: dict[str, Callable[[int], nn.Module | None]] = {
    "nothing": lambda width: None,
    "norm": LayerNorm,
    "gelu": lambda width: nn.GELU(),
}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs are recomputed too."""
    monkeypatch.setattr(choose, "RECOMPUTE_FROM", 0)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_float32(before: str, shape: tuple[int, int], kind: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, first = nn.Linear(*shape), BEFORE[before](shape[0])
    x, gradient = torch.randn(4, 60, shape[0]).to(kind), torch.randn(4, 60, shape[1])
    wanted = gradients(layer, first, x.float(), gradient, half=False)
    found = gradients(layer, first, x, gradient.bfloat16(), half=True)
    assert [each.dtype for each in found] == [torch.bfloat16, kind, *[torch.float32] * (len(wanted) - 2)]
    for each, right in zip(found, wanted, strict=True):
        assert (each.float() - right).norm() < 0.01 * right.norm()


def gradients(layer: nn.Linear, before: nn.Module | None, x: Tensor, gradient: Tensor, half: bool) -> list[Tensor]:
    """The result, and the gradients of x and of all weights."""
    x = x.clone().requires_grad_()
    inputs = [x, *layer.parameters(), *(() if before is None else before.parameters())]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = linear_after(before, layer, x)
    return [out.detach(), *torch.autograd.grad(out, inputs, gradient)]


def test_without_autocast_it_is_the_plain_product_bit_for_bit() -> None:
    layer, norm, x = nn.Linear(8, 12), LayerNorm(8), torch.randn(3, 8)
    assert torch.equal(
        linear_after(norm, layer, x), F.linear(F.layer_norm(x, (8,), norm.weight, norm.bias), layer.weight, layer.bias)
    )


@pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    layer, x = nn.Linear(8, 12), torch.randn(3, 8, requires_grad=frozen != "x")
    if frozen != "x":
        getattr(layer, frozen).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        linear_after(nn.GELU(), layer, x).sum().backward()
    got = {"weight": layer.weight.grad, "bias": layer.bias.grad, "x": x.grad}
    assert {name for name, each in got.items() if each is None} == {frozen}


def test_small_inputs_and_plain_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(8, 12), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_after(nn.GELU(), layer, x).grad_fn.name() == "RecomputeLinearBackward"
        with choose.turned_off("recompute"):
            assert linear_after(nn.GELU(), layer, x).grad_fn.name() == "AddmmBackward0"
        monkeypatch.setattr(choose, "RECOMPUTE_FROM", 2**19)
        assert linear_after(nn.GELU(), layer, x).grad_fn.name() == "AddmmBackward0"


def test_the_result_of_the_function_before_is_not_kept() -> None:
    hidden, layer = torch.randn(512, 256).bfloat16().requires_grad_(), nn.Linear(256, 16)

    def kept(*off: str) -> int:
        with choose.turned_off(*off), LiveTensors() as live, torch.autocast("cpu", torch.bfloat16):
            out = linear_after(nn.GELU(), layer, hidden)
            return live.now - out.nbytes

    assert kept("recompute") - kept() > 0.99 * hidden.nbytes
