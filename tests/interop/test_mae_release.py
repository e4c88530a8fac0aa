import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import UnveilError
from unveil.interop import mae_release
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.load import load
from unveil.methods.mae import MAE


def blocks(start, width, depth):
    state = {}
    for i in range(depth):
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            state[f"{start}.{i}.{name}.weight"] = torch.randn(out * width, into * width)
            state[f"{start}.{i}.{name}.bias"] = torch.randn(out * width)
        for name in ("norm1", "norm2"):
            state |= norm(f"{start}.{i}.{name}", width)
    return state


def norm(name, width):
    return {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}


def release(width=192, depth=2, side=4, patch=(4, 4), channels=3, decoder=(128, 1)):
    """A state dict as the public code would save it, with random values."""
    torch.manual_seed(0)
    state = (
        {
            "cls_token": torch.randn(1, 1, width),
            "pos_embed": torch.randn(1, 1 + side**2, width),
            "patch_embed.proj.weight": torch.randn(width, channels, *patch),
            "patch_embed.proj.bias": torch.randn(width),
        }
        | blocks("blocks", width, depth)
        | norm("norm", width)
    )
    if decoder:
        wide, deep = decoder
        values = patch[0] * patch[1] * channels
        state |= (
            {
                "mask_token": torch.randn(1, 1, wide),
                "decoder_pos_embed": torch.randn(1, 1 + side**2, wide),
                "decoder_embed.weight": torch.randn(wide, width),
                "decoder_embed.bias": torch.randn(wide),
                "decoder_pred.weight": torch.randn(values, wide),
                "decoder_pred.bias": torch.randn(values),
            }
            | blocks("decoder_blocks", wide, deep)
            | norm("decoder_norm", wide)
        )
    return state


def saved(path, state):
    torch.save({"model": state}, path)
    return path


