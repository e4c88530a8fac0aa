"""The config.json of earlier versions, as they wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.load import load
from unveil.interop.migrations import VERSION, migrated
from unveil.interop.model_kind import model_kind
from unveil.learner import Learner
from unveil.methods.beit import BEiT
from unveil.methods.bert import BERT
from unveil.methods.mae import MAE
from unveil.tasks.finetune import Finetune
from unveil.tasks.text_classification import TextClassification

ENCODER = json.loads(
    """{"width": 48, "depth": 2, "heads": 3, "image_size": [16, 16], "patch_size": [4, 4], "channels": 3, "mlp_ratio": 4.0,
    "positions": "sincos", "relative_bias": "none", "drop_path": 0.0, "layer_scale": null, "eps": 1e-06, "recompute": true,
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}"""
)
TEXT_ENCODER = json.loads(
    """{"width": 48, "depth": 1, "heads": 3, "vocabulary": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"],
    "length": 8, "lower": true, "segments": 2, "mlp_ratio": 4.0, "dropout": 0.1, "eps": 1e-12, "recompute": false}"""
)
HEAD = {"format": "unveil", "version": "0.1.0"}
AUGMENT = json.loads('{"crop": "resized", "crop_scale": 0.3, "flip": true, "jitter": 0.4}')
MAE_CONFIG = HEAD | json.loads(
    """{"reads": "pictures", "method": "mae", "options": {"mask_ratio": 0.6, "sampling": "random", "target": "normalised",
    "tokenizer": "kmeans", "codebook": 64, "mask_tokens_in_encoder": false, "loss_on_all": false, "decoder_width": 32,
    "decoder_depth": 1, "decoder_heads": 2}}"""
)
BEIT_CONFIG = HEAD | json.loads(
    """{"reads": "pictures", "method": "beit", "options": {"mask_ratio": 0.4, "tokenizer": "kmeans", "codebook": 16,
    "relative_bias": "shared", "positions": "none", "layer_scale": 0.1, "drop_path": 0.1}}"""
)
FINETUNE_CONFIG = HEAD | json.loads(
    """{"reads": "pictures", "task": "finetune", "classes": ["cat", "dog"], "options": {"drop_path": 0.1, "mixup": 0.8,
    "cutmix": 1.0, "smoothing": 0.1, "randaugment": 9, "erasing": 0.25}}"""
)
BERT_CONFIG = HEAD | json.loads(
    """{"reads": "texts", "method": "bert", "options": {"mask_ratio": 0.15, "whole_words": false, "next_sentence": true},
    "augment": {"crop": "resized", "crop_scale": 0.2, "flip": true, "jitter": 0.0}}"""
)
CLASSIFY_CONFIG = HEAD | json.loads(
    """{"reads": "texts", "task": "finetune", "classes": ["bad", "good"], "options": {"pool": "class", "dropout": 0.2}}"""
)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (MAE_CONFIG | {"encoder": ENCODER, "augment": AUGMENT}, MAE),
        (BEIT_CONFIG | {"encoder": ENCODER, "augment": AUGMENT}, BEiT),
        (FINETUNE_CONFIG | {"encoder": ENCODER | {"positions": "learned"}, "augment": AUGMENT}, Finetune),
        (BERT_CONFIG | {"encoder": TEXT_ENCODER}, BERT),
        (CLASSIFY_CONFIG | {"encoder": TEXT_ENCODER}, TextClassification),
        (HEAD | {"encoder": ENCODER}, EncoderOnly),
        (HEAD | {"reads": "texts", "encoder": TEXT_ENCODER}, EncoderOnly),
    ],
    ids=["mae", "beit", "finetune", "bert", "text-classification", "encoder", "text-encoder"],
)
@pytest.mark.parametrize("place", ["folder", "file"])
def test_version_1_is_loaded_and_written_as_the_current_version(
    config: dict[str, Any], kind: type[Learner], place: str, tmp_path: Path
) -> None:
    built = model_files.rebuild(config)
    state = {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in state_of(built).items()}
    path = tmp_path / "run" if place == "folder" else tmp_path / "model.safetensors"
    if place == "folder":
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        save_file(state, path / "model.safetensors", metadata={"format": "pt", "unveil": json.dumps(config)})
    else:
        save_file(state, path, metadata={"format": "pt", "unveil": json.dumps(config)})
    learner = load(path, say=lambda text: None)
    assert isinstance(learner, kind)
    assert all(torch.equal(value, state[name]) for name, value in state_of(learner).items())
    modality = "text" if config.get("reads") == "texts" else "images"
    assert model_kind(path) == learner.modality == modality
    assert learner.encoder.config.grad_checkpointing == config["encoder"]["recompute"]

    written = model_files.describe(learner)
    assert written["format_version"] == VERSION
    assert written["modality"] == modality
    assert migrated(written, "config.json") == written
    assert model_files.describe(model_files.rebuild(written)) == written
    assert not {"recompute", "tokenizer", "codebook", "jitter", "reads", "norm"} & {*written, *written.get("options", ())}


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = model_files.module_to_save(learner).state_dict()
    return state


def test_values_are_kept_under_their_new_names() -> None:
    learner = model_files.rebuild(MAE_CONFIG | {"encoder": ENCODER, "augment": AUGMENT})
    assert (learner.config.visual_tokenizer, learner.config.codebook_size) == ("kmeans", 64)
    assert (learner.augmentation.config.color_jitter, learner.augmentation.config.crop_scale) == (0.4, 0.3)
    classifier = model_files.rebuild(CLASSIFY_CONFIG | {"encoder": TEXT_ENCODER})
    assert (classifier.config.pool, classifier.config.dropout, list(classifier.classes)) == ("class", 0.2, ["bad", "good"])


def test_norm_of_fine_tuned_encoders() -> None:
    assert model_files.rebuild(HEAD | {"encoder": ENCODER}).encoder.config.final_norm
    without = model_files.rebuild(HEAD | {"encoder": ENCODER, "norm": False})
    assert not without.encoder.config.final_norm
    assert not any(name.startswith("transformer.norm.") for name in without.encoder.state_dict())
    tuned = model_files.rebuild(FINETUNE_CONFIG | {"encoder": ENCODER, "augment": AUGMENT})
    assert not any(name.startswith("encoder.transformer.norm.") for name in tuned.state_dict())
    assert {"norm.weight", "norm.bias", "head.weight", "head.bias"} < tuned.state_dict().keys()


def test_migrating_leaves_the_original_alone() -> None:
    config = MAE_CONFIG | {"encoder": ENCODER, "augment": AUGMENT}
    before = json.dumps(config)
    migrated(config, "config.json")
    assert json.dumps(config) == before


@pytest.mark.parametrize("version", [0, VERSION + 1, "2", None, 1.5])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(UnveilError, match=f"has format version {version!r}, but this version of unveil reads 1 to {VERSION}"):
        model_files.rebuild(HEAD | {"format_version": version, "encoder": ENCODER})


def test_other_modalities_are_refused() -> None:
    with pytest.raises(UnveilError, match="holds a model of 'sounds', expected one of pictures, texts"):
        model_files.rebuild(HEAD | {"reads": "sounds", "encoder": ENCODER})
    with pytest.raises(UnveilError, match="holds a model of 'sounds', expected images or text"):
        model_files.rebuild(HEAD | {"format_version": 2, "modality": "sounds", "encoder": ENCODER})
