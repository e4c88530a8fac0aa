"""The stack against torch.nn's encoder and decoder layers, and the promises of drop path, layer scale and recompute."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unveil.blocks.attention import Attention
from unveil.blocks.residual import ResidualBranch
from unveil.blocks.transformer import Block, Transformer, TransformerConfig

B, T, S, D = 2, 5, 4, 12
PLAIN = TransformerConfig(width=D, depth=2, heads=3)
pytestmark = pytest.mark.usefixtures("way")


def shaken(module: nn.Module) -> nn.Module:
    """Gives all weights, also norms and biases, values that would show a swap."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return module


def pairs(ours: Block, peer: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each of our parameters beside that of torch.nn.TransformerEncoderLayer or DecoderLayer."""

    def attention(a: Attention, b: nn.MultiheadAttention) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [
            (a.query_key_value.weight, b.in_proj_weight),
            (a.query_key_value.bias, b.in_proj_bias),
            (a.out.weight, b.out_proj.weight),
            (a.out.bias, b.out_proj.bias),
        ]

    cross = hasattr(ours, "cross")
    modules = [(ours.mlp[0], peer.linear1), (ours.mlp[2], peer.linear2), (ours.norm1, peer.norm1)]
    modules += [(ours.norm_cross, peer.norm2), (ours.norm2, peer.norm3)] if cross else [(ours.norm2, peer.norm2)]
    found = attention(ours.attention, peer.self_attn) + (attention(ours.cross, peer.multihead_attn) if cross else [])
    found += [(getattr(a, part), getattr(b, part)) for a, b in modules for part in ("weight", "bias")]
    assert len(found) == len(list(ours.parameters())) == len(list(peer.parameters()))
    return found


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_block_equals_torch(norm, activation, cross, masked):
    config = replace(PLAIN, norm=norm, activation=activation, cross=cross)
    ours = shaken(Block(config))
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    peer = kind(D, 3, 4 * D, 0.0, activation, layer_norm_eps=1e-6, batch_first=True, norm_first=norm == "pre")
    with torch.no_grad():
        for a, b in pairs(ours, peer):
            b.copy_(a)
    inputs = [torch.randn(B, T, D), *([torch.randn(B, S, D)] if cross else [])]
    mine, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    our_masks, their_masks = {}, {}
    if masked:
        ahead = torch.ones(T, T).triu(1).bool()
        our_masks["causal"] = True
        their_masks["tgt_mask" if cross else "src_mask"] = ahead
        if cross:
            ignored = torch.tensor([[False] * S, [False] * (S - 1) + [True]])
            our_masks["context_allowed"] = ~ignored[:, None, None]
            their_masks["memory_key_padding_mask"] = ignored
    found, true = ours(*mine, **our_masks), peer(*theirs, **their_masks)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    push = torch.randn_like(found)
    (found * push).sum().backward()
    (true * push).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    for a, b in pairs(ours, peer):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_stack_is_its_blocks_one_after_the_other(norm):
    stack = shaken(Transformer(replace(PLAIN, depth=3, norm=norm)))
    x = torch.randn(B, T, D)
    bias = torch.randn(3, T, T)
    expected = x
    for block in stack.blocks:
        expected = block(expected, bias=bias)
    if norm == "pre":
        expected = torch.nn.functional.layer_norm(expected, (D,), stack.norm.weight, stack.norm.bias, 1e-6)
    torch.testing.assert_close(stack(x, biases=[bias]), expected)
    assert not torch.allclose(stack(x), expected, atol=1e-3)  # the bias does reach the blocks


def test_linear_layers_begin_xavier_uniform_with_zero_biases():
    stack = Transformer(replace(PLAIN, width=96, heads=3))
    linears = [module for module in stack.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 * 4
    for linear in linears:
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.98 * bound < linear.weight.abs().max() <= bound
        assert abs(linear.weight.std() - bound / 3**0.5) < 0.03 * bound
        assert not linear.bias.any()


def test_drop_path_keeps_the_expectation_and_whole_samples():
    branch = ResidualBranch(PLAIN.width, dropout=0.0, drop_path=0.25, layer_scale=None)
    torch.manual_seed(1)
    x = torch.randn(4000, 2, D)
    dropped = branch(x)
    ratio = dropped / x  # 0 or 1 / 0.75, one draw a sample
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), atol=1e-5)
    gone = ratio[:, 0, 0] == 0
    assert abs(gone.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    torch.testing.assert_close(dropped[~gone], x[~gone] / 0.75)
    branch.eval()
    assert torch.equal(branch(x), x)


def test_drop_path_grows_linearly_with_depth():
    stack = Transformer(replace(PLAIN, depth=5, drop_path=0.4))
    assert [block.branch1.drop_path for block in stack.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [block.branch2.drop_path for block in stack.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert Transformer(replace(PLAIN, depth=1, drop_path=0.4)).blocks[0].branch1.drop_path == 0
    x = torch.randn(64, T, D)
    assert not torch.equal(stack(x), stack(x))
    stack.eval()
    plain = Transformer(replace(PLAIN, depth=5))
    plain.load_state_dict(stack.state_dict())
    assert torch.equal(stack(x), plain(x))


def test_layer_scale_multiplies_each_branch():
    block = Block(replace(PLAIN, layer_scale=0.1))
    assert torch.equal(block.branch1.scale, torch.full((D,), 0.1))
    shaken(block)
    plain = Block(PLAIN)
    plain.load_state_dict({name: value for name, value in block.state_dict().items() if "scale" not in name})
    x = torch.randn(B, T, D)
    middle = x + block.branch1.scale * plain.attention(plain.norm1(x))
    expected = middle + block.branch2.scale * plain.mlp(plain.norm2(middle))
    torch.testing.assert_close(block(x), expected)
    assert Block(PLAIN).branch1.scale is None


def gradients(stack: Transformer, x: Tensor) -> list[Tensor]:
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    stack(x).square().mean().backward()
    found = [x.grad, *(parameter.grad.clone() for parameter in stack.parameters())]
    stack.zero_grad()
    return found


@pytest.mark.parametrize("chance", [{}, {"drop_path": 0.5}, {"dropout": 0.3}])
def test_recompute_gives_identical_gradients(chance, monkeypatch):
    plain = shaken(Transformer(replace(PLAIN, depth=3, **chance)))
    again = Transformer(replace(PLAIN, depth=3, grad_checkpointing=True, **chance))
    again.load_state_dict(plain.state_dict())
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *a, **k: (calls.append(1), forward(self, *a, **k))[1])
    x = torch.randn(8, T, D)
    expected = gradients(plain, x)
    assert len(calls) == 3
    found = gradients(again, x)
    assert len(calls) == 3 + 6  # each block ran twice
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    again.eval()
    again(x)
    assert len(calls) == 3 + 6 + 3


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_final_norm_and_intermediates(norm):
    stack = shaken(Transformer(replace(PLAIN, depth=3, norm=norm)))
    bare = Transformer(replace(PLAIN, depth=3, norm=norm, final_norm=False))
    bare.load_state_dict({name: value for name, value in stack.state_dict().items() if not name.startswith("norm.")})
    x, biases = torch.randn(B, T, D), [torch.randn(3, T, T) for _ in range(3)]
    outputs = stack.intermediates(x, biases)
    assert len(outputs) == 3
    torch.testing.assert_close(outputs[0], stack.blocks[0](x, bias=biases[0]))
    torch.testing.assert_close(outputs[2], bare(x, biases=biases))
    torch.testing.assert_close(stack.norm(outputs[2]), stack(x, biases=biases))
    assert isinstance(bare.norm, nn.Identity)
