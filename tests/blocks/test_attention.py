"""Attention against the formula written as loops, and against torch.nn.MultiheadAttention."""

import math

import pytest
import torch
from torch import Tensor, nn

from unveil.blocks.attention import HEADS, Attention, attend, decoder_heads, default_heads, heads_of
from unveil.blocks.fast.half_attention import attention_by_products
from unveil.errors import UnveilError

B, H, T, S, D = 2, 3, 4, 5, 6


def slowly(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, bias: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V, one output number at a time, in float64."""
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                weights = []
                for s in range(key.shape[2]):
                    score = sum(float(query[b, h, t, i]) * float(key[b, h, s, i]) for i in range(query.shape[3]))
                    score = score / math.sqrt(query.shape[3]) + float(bias[b, h, t, s])
                    weights.append(math.exp(score) if allowed[b, h, t, s] else 0.0)
                for i in range(value.shape[3]):
                    out[b, h, t, i] = sum(w * float(value[b, h, s, i]) for s, w in enumerate(weights)) / sum(weights)
    return out


def inputs(t: int = T, s: int = S) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, H, t, D), torch.randn(B, H, s, D), torch.randn(B, H, s, D)


@pytest.mark.parametrize("way", [attend, attention_by_products])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_formula(way, dtype, masked, biased, causal):
    query, key, value = inputs(t=S)
    padding = torch.ones(B, 1, 1, S, dtype=torch.bool)
    padding[1, ..., -2:] = False
    bias = torch.randn(1, H, S, S)
    allowed = torch.ones(B, H, S, S, dtype=torch.bool)
    if masked:
        allowed = allowed & padding
    if causal:
        for t in range(S):
            allowed[:, :, t, t + 1 :] = False
    expected = slowly(query, key, value, allowed, bias.expand(B, H, S, S) if biased else torch.zeros(B, H, S, S))
    found = way(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        allowed=padding if masked else None,
        bias=bias if biased else None,
        causal=causal,
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu(dtype):
    query, key, value = (x.to(dtype).requires_grad_() for x in inputs())
    allowed, bias = torch.rand(B, 1, T, S) < 0.8, torch.randn(1, H, T, S)
    allowed[..., 0] = True
    found = attend(query, key, value, allowed=allowed, bias=bias)
    found.float().square().sum().backward()
    exact = [x.detach().float().requires_grad_() for x in (query, key, value)]
    true = attend(*exact, allowed=allowed, bias=bias)
    true.square().sum().backward()
    assert found.dtype == dtype
    tolerance = 0.03 if dtype == torch.bfloat16 else 0.004
    assert (found.float() - true).norm() < tolerance * true.norm()
    for ours, peer in zip((query, key, value), exact, strict=True):
        assert (ours.grad.float() - peer.grad).norm() < tolerance * peer.grad.norm()


def test_dropout_keeps_the_expectation_and_drops():
    query, key, _ = inputs()
    ones = torch.ones(B, H, S, D)
    for way in (attend, attention_by_products):
        torch.manual_seed(1)
        drawn = torch.stack([way(query, key, ones, dropout=0.5) for _ in range(400)])
        assert drawn.std(dim=0).min() > 0.1
        assert (drawn.mean(dim=0) - 1).abs().max() < 0.2  # the weights of a token sum to 1
        assert torch.allclose(way(query, key, ones), ones[:, :, :T])


def pair(width: int, heads: int) -> tuple[Attention, nn.MultiheadAttention]:
    torch.manual_seed(2)
    ours, peer = Attention(width, heads), nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        peer.in_proj_weight.copy_(ours.query_key_value.weight)
        peer.in_proj_bias.copy_(ours.query_key_value.bias)
        peer.out_proj.weight.copy_(ours.out.weight)
        peer.out_proj.bias.copy_(ours.out.bias)
    return ours, peer


@pytest.mark.parametrize("kind", ["self", "cross", "causal", "padding", "bias", "cross with padding", "causal with padding"])
def test_equals_multihead_attention(kind):
    width, heads = 12, 3
    ours, peer = pair(width, heads)
    x, context = torch.randn(B, T, width), torch.randn(B, S, width)
    theirs, their_context = x.clone().requires_grad_(), context.clone().requires_grad_()
    x.requires_grad_()
    context.requires_grad_()
    options, mask, ignored = {}, None, None
    seen = S if "cross" in kind else T
    if "padding" in kind:
        ignored = torch.zeros(B, seen, dtype=torch.bool)
        ignored[0, -1] = True
        options["allowed"] = ~ignored[:, None, None, :]
    if "causal" in kind:
        mask, options["causal"] = torch.ones(T, T).triu(1).bool(), True
    if kind == "bias":
        options["bias"] = torch.randn(heads, T, T)
        mask = options["bias"].repeat(B, 1, 1)  # (B * h, T, T)
    found = ours(x, context, **options) if "cross" in kind else ours(x, **options)
    source = their_context if "cross" in kind else theirs
    true, _ = peer(theirs, source, source, attn_mask=mask, key_padding_mask=ignored, need_weights=False)
    torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-6)
    push = torch.randn_like(found)
    (found * push).sum().backward()
    (true * push).sum().backward()
    torch.testing.assert_close(x.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    if "cross" in kind:
        torch.testing.assert_close(context.grad, their_context.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.query_key_value.weight.grad, peer.in_proj_weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.query_key_value.bias.grad, peer.in_proj_bias.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.out.weight.grad, peer.out_proj.weight.grad, rtol=1e-4, atol=1e-5)


def test_weights_equal_those_of_multihead_attention():
    ours, peer = pair(12, 3)
    x = torch.randn(B, T, 12)
    true = peer(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(ours.weights(x), true, rtol=1e-5, atol=1e-6)
    bias = torch.randn(3, T, T)
    true = peer(x, x, x, attn_mask=bias.repeat(B, 1, 1), average_attn_weights=False)[1]
    torch.testing.assert_close(ours.weights(x, bias), true, rtol=1e-5, atol=1e-6)


def test_dropout_is_off_in_eval():
    torch.manual_seed(3)
    attention, x = Attention(12, 3, dropout=0.5), torch.randn(B, T, 12)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    plain = Attention(12, 3)
    plain.load_state_dict(attention.state_dict())
    assert torch.equal(attention(x), plain(x))


def test_heads_must_divide_the_width():
    with pytest.raises(UnveilError, match="width 10 does not divide into 3 heads"):
        Attention(10, 3)


def test_heads_of_published_models_and_of_others():
    assert {width: heads_of(width) for width in (192, 384, 768, 1024, 1280, 512)} == {
        192: 3,
        384: 6,
        768: 12,
        1024: 16,
        1280: 16,
        512: 16,
    }
    assert {width: default_heads(width) for width in (1280, 512, 320, 160, 48, 24)} == {
        1280: 16,
        512: 16,
        320: 5,
        160: 5,
        48: 3,
        24: 3,
    }
    assert all(default_heads(width) == heads for width, heads in HEADS.items())
    with pytest.raises(UnveilError, match="no published model has width 320"):
        heads_of(320)
    with pytest.raises(UnveilError, match="width 100 does not divide into heads of width 8 or more"):
        default_heads(100)


def test_projections_are_the_parts_of_one():
    attention, x, context = Attention(12, 3), torch.randn(B, T, 12), torch.randn(B, S, 12)
    query, key, value = attention.project(x)
    assert query.shape == key.shape == value.shape == (B, 3, T, 4)
    torch.testing.assert_close(attention.query(x), query)
    for found, expected in zip(attention.key_value(x), (key, value), strict=True):
        torch.testing.assert_close(found, expected)
    assert [each.shape[2] for each in attention.project(x, context)] == [T, S, S]
    torch.testing.assert_close(attention.mix(query, key, value), attention(x))


def test_decoders_have_16_heads_as_in_the_public_code():
    """Table 1b varies the width alone."""
    assert [decoder_heads(width) for width in (128, 256, 512, 768, 1024, 320)] == [16] * 6
    assert [decoder_heads(width) for width in (96, 192, 384)] == [3, 3, 6]  # of vit-nano, vit-tiny and vit-small
    assert [decoder_heads(width) for width in (24, 48, 64, 136)] == [3, 3, 1, 17]
