"""The options of MAE, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.blocks.block_masks import BLOCK_NOISE, block_mask
from unveil.blocks.masks import as_bool, split
from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import ViTConfig

VIT = ViTConfig(width=24, depth=2, heads=3, image_size=(8, 12), patch_size=(2, 3), channels=5, mean=(0.5,) * 5, std=(0.25,) * 5)
N = 16


def build(**options: object) -> MAE:
    torch.manual_seed(0)
    return MAE.build(VIT, MAEConfig(**{"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2, **options}), AugmentConfig())


def raw(count: int = 3) -> Tensor:
    return torch.randn(count, 5, 8, 12, generator=torch.Generator().manual_seed(1)) + 0.3


def batch(images: Tensor, first: int = 0) -> Batch:
    return Batch(images, torch.tensor([[8, 12]] * len(images)), sample_keys(0, first, len(images)))


def hidden_of(mae: MAE, keys: Tensor) -> Tensor:
    return as_bool(mae.mask(keys)[1], N)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.3])
def test_the_encoder_sees_one_token_a_visible_patch(tokens, ratio):
    mae = build(mask_tokens_in_encoder=tokens, mask_ratio=ratio)
    seen, decoded = [], []
    mae.encoder.transformer.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    mae.decoder.blocks[0].mlp.register_forward_pre_hook(lambda _, x: decoded.append(x[0].shape[1]))
    mae(batch(raw()))
    assert seen == [1 + N if tokens else 1 + int(N * (1 - ratio))]
    assert decoded == [1 + N]


def test_sampling():
    keys = sample_keys(0, 0, 4)
    assert hidden_of(build(sampling="grid"), keys)[0].tolist() == [(n // 4 % 2 + n % 4 % 2) > 0 for n in range(N)]
    keep, hide = build(sampling="block", mask_ratio=0.5).mask(keys)
    assert torch.equal(hide, block_mask(uniform(keys, BLOCK_NOISE, Stream.MASK), (4, 4), 0.5)[1])
    assert keep.shape == hide.shape == (4, 8)
    with pytest.raises(UnveilError, match=r"grid sampling cannot mask 0\.5"):
        build(sampling="grid", mask_ratio=0.5)


@pytest.mark.parametrize("sampling", ["random", "block"])
def test_the_mask_depends_on_the_key_alone(sampling):
    mae, keys = build(sampling=sampling, mask_ratio=0.6), sample_keys(0, 0, 12)
    whole = hidden_of(mae, keys)
    assert torch.equal(torch.cat([hidden_of(mae, keys[:5]), hidden_of(mae, keys[5:])]), whole)
    assert torch.equal(hidden_of(mae, keys.flip(0)), whole.flip(0))
    assert len({tuple(row) for row in whole.tolist()}) > 6
    images = raw(12)
    split_loss = (5 * mae(batch(images[:5])).loss + 7 * mae(batch(images[5:], first=5)).loss) / 12
    torch.testing.assert_close(mae(batch(images)).loss, split_loss)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 0.99])
def test_ratios_that_hide_nothing_or_all_are_refused_at_once(ratio):
    with pytest.raises(UnveilError, match=f"mask ratio {ratio}"):
        build(mask_ratio=ratio)


def test_wrong_masks_are_refused():
    mae, images = build(), raw(2)
    uneven = torch.zeros(2, N, dtype=torch.bool)
    uneven[0, 0] = True
    for hidden in (uneven, torch.ones(2, N - 1, dtype=torch.bool), torch.ones(3, N, dtype=torch.bool)):
        with pytest.raises(UnveilError, match="the same count in each row"):
            mae.loss(images, hidden)


def test_a_mask_is_drawn_where_none_is_given():
    mae, images = build(), raw(2)
    torch.manual_seed(5)
    first = mae.reconstruct(images).hidden
    second = mae.reconstruct(images).hidden
    assert first.sum(1).tolist() == second.sum(1).tolist() == [12, 12]
    assert not torch.equal(first, second)
    keep, hide = split(first)
    torch.manual_seed(5)
    torch.testing.assert_close(mae.loss(images), mae.masked_loss(images, keep, hide))


def test_the_decoder_follows_the_encoder():
    for width, depth, heads, expected in [(768, 2, 12, (512, 8)), (96, 4, 3, (96, 2)), (384, 12, 6, (384, 4))]:
        vit = replace(VIT, width=width, depth=depth, heads=heads)
        mae = MAE.build(vit, MAEConfig(), AugmentConfig())
        assert (mae.decoder.config.width, mae.decoder.config.depth) == expected
    assert math.isclose(float(mae.mask_token.detach().std()), 0.02, rel_tol=0.3)
    with pytest.raises(UnveilError, match="width 20 does not divide into heads of width 8 or more"):
        MAE.build(VIT, MAEConfig(decoder_width=20), AugmentConfig())


def test_figure_facts():
    facts = build(sampling="block", mask_ratio=0.5, target="pixel", loss_on_all=True).figure_facts()
    assert facts == {
        "mask_ratio": 0.5,
        "sampling": "block",
        "target": "pixel",
        "loss_on_all": True,
        "uses_true_patch_statistics": False,
    }
    assert build().figure_facts()["uses_true_patch_statistics"]