def identical(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("decoder", [(128, 1), None])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_goes_in_and_out_unchanged(tmp_path, logged, decoder, ending):
    state = release(decoder=decoder)
    path = tmp_path / f"release.{ending}"
    if ending == "pth":
        saved(path, state)
    else:
        save_file(state, path)
    learner = load(path, decoder_heads=4, say=logged) if decoder else load(path, say=logged)
    assert f"{len(state)} of {len(state)} tensors matched" in logged[0]
    again = mae_release.export(learner, tmp_path / f"again.{ending}")
    assert identical(mae_release.read_tensors(again), state)
    if ending == "pth":
        assert list(torch.load(again, weights_only=True)) == ["model"]


def test_shape_follows_from_the_tensors(tmp_path):
    learner = load(saved(tmp_path / "x.pth", release(384, 3, 5, (6, 6), 2, (512, 2))))
    vit = learner.encoder.config
    assert (vit.width, vit.depth, vit.heads, vit.image_size, vit.patch_size, vit.channels) == (384, 3, 6, (30, 30), (6, 6), 2)
    assert (learner.config.decoder_width, learner.config.decoder_depth, learner.decoder.config.heads) == (512, 2, 16)
    assert learner.config.target == "normalised"
    assert not learner.training
    images, hidden = torch.randn(2, 2, 30, 30), torch.arange(25).expand(2, -1) < 10
    assert learner.loss(images, hidden).ndim == 0
    assert learner.reconstruct(images, hidden).pixels.shape == images.shape


def test_what_the_file_does_not_tell_can_be_given(tmp_path):
    path = saved(tmp_path / "x.pth", release(64, 1, 4, (4, 2), decoder=(32, 1)))
    with pytest.raises(UnveilError, match=r"width 64, so the number of heads .*heads="):
        load(path)
    learner = load(path, heads=2, decoder_heads=8, image_size=(8, 16), target="pixel")
    assert learner.encoder.config.grid == (2, 8)
    assert learner.encoder.config.heads == 2
    assert learner.decoder.config.heads == 8
    assert learner.config.target == "pixel"
    with pytest.raises(UnveilError, match="positions of 16 patches, but images of 16 x 16 px have 32"):
        load(path, heads=2, decoder_heads=8, image_size=16)


def test_grid_that_is_no_square_asks_for_its_size(tmp_path):
    state = release(decoder=None)
    state["pos_embed"] = torch.randn(1, 13, 192)
    with pytest.raises(UnveilError, match="12 patches, which is not a square grid: pass image_size"):
        load(saved(tmp_path / "x.pth", state))
    assert load(tmp_path / "x.pth", image_size=(12, 16)).encoder.config.grid == (3, 4)


@pytest.mark.parametrize(
    "name", ["norm.bias", "blocks.1.attn.qkv.weight", "decoder_norm.weight", "mask_token", "decoder_pred.bias", "decoder_pos_embed"]
)
def test_missing_tensor_is_named(tmp_path, name):
    state = release()
    del state[name]
    with pytest.raises(UnveilError, match=f"1 missing.*{name}"):
        load(saved(tmp_path / "x.pth", state), decoder_heads=4)


@pytest.mark.parametrize(
    "name", ["cls_token", "pos_embed", "patch_embed.proj.weight", "decoder_embed.weight", "decoder_pred.weight"]
)
def test_missing_tensor_that_tells_the_shape_is_named(tmp_path, name):
    state = release()
    del state[name]
    with pytest.raises(UnveilError, match=f"{name} is missing"):
        load(saved(tmp_path / "x.pth", state), decoder_heads=4)


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.attn.relative", "blocks.7.norm1.weight", "decoder_extra"])
def test_left_over_tensor_is_named(tmp_path, name):
    state = release() | {name: torch.zeros(3)}
    with pytest.raises(UnveilError, match=rf"left over \(.*{name}"):
        load(saved(tmp_path / "x.pth", state), decoder_heads=4)


@pytest.mark.parametrize("name", ["blocks.1.mlp.fc1.bias", "norm.weight", "decoder_pos_embed", "mask_token", "cls_token"])
def test_tensor_of_another_shape_is_named(tmp_path, name):
    state = release()
    state[name] = torch.zeros(*state[name].shape[:-1], state[name].shape[-1] + 4)
    with pytest.raises(UnveilError, match=rf"{name} \(.*does not fit"):
        load(saved(tmp_path / "x.pth", state), decoder_heads=4)


def test_without_decoder_it_only_encodes(tmp_path):
    learner = load(saved(tmp_path / "x.pth", release(decoder=None)))
    images = torch.randn(2, 3, 16, 16)
    assert learner.encoder(images).shape == (2, 17, 192)
    assert learner.encoder.features(images).shape == (2, 192)
    for use in (learner.loss, learner.reconstruct, learner):
        with pytest.raises(UnveilError, match=r"x\.pth has no decoder, so it cannot reconstruct"):
            use(images)


def test_training_checkpoint_of_the_public_code_is_read(tmp_path):
    state = release(decoder=None)
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth").encoder.config.depth == 2


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_malicious_file_is_refused_and_not_run(tmp_path, how):
    marker = tmp_path / "executed"
    content = {"model": release(decoder=None), "extra": Evil(marker)}
    if how == "torch":
        torch.save(content, tmp_path / "x.pth")
    else:
        (tmp_path / "x.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(UnveilError, match=r"it holds the functions? posix\.system.*, which loading would run\. Nothing was run"):
        load(tmp_path / "x.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds list"),
        ({"epoch": 3}, "holds a dict with 'epoch'"),
        ({"model": {"x": 1}}, "named tensors"),
        ({"model": {"x": torch.zeros(1)}}, "not in the layout of the public MAE release"),
        ({"model": {}}, "not in the layout"),
    ],
)
def test_other_content_is_refused(tmp_path, content, match):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UnveilError, match=match):
        load(tmp_path / "x.pth")


def test_what_the_layout_cannot_express_is_refused(make_mae, make_finetune, tmp_path):
    with pytest.raises(UnveilError, match="no PCA target"):
        mae_release.export(make_mae(target="pca"), tmp_path / "x.pth")
    with pytest.raises(UnveilError, match=r"cannot represent encoder.transformer.blocks.0.branch1.scale"):
        mae_release.export(make_mae(layer_scale=0.1), tmp_path / "x.pth")
    with pytest.raises(UnveilError, match="no final norm"):
        mae_release.export(EncoderOnly(make_finetune().encoder), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_our_own_mae_goes_out_and_in(make_mae, tmp_path, images):
    learner = make_mae(mlp_ratio=3.3)
    again = load(mae_release.export(learner, tmp_path / "x.pth"), heads=3, decoder_heads=2)
    assert isinstance(again, MAE)
    hidden = torch.arange(16).expand(2, -1) < 12
    assert torch.equal(again.loss(images, hidden), learner.loss(images, hidden))
