"""Weights cast by one kernel for a block give every bit that autocast gives. On a CPU that takes the paths of a GPU."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unveil.blocks.fast import choose
from unveil.blocks.fast.cast_together import call_in_half
from unveil.blocks.mask_tokens import MaskTokens
from unveil.blocks.transformer import Block, Transformer, TransformerConfig

B, T, N, M, D = 3, 6, 9, 5, 16
SHAPE = TransformerConfig(width=D, depth=3, heads=2)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No path that is for a CPU only."""
    monkeypatch.setattr(choose, "by_hand", lambda x: False)
    with choose.turned_off("half_attention", "recompute", "products_of_few"):
        yield


class Casts(TorchDispatchMode):
    """Counts the kernels that convert numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten._foreach_copy_)
        return func(*args, **(kwargs or {}))


def results(
    made: torch.nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, together: bool, **options: Any
) -> list[Tensor | None]:
    """The output, and the gradients of the input and of all weights."""
    monkeypatch.setattr(choose, "cast_together", lambda x, weight: together and x.dtype in choose.HALF and choose.castable(weight))
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # for drop path
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x, **options)
    made.zero_grad()
    (out.float() * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in made.parameters())
    return [out.detach(), x.grad, *(weight.grad for weight in made.parameters())]


def check(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert any(each is not None for each in expected[2:])
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "post"},
        {"layer_scale": 0.5, "drop_path": 0.5},
        {"grad_checkpointing": True},
        {"cross": True},
        {"cross": True, "unused": True},
    ],
)
@pytest.mark.parametrize("last", [None, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_bit_is_that_of_autocast(
    changes: dict[str, Any], last: int | None, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    given = dict(changes)
    unused = given.pop("unused", False)
    made, x = Transformer(replace(SHAPE, **given)), torch.randn(B, T, D).bfloat16()
    options: dict[str, Any] = {"last": last} | (
        {"context": torch.randn(B, 4, D).bfloat16()} if "cross" in given and not unused else {}
    )
    for name, weight in made.named_parameters():
        torch.nn.init.normal_(weight, std=0.3)
        weight.requires_grad_(not (frozen and ("blocks.0" in name or name.endswith("bias"))))
    check(results(made, x, monkeypatch, True, **options), results(made, x, monkeypatch, False, **options))


def test_mask_tokens_and_float32_inputs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made, hide = Transformer(SHAPE), torch.stack([torch.randperm(N)[:M] for _ in range(B)])
    table = torch.randn(N, D)
    for x in (torch.randn(B, T, D).bfloat16(), torch.randn(B, T, D)):
        options: dict[str, Any] = {"mask_tokens": MaskTokens(table, hide), "last": M}
        check(results(made, x, monkeypatch, True, **options), results(made, x, monkeypatch, False, **options))


def test_two_casts_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of 24: a cast and that of its gradient for each of 12 weights."""
    block, x, counts = Block(SHAPE), torch.randn(B, T, D).bfloat16(), []
    for call in (block, lambda x: call_in_half(block, x)):
        with torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            call(x).sum().backward()
        counts.append(casts.count)
        assert all(type(weight) is torch.nn.Parameter for weight in block.parameters())  # as before
    assert counts == [24, 2]


def test_conditions() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    assert choose.castable(weight)
    assert not choose.castable(torch.nn.Parameter(torch.zeros(2).bfloat16()))
    assert not choose.castable(torch.zeros(2))
    with choose.turned_off():
        assert not choose.cast_together(torch.zeros(2).bfloat16(), weight)  # on a CPU
