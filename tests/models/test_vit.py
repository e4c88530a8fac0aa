"""The encoder: its size against timm's, its positions, its ways out."""

from dataclasses import replace

import pytest
import timm
import torch
from torch.nn import functional as F

from unveil.blocks.attention import heads_of
from unveil.blocks.positions import resize_positions, sincos_2d
from unveil.errors import UnveilError
from unveil.interop.layout_maps import encoder_map
from unveil.interop.layouts import TIMM
from unveil.interop.state_dict_map import to_state_dict
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig

TINY = ViTConfig(width=24, depth=2, heads=3, image_size=(8, 12), patch_size=(4, 4), channels=2, mean=(0.5,) * 2, std=(0.5,) * 2)


def tiny(**changes: object) -> ViT:
    torch.manual_seed(0)
    return ViT(replace(TINY, **changes)).eval()


@pytest.mark.parametrize(
    ("name", "peer", "patch"),
    [
        ("vit-tiny", "vit_tiny_patch16_224", 16),
        ("vit-small", "vit_small_patch16_224", 16),
        ("vit-base", "vit_base_patch16_224", 16),
        ("vit-large", "vit_large_patch16_224", 16),
        ("vit-huge", "vit_huge_patch14_224", 14),
    ],
)
def test_as_many_parameters_as_timm(name, peer, patch):
    width, depth, heads = MODELS[name]
    with torch.device("meta"):
        ours = ViT(ViTConfig(width=width, depth=depth, heads=heads, image_size=(224, 224), patch_size=(patch, patch)))
        theirs = timm.create_model(peer, num_classes=0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert theirs.blocks[0].attn.num_heads == heads == ours.transformer.blocks[0].attention.heads
    assert len(theirs.blocks) == len(ours.transformer.blocks)


def test_the_base_model_has_the_known_size():
    with torch.device("meta"):
        ours = ViT(ViTConfig(width=768, depth=12, heads=12, image_size=(224, 224), patch_size=(16, 16)))
    assert sum(p.numel() for p in ours.parameters()) == 85_798_656


def test_tokens_in_and_out():
    vit, x = tiny(), torch.randn(3, 2, 8, 12)
    out = vit(x)
    assert out.shape == (3, 1 + 6, 24)
    weight = vit.embed.weight.unflatten(1, (4, 4, 2)).permute(0, 3, 1, 2)  # (D, C, p, q)
    patches = F.conv2d(x, weight, vit.embed.bias, stride=4).flatten(2).mT
    tokens = torch.cat([vit.class_token.expand(3, 1, 24), patches], dim=1) + vit.positions
    torch.testing.assert_close(vit.tokens(x), tokens)
    for block in vit.transformer.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(out, vit.transformer.norm(tokens))
    torch.testing.assert_close(vit.features(x), out[:, 1:].mean(dim=1))
    torch.testing.assert_close(vit.features(x, "class"), out[:, 0])
    torch.testing.assert_close(out[1:2], vit(x[1:2]))  # images do not see each other


def test_keep_takes_patches_with_their_own_positions():
    vit, x = tiny(), torch.randn(2, 2, 8, 12)
    keep = torch.tensor([[5, 0], [2, 3]])
    some, every = vit.tokens(x, keep), vit.tokens(x)
    for b in range(2):
        torch.testing.assert_close(some[b, 0], every[b, 0])
        for v in range(2):
            torch.testing.assert_close(some[b, 1 + v], every[b, 1 + keep[b, v]])
    kept_in_order = vit(x, torch.arange(6).expand(2, 6))
    torch.testing.assert_close(kept_in_order, vit(x))
    shuffled = vit(x, torch.tensor([[3, 1, 0, 5, 4, 2]] * 2))  # a Transformer does not care for the order
    torch.testing.assert_close(shuffled[:, 0], vit(x)[:, 0], rtol=1e-4, atol=1e-5)


def test_mask_tokens_stand_in_before_the_positions():
    vit, x, token = tiny(), torch.randn(2, 2, 8, 12), torch.randn(24)
    hidden = torch.tensor([[True, False, False, True, False, False], [False] * 5 + [True]])
    found, plain = vit.tokens(x, hidden=hidden, mask_token=token), vit.tokens(x)
    for b in range(2):
        for n in range(6):
            torch.testing.assert_close(found[b, 1 + n], token + vit.positions[1 + n] if hidden[b, n] else plain[b, 1 + n])


def test_positions_fixed_or_learned():
    fixed, learned = tiny(), tiny(positions="learned")
    assert not fixed.positions.requires_grad
    assert learned.positions.requires_grad
    assert torch.equal(fixed.positions[1:], sincos_2d((2, 3), 24))
    assert not fixed.positions[0].any()
    assert learned.positions.shape == fixed.positions.shape
    assert 0.01 < learned.positions.std() < 0.03


@pytest.mark.parametrize("relative_bias", ["none", "shared", "block"])
def test_attention_of_the_class_token(relative_bias):
    vit, x = tiny(relative_bias=relative_bias), torch.randn(2, 2, 8, 12)
    for table in vit.relative:
        torch.nn.init.normal_(table.table)
    biases = [table().detach() for table in vit.relative]  # (3, 7, 7)
    tokens = vit.tokens(x)
    for i, block in enumerate(vit.transformer.blocks[:-1]):
        tokens = block(tokens, bias=biases[i % len(biases)] if biases else None)
    last = vit.transformer.blocks[-1]
    query, key, _ = last.attention.query_key_value(last.norm1(tokens)).unflatten(-1, (3, 3, 8)).unbind(2)
    for b in range(2):
        for head in range(3):
            scores = torch.stack([query[b, 0, head] @ key[b, t, head] / 8**0.5 for t in range(7)])
            scores = scores + (biases[-1][head, 0] if biases else 0.0)
            torch.testing.assert_close(vit.attention(x)[b, head], (scores.exp() / scores.exp().sum())[1:], rtol=1e-4, atol=1e-6)


def test_resized():
    vit = tiny(positions="learned")
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    other = vit.resized((16, 16))
    assert other.config == replace(vit.config, image_size=(16, 16))
    assert other(torch.randn(1, 2, 16, 16)).shape == (1, 17, 24)
    assert torch.equal(other.positions, resize_positions(vit.positions, (2, 3), (4, 4)))
    for name, value in before.items():
        assert torch.equal(vit.state_dict()[name], value)
        if name != "positions":
            assert torch.equal(other.state_dict()[name], value)
            assert other.state_dict()[name].data_ptr() != vit.state_dict()[name].data_ptr()
    same = vit.resized((8, 12)).eval()
    x = torch.randn(1, 2, 8, 12)
    assert torch.equal(same(x), vit(x))
    with pytest.raises(UnveilError, match="image side 10 is not a multiple of patch 4"):
        vit.resized((10, 12))
    assert torch.equal(vit.resized(16).positions, vit.resized((16, 16)).positions)
    for wrong in ((16,), (16, 16, 16), (16.0, 16), "16"):
        with pytest.raises(UnveilError, match="give one side, or height and width, in whole pixels"):
            vit.resized(wrong)


@pytest.mark.parametrize("shape", [(3, 8, 12), (2, 12, 8), (2, 8, 16)])
def test_other_images_are_refused(shape):
    with pytest.raises(UnveilError) as caught:
        tiny()(torch.zeros(1, *shape))
    assert str(caught.value) == f"images are (channels, height, width) {shape}, but the model takes (2, 8, 12)"


def test_heads_are_those_of_the_table():
    assert all(heads_of(width) == heads for width, _, heads in MODELS.values())


def timm_peer(vit: ViT, image_size: tuple[int, int]) -> torch.nn.Module:
    """timm's model with the weights of ours, for images of any size."""
    config = vit.config
    peer = timm.models.VisionTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        in_chans=config.channels,
        num_classes=0,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        dynamic_img_size=True,
        final_norm=config.final_norm,
    ).eval()
    peer.load_state_dict(to_state_dict(vit, encoder_map(TIMM, config, ours=""), config.patch_size))
    return peer


