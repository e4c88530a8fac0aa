import json

import pytest
import timm
import torch

from unveil.errors import UnveilError
from unveil.interop import timm_vit
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.load import load
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune


def distance(a, b):
    assert a.shape == b.shape
    return float((a - b).detach().norm() / b.detach().norm())


def timm_model(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@torch.no_grad()
@pytest.mark.slow
def test_vit_base_equals_timm(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    learner = load(tmp_path)
    images = torch.randn(2, 3, 224, 224)
    assert distance(learner.encoder(images), theirs.forward_features(images)) < 1e-5
    assert distance(learner.encoder.features(images, "class"), theirs(images)) < 1e-5
    state = timm_vit.timm_model(learner).state
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"image_size": (24, 40), "channels": 2, "mean": (0.5, 0.4), "std": (0.2, 0.1)},
        {"layer_scale": 0.1, "mlp_ratio": 3.0},
        {"patch_size": (4, 8)},
    ],
)
def test_timm_loads_what_was_exported(make_mae, tmp_path, shape):
    learner = make_mae(**shape)
    vit = learner.encoder.config
    timm_vit.export(learner, tmp_path / "out")
    theirs = timm_model(tmp_path / "out")
    images = torch.randn(3, vit.channels, *vit.image_size)
    assert distance(theirs.forward_features(images), learner.encoder(images)) < 1e-5
    assert distance(theirs(images), learner.encoder.features(images)) < 1e-5
    assert all(layer.eps == 1e-6 for layer in theirs.modules() if isinstance(layer, torch.nn.LayerNorm))
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["input_size"]) == (vit.channels, *vit.image_size)
    assert (tuple(data["mean"]), tuple(data["std"])) == (vit.mean, vit.std)
    assert data["interpolation"] == "bicubic"

    again = load(tmp_path / "out", say=lambda text: None)
    assert isinstance(again, EncoderOnly)
    assert torch.equal(again.encoder(images), learner.encoder(images))
    assert (again.encoder.config.mean, again.encoder.config.grid) == (vit.mean, vit.grid)


@torch.no_grad()
def test_timm_loads_a_fine_tuned_model_with_its_head(make_finetune, tmp_path, images, logged):
    learner = make_finetune(["cat", "dog", "cow"])
    timm_vit.export(learner, tmp_path / "out")
    theirs = timm_model(tmp_path / "out")
    assert distance(theirs(images), learner.logits(images)) < 1e-5
    assert theirs.num_classes == 3
    assert theirs.pretrained_cfg["label_names"] == ["cat", "dog", "cow"]
    again = load(tmp_path / "out", say=logged)
    assert isinstance(again, Finetune)
    assert torch.equal(again.logits(images), learner.logits(images))
    assert "tensors matched" in logged[-1]


def test_folder_that_timm_wrote_is_read(tmp_path, images):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0).eval()
    timm.models.save_for_hf(theirs, tmp_path / "out", safe_serialization=True)
    assert distance(load(tmp_path / "out").encoder(images), theirs.forward_features(images)) < 1e-5


def test_what_is_another_model_is_refused(tmp_path, make_mae):
    timm_vit.export(make_mae(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["img_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnveilError, match="positions of 16 patches"):
        load(tmp_path)
    config["model_args"]["img_size"] = 32
    for name, match in (
        ("vit_base_patch16_clip_quickgelu_224", r"norm_pre\.weight"),  # which such a model has
        ("vit_hugest_patch16_224", "does not have the model"),
        ("resnet50", "resnet50"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": name}))
        with pytest.raises(UnveilError, match=match):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": config["model_args"] | {"pretrained": True}}))
    with pytest.raises(UnveilError, match="model_args that cannot be expressed: pretrained"):
        load(tmp_path)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, qk_norm=True)
    timm.models.save_for_hf(theirs, tmp_path / "qk_norm", safe_serialization=True)
    with pytest.raises(UnveilError, match=r"left over .*k_norm"):
        load(tmp_path / "qk_norm")


def test_bare_encoder_round_trip(tmp_path, images):
    encoder = ViT(ViTConfig(width=48, depth=1, heads=3, image_size=(32, 32), patch_size=(8, 8))).eval()
    again = load(timm_vit.export(EncoderOnly(encoder), tmp_path))
    assert torch.equal(again.encoder(images), encoder(images))


def test_encoder_without_final_norm_round_trip(make_finetune, tmp_path, images):
    encoder = make_finetune().encoder
    again = load(timm_vit.export(EncoderOnly(encoder), tmp_path))
    assert not again.encoder.config.final_norm
    assert torch.equal(again.encoder(images), encoder(images))
