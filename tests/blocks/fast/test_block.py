"""The fast block against the plain one: forward and all gradients, with every fast path and with each one alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.fast.shared_tokens import append_projected
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.mask_tokens import MaskTokens
from unveil.blocks.transformer import Block, Transformer, TransformerConfig

B, T, S, N, M, D = 3, 4, 6, 9, 5, 12
SHAPE = TransformerConfig(width=D, depth=3, heads=3)
PATHS = ("recompute", "mask_tokens_once", "last_tokens_only")


def stack(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(replace(SHAPE, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def inputs() -> tuple[Tensor, MaskTokens]:
    torch.manual_seed(1)
    hide = torch.stack([torch.randperm(N)[:M] for _ in range(B)])
    return torch.randn(B, T, D, requires_grad=True), MaskTokens(torch.randn(N, D, requires_grad=True), hide)


def results(made: nn.Module, x: Tensor, *others: Tensor, half: bool = False, **options: Any) -> list[Tensor]:
    """The output, and the gradients of a random projection of it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = made(x, **options)
    torch.manual_seed(2)
    wanted = (x, *others, *made.parameters())
    gradients = torch.autograd.grad((out.float() * torch.randn(out.shape)).sum(), wanted, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(p) if g is None else g for g, p in zip(gradients, wanted, strict=True))]


def check(found: list[Tensor], expected: list[Tensor], half: bool = False) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if half:
            assert (a.float() - b.float()).norm() <= 0.02 * b.float().norm() + 1e-3
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("paths", [PATHS, *((path,) for path in PATHS)])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("last", [None, 1, M, T + M])
def test_mask_tokens_and_last(norm: str, last: int | None, paths: tuple[str, ...]) -> None:
    made, (x, mask_tokens) = stack(norm=norm), inputs()
    options: dict[str, Any] = {"mask_tokens": mask_tokens, "last": last}
    with choose.turned_off(*choose.NAMES):
        expected = results(made, x, mask_tokens.table, **options)
    with choose.turned_off(*(choose.NAMES - {*paths})):
        check(results(made, x, mask_tokens.table, **options), expected)
    assert expected[0].shape == (B, last or T + M, D)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masks", ["none", "allowed", "allowed for each query", "bias", "causal"])
@pytest.mark.parametrize("last", [None, 2])
def test_a_block_with_all_arguments(
    masks: str, cross: bool, norm: str, last: int | None, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "RECOMPUTE_FROM", 0)
    torch.manual_seed(3)
    block = Block(replace(SHAPE, norm=norm, cross=cross, layer_scale=0.5))
    x, context = torch.randn(B, T, D, requires_grad=True), torch.randn(B, S, D, requires_grad=True)
    allowed = torch.ones(B, 1, T if "each" in masks else 1, T, dtype=torch.bool)
    allowed[0, :, :, 0] = False
    options: dict[str, Any] = {
        "none": {},
        "allowed": {"allowed": allowed},
        "allowed for each query": {"allowed": allowed},
        "bias": {"bias": torch.randn(1, 3, T, T)},
        "causal": {"causal": True},
    }[masks] | {"last": last}
    if cross:
        options |= {
            "context": context,
            "context_allowed": torch.tensor([[True] * S, [True] * (S - 1) + [False], [True] * S])[:, None, None],
        }
    others = (context,) if cross else ()
    with choose.turned_off(*choose.NAMES):
        expected = results(block, x, *others, half=half, **options)
    check(results(block, x, *others, half=half, **options), expected, half)
    assert expected[0].shape[1] == (last or T)


def test_the_first_block_projects_mask_tokens_once_for_a_batch() -> None:
    made, (x, mask_tokens) = stack(), inputs()
    rows: list[int] = []
    made.blocks[0].attention.query_key_value.register_forward_hook(lambda module, args, out: rows.append(out[..., 0].numel()))
    made(x, mask_tokens=mask_tokens)
    assert sorted(rows) == [N, B * T]  # and not B x (T + M)


def test_the_last_block_computes_the_wanted_tokens_only() -> None:
    made, (x, mask_tokens) = stack(), inputs()
    rows: list[int] = []
    made.blocks[-1].mlp.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    made.blocks[-1].attention.out.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    made(x, mask_tokens=mask_tokens, last=M)
    assert rows == [M, M]


def test_gradients_of_mask_tokens_do_not_get_stuck_in_half_precision() -> None:
    """Four thousand images that pull in one direction: a sum in bfloat16 stops growing at 256 times a part."""
    table = torch.zeros(2, 8, requires_grad=True)
    project, norm = nn.Linear(8, 24), LayerNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        mask_tokens = MaskTokens(table, torch.tensor([[0, 1]] * 4096))
        tokens, projected = append_projected(torch.zeros(4096, 1, 8).bfloat16(), mask_tokens, norm, project)
    tokens.sum().backward()
    assert table.grad is not None
    assert torch.equal(table.grad, torch.full((2, 8), 4096.0))
    projected.sum().backward()
    assert project.bias.grad is not None
    assert torch.allclose(project.bias.grad, torch.tensor(3 * 4096.0), rtol=4e-3)
