"""The pyramid of a plain ViT, against loops, transformers' VitDet, and itself without windows."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F
from transformers import BeitConfig, BeitModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, VitDetBackbone, VitDetConfig

from unveil.blocks.map_norms import MapBatchNorm
from unveil.blocks.patches import PatchEmbed
from unveil.errors import UnveilError
from unveil.interop.configs import config_from_json
from unveil.interop.load import load
from unveil.models.adapt import adapted
from unveil.models.pyramid import Pyramid, PyramidConfig, build_pyramid, depths, global_blocks
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig

TINY = ViTConfig(width=16, depth=4, heads=2, image_size=(32, 48), patch_size=(8, 8), channels=3)
"""4 x 6 patches."""
KINDS = {
    "plain": {},
    "learned": {"positions": "learned"},
    "registers": {"registers": 2, "layer_scale": 0.5, "positions": "learned"},
    "distilled": {"distillation_token": True, "positions": "learned"},
    "no class token": {"class_token": False, "positions": "learned", "norm_after_pooling": True, "final_norm": False},
    "clip": {"pre_norm": True, "mlp": "quick_gelu", "eps": 1e-5},
    "dinov2 giant": {"mlp": "swiglu", "layer_scale": 1.0},
    "beit": {"relative_bias": "shared", "positions": "none", "layer_scale": 0.1},
    "beit per block": {"relative_bias": "block", "positions": "learned"},
}


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


def tiny(**changes: object) -> ViT:
    return filled(ViT(replace(TINY, **changes)))


def pictures(height: int = 32, width: int = 48, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_blocks_of_the_literature():
    assert (depths(12), depths(24)) == ((3, 5, 7, 11), (7, 11, 15, 23))
    assert (global_blocks(12), global_blocks(24), global_blocks(32)) == ((2, 5, 8, 11), (5, 11, 17, 23), (7, 15, 23, 31))
    assert (depths(4), global_blocks(4), global_blocks(6)) == ((0, 1, 2, 3), (3,), (2, 5))
    assert (depths(1), global_blocks(1)) == ((0, 0, 0, 0), (0,))


def deconvolution(x: torch.Tensor, layer: nn.ConvTranspose2d) -> torch.Tensor:
    out = torch.zeros(len(x), layer.out_channels, 2 * x.shape[2], 2 * x.shape[3])
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            out[:, :, i, j] = x[:, :, i // 2, j // 2] @ layer.weight[:, :, i % 2, j % 2] + layer.bias
    return out


def norm(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    if isinstance(layer, MapBatchNorm):
        mean, variance = layer.running_mean[:, None, None], layer.running_var[:, None, None]
    else:
        mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, correction=0)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


def convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    reach = weight.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4)
    out = torch.zeros(len(x), len(weight), *x.shape[2:])
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            patch = padded[:, :, i : i + 2 * reach + 1, j : j + 2 * reach + 1]
            out[:, :, i, j] = torch.einsum("bcij,ocij->bo", patch, weight)
    return out


def maximum(x: torch.Tensor) -> torch.Tensor:
    rows, columns = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
    cells = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax(dim=(2, 3)) for i in range(rows) for j in range(columns)]
    return torch.stack(cells, dim=2).unflatten(2, (rows, columns))


@pytest.mark.parametrize("levels", ["last", "depths"])
@pytest.mark.parametrize("norm_kind", ["layer", "batch"])
@pytest.mark.parametrize("size", [(32, 48), (24, 40)])
def test_the_pyramid_equals_a_slow_one(levels, norm_kind, size):
    encoder = tiny()
    pyramid = filled(build_pyramid(encoder, PyramidConfig(levels=levels, channels=6, norm=norm_kind)))
    for module in pyramid.modules():
        if isinstance(module, MapBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = pictures(*size)
    tokens, each = pyramid.encoder.tokens(images, any_size=True), []
    for block in pyramid.encoder.transformer.blocks:
        tokens = block(tokens)
        each.append(tokens[:, 1:].transpose(1, 2).reshape(2, 16, size[0] // 8, size[1] // 8))
    taps = [each[-1]] * 4 if levels == "last" else each
    finest, second = pyramid.resize[0], pyramid.resize[1]
    maps = [
        deconvolution(F.gelu(norm(deconvolution(taps[0], finest[0]), finest[1])), finest[3]),
        deconvolution(taps[1], second),
        taps[2],
        maximum(taps[3]),
    ]
    if levels == "last":
        maps = [
            norm(convolution(norm(convolution(x, p[0].weight), p[1]), p[2].weight), p[3])
            for x, p in zip(maps, pyramid.project, strict=True)
        ]
    found = pyramid(images)
    assert [m.shape[1] for m in found] == pyramid.channels == ([6] * 4 if levels == "last" else [16] * 4)
    assert pyramid.strides == [2, 4, 8, 16]
    for a, b in zip(found, maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_maps_without_a_change_of_resolution():
    encoder = tiny(positions="learned")
    pyramid = build_pyramid(encoder, PyramidConfig(levels="patches"))
    found = pyramid(pictures())
    for a, b in zip(found, encoder.forward_features(pictures(), (0, 1, 2, 3)), strict=True):
        assert torch.equal(a, b)
    assert (pyramid.channels, pyramid.strides) == ([16] * 4, [8] * 4)


def test_other_patches_keep_the_four_factors():
    pyramid = build_pyramid(tiny(patch_size=(14, 14), image_size=(28, 28)), PyramidConfig(channels=4))
    assert pyramid.strides == [3.5, 7, 14, 28]
    assert [m.shape[2:] for m in pyramid(pictures(28, 42))] == [(8, 12), (4, 6), (2, 3), (1, 2)]
    with pytest.raises(UnveilError, match="8 x 4 pixels: a pyramid needs square ones"):
        build_pyramid(tiny(patch_size=(8, 4)), PyramidConfig())
    with pytest.raises(UnveilError, match="image side 30 is not a multiple of patch 14"):
        pyramid(pictures(30, 42))


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_as_large_as_the_image_is_global_attention(kind):
    encoder = tiny(**KINDS[kind], image_size=(32, 32))
    config = PyramidConfig(levels="patches", window=4)
    windowed, relative = build_pyramid(encoder, config), build_pyramid(encoder, replace(config, relative_positions=True))
    everywhere = ViT(replace(windowed.encoder.config, global_blocks=(0, 1, 2, 3)))
    everywhere.load_state_dict(windowed.encoder.state_dict())
    assert everywhere.config.prefix_tokens == 0
    true = everywhere.eval().forward_features(pictures(32, 32), (0, 1, 2, 3))
    for a, b, c in zip(windowed(pictures(32, 32)), relative(pictures(32, 32)), true, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(b, c, rtol=1e-3, atol=1e-4)  # relative positions start at zero
    smaller = build_pyramid(encoder, replace(config, window=2))(pictures(32, 32))
    assert not torch.allclose(smaller[0], true[0], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_windows_the_maps_are_those_of_the_encoder(kind):
    encoder = tiny(**KINDS[kind])
    pyramid = build_pyramid(encoder, PyramidConfig(levels="patches"))
    for size in ((32, 48), (40, 24)):
        found = pyramid(pictures(*size))
        true = encoder.forward_features(pictures(*size), (0, 1, 2, 3), antialias=False)
        for a, b in zip(found, true, strict=True):
            assert torch.equal(a, b)


def dinov2(folder: Path) -> tuple[str, Callable[[torch.Tensor], list[torch.Tensor]]]:
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = filled(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=3, use_swiglu_ffn=True)))
    model.save_pretrained(folder)
    return str(folder), lambda images: [
        each[:, 4:].mT.unflatten(2, (4, 4)) for each in model(images, output_hidden_states=True).hidden_states[1:]
    ]


def beit(folder: Path) -> tuple[str, Callable[[torch.Tensor], list[torch.Tensor]]]:
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = filled(BeitModel(BeitConfig(**shape, intermediate_size=64, use_relative_position_bias=True)))
    model.save_pretrained(folder)
    return str(folder), lambda images: [
        each[:, 1:].mT.unflatten(2, (4, 4)) for each in model(images, output_hidden_states=True).hidden_states[1:]
    ]


def clip(folder: Path) -> tuple[str, Callable[[torch.Tensor], list[torch.Tensor]]]:
    small = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    name = "vit_base_patch32_clip_224"
    model = filled(timm.create_model(name, **small))
    save_for_hf(model, folder, model_args=small)
    return str(folder), lambda images: model.forward_intermediates(images, 4, intermediates_only=True)


@torch.no_grad()
@pytest.mark.parametrize("source", [dinov2, beit, clip])
def test_encoders_of_other_libraries(source, tmp_path):
    path, peer = source(tmp_path)
    encoder = load(path, say=lambda text: None).encoder
    pyramid = build_pyramid(encoder, PyramidConfig(levels="patches"))
    for a, b in zip(pyramid(pictures(32, 32)), peer(pictures(32, 32)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    windowed = build_pyramid(encoder, PyramidConfig(levels="patches", window=3, relative_positions=True))
    assert [m.shape for m in windowed(pictures(40, 24))] == [(2, 32, 5, 3)] * 4


def vitdet(ours: ViT, pretrained: int, image: int) -> VitDetBackbone:
    config = ours.config
    peer = VitDetBackbone(
        VitDetConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=image,
            pretrain_image_size=pretrained,
            patch_size=8,
            window_size=config.window,
            window_block_indices=[i for i in range(config.depth) if i not in config.global_blocks],
            use_relative_position_embeddings=True,
            out_features=[f"stage{i + 1}" for i in range(config.depth)],
        )
    )
    state = ours.state_dict()
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.query_key_value": "attention.qkv",
        "attention.out": "attention.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }
    theirs = {}
    for i in range(config.depth):
        for mine, other in names.items():
            for part in ("weight", "bias"):
                theirs[f"encoder.layer.{i}.{other}.{part}"] = state.pop(f"transformer.blocks.{i}.{mine}.{part}")
        for mine, other in (("rows", "rel_pos_h"), ("columns", "rel_pos_w")):
            theirs[f"encoder.layer.{i}.attention.{other}"] = state.pop(f"transformer.blocks.{i}.attention.{mine}")
    kernel = state.pop("embed.weight").unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2)
    assert torch.equal(PatchEmbed.from_convolution(kernel), ours.embed.weight)
    theirs |= {"embeddings.projection.weight": kernel, "embeddings.projection.bias": state.pop("embed.bias")}
    positions = state.pop("positions")
    theirs["embeddings.position_embeddings"] = torch.cat([torch.zeros(1, config.width), positions])[None]
    assert not state
    peer.load_state_dict(theirs)
    return peer.eval()


@pytest.mark.parametrize("size", [(40, 40), (24, 56), (64, 48)])
def test_the_maps_equal_those_of_vitdet_in_transformers(size):
    square = filled(ViT(replace(TINY, image_size=(40, 40), positions="learned", class_token=False)))
    config = PyramidConfig(levels="patches", window=3, relative_positions=True)
    ours = filled(build_pyramid(square, config), seed=5)
    assert ours.encoder.config.global_blocks == (3,)
    peer = vitdet(ours.encoder, 40, 40)
    with torch.no_grad():
        found, true = ours(pictures(*size)), peer(pictures(*size)).feature_maps
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_pretrained_grid_is_resized_as_in_vitdet():
    small = filled(ViT(replace(TINY, image_size=(32, 32), positions="learned")))
    ours = filled(build_pyramid(small.resized(64), PyramidConfig(levels="patches", window=3, relative_positions=True)), seed=5)
    peer = vitdet(ours.encoder, 64, 64)
    pretrained = vitdet(build_pyramid(small, PyramidConfig(window=3, relative_positions=True)).encoder, 32, 32)
    ours.encoder.positions.data = small.resized(64).positions.data[1:]
    peer.embeddings.position_embeddings = pretrained.embeddings.position_embeddings
    with torch.no_grad():
        found, true = ours(pictures(64, 64)), peer(pictures(64, 64)).feature_maps
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_body_is_rebuilt(kind):
    config = PyramidConfig(channels=8, window=2, relative_positions=True, drop_path=0.1)
    pyramid = filled(build_pyramid(tiny(**KINDS[kind]), config))
    values = json.loads(json.dumps(asdict(pyramid.encoder.config)))
    shape = config_from_json(ViTConfig, values, "config.json")
    assert shape == pyramid.encoder.config
    again = build_pyramid(ViT(shape), config).eval()
    again.load_state_dict(pyramid.state_dict())
    for a, b in zip(again(pictures()), pyramid(pictures()), strict=True):
        assert torch.equal(a, b)
    if shape.relative_bias == "decomposed":
        with pytest.raises(UnveilError, match=r"trained with windows of 2 patches.*give no window, or 2"):
            build_pyramid(pyramid.encoder, replace(config, window=3))
    assert build_pyramid(ViT(shape), replace(config, window=None, relative_positions=False)).encoder.config == shape


def test_an_older_config_has_no_windows():
    values = asdict(TINY)
    for name in ("window", "global_blocks"):
        del values[name]
    assert config_from_json(ViTConfig, json.loads(json.dumps(values)), "config.json") == TINY


def test_relative_positions_follow_the_image_size():
    config = PyramidConfig(window=2, relative_positions=True)
    encoder = filled(build_pyramid(tiny(), config)).encoder
    for other in (encoder.resized((64, 80)), adapted(encoder, replace(encoder.config, image_size=(64, 80)))):
        attention = [block.attention for block in other.transformer.blocks]
        assert [len(a.rows) for a in attention] == [3, 3, 3, 15]
        assert len(attention[3].columns) == 19
        a, b = (e.forward_features(pictures(64, 80), (3,), antialias=False)[0] for e in (other, encoder))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", ["last", "depths"])
def test_every_weight_learns(levels):
    """DDP waits for the gradient of each."""
    config = PyramidConfig(levels=levels, channels=4, window=3, relative_positions=True)
    pyramid = build_pyramid(filled(ViT(replace(TINY, grad_checkpointing=True, registers=1))), config).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(m.float().square().mean() for m in pyramid(pictures()))
    loss.backward()
    assert [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    exact = build_pyramid(filled(ViT(replace(TINY, registers=1))), config).train()
    exact.load_state_dict(pyramid.state_dict())
    sum(m.square().mean() for m in exact(pictures())).backward()
    for (name, a), b in zip(pyramid.named_parameters(), exact.parameters(), strict=True):
        similar = F.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0)
        assert similar > 0.95 or b.grad.abs().max() < 1e-3, name


def test_recomputing_activations_changes_nothing():
    plain, frugal = (
        build_pyramid(filled(ViT(replace(TINY, grad_checkpointing=on))), PyramidConfig(channels=4, window=2, drop_path=0.5))
        for on in (False, True)
    )
    frugal.load_state_dict(plain.state_dict())
    gradients = []
    for pyramid in (plain.train(), frugal.train()):
        torch.manual_seed(7)
        sum(m.square().mean() for m in pyramid(pictures())).backward()
        gradients.append([p.grad for p in pyramid.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_layers_and_weight_decay():
    pyramid: Pyramid = build_pyramid(tiny(registers=1), PyramidConfig(channels=4))
    layers = {name: pyramid.layer_of(name) for name, _ in pyramid.named_parameters()}
    assert layers["encoder.positions"] == layers["encoder.embed.weight"] == 0
    assert layers["encoder.transformer.blocks.2.attention.out.weight"] == 3
    assert {layer for name, layer in layers.items() if not name.startswith("encoder.")} == {5}
    assert pyramid.no_weight_decay() == {"encoder.positions", "encoder.registers"}
    windowed = build_pyramid(tiny(), PyramidConfig(window=2, relative_positions=True))
    assert windowed.layer_of("encoder.transformer.blocks.1.attention.rows") == 2
    assert windowed.encoder.positions.requires_grad


def test_one_graph_under_compile():
    pyramid = build_pyramid(tiny(depth=2), PyramidConfig(channels=4, window=3, relative_positions=True))
    compiled = torch.compile(pyramid, backend="eager", fullgraph=True)
    for a, b in zip(compiled(pictures()), pyramid(pictures()), strict=True):
        torch.testing.assert_close(a, b)


def test_windows_refuse_what_they_cannot_do():
    encoder = build_pyramid(tiny(), PyramidConfig(window=2)).encoder
    with pytest.raises(UnveilError, match="takes all patches"):
        encoder(pictures(), torch.arange(4).expand(2, 4))
    with pytest.raises(UnveilError, match="windows of 2 x 2 patches are for patches only, but this encoder has 1 tokens"):
        replace(TINY, window=2)
    with pytest.raises(UnveilError, match="global_blocks has 4, but the blocks of this encoder are 0 to 3"):
        replace(TINY, window=2, class_token=False, global_blocks=(4,))


def test_a_frozen_encoder_keeps_no_activations():
    pyramid = build_pyramid(tiny(), PyramidConfig(channels=4))
    pyramid.encoder.requires_grad_(False)
    tap = pyramid.encoder.forward_features(pictures(), (3,))[0]
    assert tap.grad_fn is None
    sum(m.square().mean() for m in pyramid(pictures())).backward()
    learned = {name.partition(".")[0] for name, p in pyramid.named_parameters() if p.grad is not None}
    assert learned == {"resize", "project"}
