"""Weights for images and patches of another size and with other channels."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import resample_patch_embed
from timm.models._manipulate import adapt_input_conv

from unveil.blocks.patches import PatchEmbed
from unveil.blocks.positions import resize_positions
from unveil.models.adapt import adaptations, adapted
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig

SHAPE = ViTConfig(width=32, depth=2, heads=2, image_size=(32, 32), patch_size=(8, 8), positions="learned")


def encoder(**options: object) -> ViT:
    torch.manual_seed(0)
    made = ViT(replace(SHAPE, **options))
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return made.eval()


def test_the_same_shape_is_a_copy_bit_by_bit() -> None:
    old = encoder()
    new = adapted(old, SHAPE)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())
    assert not {p.data_ptr() for p in old.parameters()} & {p.data_ptr() for p in new.parameters()}
    assert adaptations(old.config, SHAPE) == []


def test_another_image_size_is_that_of_resized() -> None:
    old, images = encoder(relative_bias="block"), torch.rand(2, 3, 48, 24)
    assert torch.equal(adapted(old, replace(old.config, image_size=(48, 24))).eval()(images), old.resized((48, 24)).eval()(images))


@pytest.mark.parametrize(("patch", "size", "channels"), [((4, 4), (32, 32), 3), ((16, 8), (64, 40), 1), ((8, 12), (24, 48), 12)])
def test_everything_at_once_is_a_timm_model_of_that_shape(patch, size, channels) -> None:
    """timm's own functions change the weights of its model, which is then called by itself."""
    old = encoder()
    new = adapted(
        old, replace(SHAPE, image_size=size, patch_size=patch, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    )
    weight = old.embed.weight.detach().unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2)
    expected = adapt_input_conv(channels, resample_patch_embed(weight, list(patch)))
    torch.testing.assert_close(new.embed.weight.detach(), PatchEmbed.from_convolution(expected), atol=1e-5, rtol=1e-5)
    other = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        patch_size=patch,
        in_chans=channels,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
    ).eval()
    names = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.query_key_value", "attn.proj": "attention.out"}
    state, ours = other.state_dict(), new.state_dict()
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = expected, ours["embed.bias"]
    state["cls_token"] = ours["class_token"].reshape(1, 1, -1)
    state["pos_embed"] = resize_positions(old.positions.detach(), old.config.grid, new.config.grid)[None]
    state["norm.weight"], state["norm.bias"] = ours["transformer.norm.weight"], ours["transformer.norm.bias"]
    for i in range(2):
        for their, own in {**names, "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}.items():
            for end in ("weight", "bias"):
                state[f"blocks.{i}.{their}.{end}"] = ours[f"transformer.blocks.{i}.{own}.{end}"]
    other.load_state_dict(state)
    images = torch.randn(2, channels, *size)
    torch.testing.assert_close(new.eval()(images), other.forward_features(images), atol=1e-4, rtol=1e-4)


def test_what_changes_is_said() -> None:
    new = replace(SHAPE, image_size=(64, 32), patch_size=(16, 16), channels=1, mean=(0.5,), std=(0.5,))
    assert adaptations(SHAPE, new) == [
        "positions are interpolated from 4 x 4 to 4 x 2 patches",
        "the patch embedding is resized from 8 x 8 to 16 x 16 px (pseudo-inverse, FlexiViT)",
        "the weights of its 3 channels are summed into one",
    ]
    assert adaptations(replace(SHAPE, channels=4), replace(SHAPE, channels=12)) == [
        "the weights of its 4 channels are repeated for 12 channels, times 4/12"
    ]
