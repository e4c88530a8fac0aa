"""Public architectures with random weights give the features of timm and transformers, from the image file on.

Every tensor is random, so that a LayerScale, a bias, a token or a position in the wrong place shows. The real sizes are compared by
`benchmarks/parity.py`, which has the same table.
"""

import json

import pytest
import torch

from benchmarks.parity import (
    REFUSED,
    TIMM,
    TRANSFORMERS,
    TRANSFORMERS_REFUSED,
    difference_from_timm,
    difference_from_transformers,
    randomised,
    save_timm,
    small_timm,
    small_transformers,
    write_images,
)
from unveil.errors import UnveilError
from unveil.interop.load import load
from unveil.recipes.export import export

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5
NO_CLASS_TOKEN = dict.fromkeys(("transformers", "mae"), "without a class token")
EXPORTED = {
    "vit_tiny_patch16_224": {},
    "vit_medium_patch16_gap_240": NO_CLASS_TOKEN,
    "vit_so400m_patch14_siglip_gap_224": NO_CLASS_TOKEN,
    "vit_base_patch16_clip_quickgelu_224": dict.fromkeys(("transformers", "mae"), "cannot represent"),
    "vit_small_patch14_dinov2": {"mae": "cannot represent .*branch1.scale"},
    "vit_small_patch14_reg4_dinov2": {"mae": "cannot represent encoder.registers"},
    "vit_giant_patch14_reg4_dinov2": {"mae": "an MLP with swiglu"},
    "vit_medium_patch16_reg4_gap_256": {
        "transformers": "no final norm",
        "mae": "cannot represent an encoder without a class token",
    },
    "deit_tiny_distilled_patch16_224": dict.fromkeys(("transformers", "mae"), "cannot represent encoder.distillation_token"),
    "beit_base_patch16_224": dict.fromkeys(("timm", "mae"), "cannot represent encoder.relative.0.table"),
}
"""Architectures whose exports are tested, and what is refused of them, with a pattern of the sentence."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def check(difference):
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", TIMM)
def test_features_of_timm(name, tmp_path, images, logged):
    """From a folder: tokens, features after the pooling, and class scores where the head is kept."""
    model = small_timm(name)
    save_timm(model, tmp_path / "folder")
    learner = load(tmp_path / "folder", say=logged)
    check(difference_from_timm(model, learner, images))
    assert "tensors matched" in logged[0]


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_give_the_same_features_again(name, tmp_path, logged):
    """Each export is compared with the library that it is for; or a sentence says why there is none, and no file is left."""
    save_timm(small_timm(name), tmp_path / "folder")
    for to in ("safetensors", "timm", "transformers", "mae", "onnx"):
        refused = EXPORTED[name].get(to)
        if refused:
            with pytest.raises(UnveilError, match=refused):
                export(tmp_path / "folder", to=to, out=tmp_path / to, say=logged)
            assert not (tmp_path / to).exists()
        else:
            export(tmp_path / "folder", to=to, out=tmp_path / to, say=logged)
            assert any("agrees on" in line for line in logged[-3:])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_features_of_transformers(name, tmp_path, images, logged):
    model, processor = small_transformers(name)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    learner = load(tmp_path, say=logged)
    check(difference_from_transformers(model, tmp_path, learner, images))
    assert "tensors matched" in logged[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_the_name_of_a_tensor(name, tmp_path):
    options, match = REFUSED[name]
    save_timm(randomised(timm.create_model(name, **options)), tmp_path)
    with pytest.raises(UnveilError, match=match) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRANSFORMERS_REFUSED)
def test_other_models_of_transformers_are_refused(name, tmp_path):
    config, match = TRANSFORMERS_REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnveilError, match=match):
        load(tmp_path)


@torch.no_grad()
def test_a_file_without_a_config_takes_the_architecture(tmp_path, images, logged):
    model = small_timm("vit_base_patch16_clip_quickgelu_224")
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "clip.pth")
    learner = load(tmp_path / "clip.pth", heads=4, architecture="vit_base_patch16_clip_quickgelu_224.openai", say=logged)
    assert learner.encoder.config.mlp == "quick_gelu"
    assert learner.encoder.config.eps == 1e-5
    assert learner.encoder.config.mean[0] == pytest.approx(0.48145466)
    assert not any("assumed" in line for line in logged)
    load(tmp_path / "clip.pth", heads=4, say=logged)
    assert "these are assumed" in logged[-1]
