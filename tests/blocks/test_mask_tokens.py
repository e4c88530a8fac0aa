"""Mask tokens looked up from one table, and a last block that answers for some tokens only, against the long way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.blocks.fast.recompute import Linear
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.mask_tokens import append, append_projected
from unveil.blocks.transformer import Transformer, TransformerConfig

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


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("last", [None, 1, M, T + M])
def test_gaps_and_last_equal_the_long_way_forward_and_back(depth, last, recompute):
    made, (seen, tokens, hide) = stack(depth=depth, recompute=recompute), inputs()
    found = made(seen, gaps=(tokens, hide), last=last)
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
    whole = append(seen, (tokens, hide))
    assert whole.shape == (B, T + M, D)
    assert torch.equal(whole[:, :T], seen)
    for b in range(B):
        for m in range(M):
            assert torch.equal(whole[b, T + m], tokens[hide[b, m]])


def test_the_first_block_projects_mask_tokens_once_for_a_batch():
    made, (seen, tokens, hide) = stack(), inputs()
    rows = []
    made.blocks[0].attention.query_key_value.register_forward_hook(lambda module, args, out: rows.append(out[..., 0].numel()))
    made(seen, gaps=(tokens, hide))
    assert sorted(rows) == [N, B * T]  # and not B x (T + M)


def test_the_last_block_asks_for_the_wanted_tokens_only():
    made, (seen, tokens, hide) = stack(), inputs()
    rows = []
    made.blocks[-1].mlp.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    made.blocks[-1].attention.out.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    made(seen, gaps=(tokens, hide), last=M)
    assert rows == [M, M]


def test_gradients_of_mask_tokens_do_not_get_stuck_in_half_precision() -> None:
    """Four thousand images that pull in one direction: a sum in bfloat16 stops growing at 256 times a part."""
    tokens = torch.zeros(2, 8, requires_grad=True)
    project, norm = Linear(8, 24), LayerNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        gaps = (tokens, torch.tensor([[0, 1]] * 4096))
        seen, projected = append_projected(torch.zeros(4096, 1, 8).bfloat16(), gaps, norm, project)
    seen.sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.full((2, 8), 4096.0))
    projected.sum().backward()
    assert project.bias.grad is not None
    assert torch.allclose(project.bias.grad, torch.tensor(3 * 4096.0), rtol=4e-3)
