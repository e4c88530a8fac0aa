"""Mask tokens behind the visible ones, and a last block that returns some tokens only, against the long way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.blocks.mask_tokens import MaskTokens, append
from unveil.blocks.transformer import Transformer, TransformerConfig

pytestmark = pytest.mark.usefixtures("way")
B, T, N, M, D = 3, 4, 9, 5, 12
SHAPE = TransformerConfig(width=D, depth=3, heads=3)


def stack(**changes: object) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(replace(SHAPE, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hide = torch.stack([torch.randperm(N)[:M] for _ in range(B)])
    return torch.randn(B, T, D, requires_grad=True), torch.randn(N, D, requires_grad=True), hide


def long_way(made: Transformer, seen: Tensor, tokens: Tensor, hide: Tensor) -> Tensor:
    """Every token is put there and computed."""
    return made(torch.cat([seen, torch.stack([torch.stack([tokens[n] for n in row]) for row in hide.tolist()])], dim=1))


def gradients(out: Tensor, *wanted: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    return list(torch.autograd.grad((out * torch.randn_like(out)).sum(), wanted))


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("last", [None, 1, M, T + M])
def test_mask_tokens_and_last_equal_the_long_way_forward_and_back(depth, last, grad_checkpointing):
    made, (seen, tokens, hide) = stack(depth=depth, grad_checkpointing=grad_checkpointing), inputs()
    found = made(seen, mask_tokens=MaskTokens(tokens, hide), last=last)
    expected = long_way(made, seen, tokens, hide)
    expected = expected if last is None else expected[:, -last:]
    torch.testing.assert_close(found, expected)
    wanted = (seen, tokens, *(p for p in made.parameters()))
    for a, b in zip(gradients(found, *wanted), gradients(expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("last", [1, 3])
def test_last_alone_in_both_kinds_of_block(norm, last):
    made, (seen, _, _) = stack(norm=norm), inputs()
    torch.testing.assert_close(made(seen, last=last), made(seen)[:, -last:])


def test_append_looks_tokens_up():
    seen, tokens, hide = inputs()
    whole = append(seen, MaskTokens(tokens, hide))
    assert whole.shape == (B, T + M, D)
    assert torch.equal(whole[:, :T], seen)
    for b in range(B):
        for m in range(M):
            assert torch.equal(whole[b, T + m], tokens[hide[b, m]])