@pytest.mark.parametrize("size", [(8, 12), (16, 8), (24, 24)])
@pytest.mark.parametrize("final_norm", [True, False])
def test_feature_maps_equal_those_of_timm(size, final_norm):
    vit = tiny(depth=4, positions="learned", final_norm=final_norm)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 2, *size)
    found = vit.forward_features(x, layers=(0, 2, -1))
    expected = timm_peer(vit, (8, 12)).forward_intermediates(x, indices=[0, 2, 3], intermediates_only=True)
    assert [each.shape for each in found] == [(2, 24, size[0] // 4, size[1] // 4)] * 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with pytest.raises(UnveilError, match="image side 10 is not a multiple of patch 4"):
        vit.forward_features(torch.zeros(1, 2, 10, 12), layers=(0,))
    with pytest.raises(UnveilError, match="images are"):
        vit.forward_features(torch.zeros(1, 3, 8, 12), layers=(0,))


def test_both_poolings_side_by_side():
    vit = ViT(ViTConfig(width=48, depth=2, heads=3, image_size=(8, 8), patch_size=(4, 4))).eval()
    images = torch.randn(3, 3, 8, 8)
    parts = [vit.features(images, pool) for pool in ("mean", "class")]
    assert torch.equal(vit.features(images, "both"), torch.cat(parts, dim=1))


def test_feature_maps_and_tokens_are_the_same():
    vit, x = tiny(), torch.randn(2, 2, 8, 12)
    (last,) = vit.forward_features(x, layers=(-1,))
    tokens = vit.transformer.norm(last.flatten(2).mT)
    torch.testing.assert_close(tokens, vit(x)[:, 1:])
    bare = tiny(final_norm=False)
    bare.load_state_dict({name: value for name, value in vit.state_dict().items() if not name.startswith("transformer.norm")})
    torch.testing.assert_close(bare(x)[:, 1:], last.flatten(2).mT)


@pytest.mark.parametrize("relative_bias", ["shared", "block"])
def test_any_size_with_relative_biases(relative_bias):
    """The same as a model that was resized to these images."""
    vit, x = tiny(relative_bias=relative_bias, positions="learned"), torch.randn(2, 2, 16, 8)
    for table in vit.relative:
        torch.nn.init.normal_(table.table)
    torch.testing.assert_close(vit(x, any_size=True), vit.resized((16, 8)).eval()(x))
    like_timm = vit.resized((16, 8), antialias=True).eval()
    torch.testing.assert_close(vit.forward_features(x, (1,))[0], like_timm.forward_features(x, (1,))[0])


def test_gradient_checkpointing_of_feature_maps():
    vit, x = tiny(grad_checkpointing=True).train(), torch.randn(2, 2, 8, 12)
    vit.forward_features(x, (0, 1))[1].sum().backward()
    found = vit.embed.weight.grad.clone()
    plain = tiny().train()
    plain.forward_features(x, (0, 1))[1].sum().backward()
    torch.testing.assert_close(found, plain.embed.weight.grad)


def test_layers_and_weight_decay():
    vit = tiny(positions="learned", relative_bias="block")
    layers = {name: vit.layer_of(name) for name, _ in vit.named_parameters()}
    assert {layers[name] for name in ("embed.weight", "class_token", "positions", "relative.1.table")} == {0}
    assert {layers[name] for name in layers if name.startswith("transformer.blocks.1.")} == {2}
    assert vit.no_weight_decay() == {"positions"}
