"""Finished models that were damaged, or whose numbers are of no use, are refused by every command that takes one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import ViTConfig
from unveil.models.weights import CHECKSUM, read_weights
from unveil.recipes.embed import embed
from unveil.recipes.export import export
from unveil.recipes.finetune import finetune
from unveil.recipes.probe import probe
from unveil.recipes.reconstruct import reconstruct

VERBS = {
    "embed": lambda run, data, out: embed(run, data, out=out / "x.npz"),
    "probe": lambda run, data, out: probe(run, data, out=out / "probe", kind="knn", compare=False),
    "finetune": lambda run, data, out: finetune(run, data, out=out / "finetune", epochs=1),
    "reconstruct": lambda run, data, out: reconstruct(run, data, out=out / "x.png"),
    "export": lambda run, data, out: export(run, to="safetensors", out=out / "x.safetensors"),
}


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    vit = ViTConfig(width=48, depth=2, heads=3, image_size=(16, 16), patch_size=(4, 4))
    learner = MAE.build(vit, MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2), AugmentConfig())
    model_files.save(learner, tmp_path / "run")
    return tmp_path / "run"


def refused(verb, run, data, out, match):
    out.mkdir(exist_ok=True)
    with pytest.raises(UnveilError, match=match):
        VERBS[verb](run, data, out)
    assert not [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]  # a lock is hidden


@pytest.mark.parametrize("verb", VERBS)
def test_flipped_byte_is_refused(run, data, tmp_path, verb):
    path = run / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    refused(verb, run, data, tmp_path / "out", r"model\.safetensors is damaged: its content does not match its checksum")


def change(run, **encoder):
    """Changes the config as an earlier version would have written it, without a checksum."""
    path = run / "model.safetensors"
    tensors, metadata = read_weights(path)
    config = json.loads(metadata["unveil"])
    config["encoder"] |= encoder
    save_file(tensors, path, metadata={"unveil": json.dumps(config), "format": "pt"})
    (run / "config.json").write_text(json.dumps(config))
    assert CHECKSUM not in read_weights(path)[1]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("encoder", "match"),
    [
        ({"std": [0.2, 0.0, 0.2]}, r"run are damaged: the std to normalise images is .*, expected numbers above 0"),
        ({"std": [0.2, 0.2]}, r"run: the config has 3 channels, but 3 means and 2 standard deviations"),
        ({"mean": [0.5, 0.5, 1e400]}, r"the number 1e400|Infinity is not a number of JSON"),
    ],
)
def test_normalisation_of_no_use_is_refused(run, data, tmp_path, verb, encoder, match):
    change(run, **encoder)
    refused(verb, run, data, tmp_path / "out", match)


def test_features_that_are_not_finite_are_refused(run, data, tmp_path):
    change(run)
    path = run / "model.safetensors"
    tensors, metadata = read_weights(path)
    tensors["encoder.embed.weight"] = tensors["encoder.embed.weight"] * 1e38  # finite, but their products are not
    save_file(tensors, path, metadata=metadata)
    refused("embed", run, data, tmp_path / "embed", r"the features of a/\d+\.png are not finite")
    refused(
        "probe", run, data, tmp_path / "probe", r"the features of 4?\d+ of 4?\d+ images are not finite, the first of a/\d+\.png"
    )
