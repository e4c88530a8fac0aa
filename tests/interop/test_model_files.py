import json
import random
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import UnveilError
from unveil.interop import mae_release, model_files, timm_vit, transformers_vit_mae
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.load import load
from unveil.methods.mae import MAE
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.models.weights import CHECKSUM, read_weights
from unveil.tasks.finetune import Finetune
from unveil.train.checkpoint import Checkpoints


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("target", ["normalised", "pixel", "pca"])
def test_folder_round_trip(make_mae, tmp_path, logged, target):
    learner = make_mae(target=target, image_size=(24, 40), channels=2, mean=(0.1, 0.2), std=(0.3, 0.4))
    model_files.save(learner, tmp_path)
    again = load(tmp_path, say=logged)
    assert isinstance(again, MAE)
    assert not again.training
    assert again.encoder.config == learner.encoder.config  # tuples, too
    assert again.config == learner.config
    assert same(again.state_dict(), learner.state_dict())
    count = len(learner.state_dict())
    assert f"{count} of {count} tensors" in logged[-1]


def test_finetune_round_trip_with_class_names(make_finetune, tmp_path, images):
    learner = make_finetune(["cat", "dog", "cow"])
    model_files.save(learner, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, Finetune)
    assert torch.equal(again.logits(images), learner.logits(images))
    assert list(again.classes) == model_files.config_of(tmp_path)["classes"] == ["cat", "dog", "cow"]
    assert asdict(again.config) == asdict(learner.config)
    assert again.encoder.config == learner.encoder.config


def test_one_file_round_trip(make_mae, tmp_path):
    learner = make_mae()
    again = load(model_files.export(learner, tmp_path / "all.safetensors"))
    assert same(again.state_dict(), learner.state_dict())


@pytest.mark.parametrize("alone", ["file", "folder"])
def test_encoder_alone(make_mae, tmp_path, images, alone):
    learner = make_mae()
    model_files.save(learner, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    again = load(tmp_path if alone == "folder" else tmp_path / "encoder.safetensors")
    assert isinstance(again, EncoderOnly)
    assert torch.equal(again.encoder(images), learner.encoder(images))
    for use in (again.loss, again.reconstruct, again):
        with pytest.raises(UnveilError, match="no decoder"):
            use(images)


def test_encoder_of_a_finetune_has_no_final_norm(make_finetune, tmp_path, images):
    learner = make_finetune()
    model_files.save(learner, tmp_path)
    assert torch.equal(load(tmp_path / "encoder.safetensors").encoder(images), learner.encoder(images))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "encoder.safetensors"])
def test_every_flipped_byte_of_a_finished_model_is_refused(make_mae, tmp_path, name):
    model_files.save(make_mae(), tmp_path)
    path = tmp_path / name
    whole, loaded = path.read_bytes(), tmp_path if name != "encoder.safetensors" else path
    wanted, generator = model_files.config_of(loaded), random.Random(0)
    for place in (*range(24), *(generator.randrange(len(whole)) for _ in range(80))):
        changed = bytes([whole[place] ^ (1 << generator.randrange(8))])
        path.write_bytes(whole[:place] + changed + whole[place + 1 :])
        sentence, again = attempt(loaded)
        if again is None:
            assert str(tmp_path) in sentence
            assert "\n" not in sentence
        else:  # a flip that changes nothing, such as white space
            assert json.loads(json.dumps(model_files.describe(again))) == wanted
    path.write_bytes(whole)
    load(loaded, say=lambda text: None)


def attempt(path):
    """The message of the error, or the learner."""
    try:
        return "", load(path, say=lambda text: None)
    except UnveilError as error:
        return str(error), None


def test_file_of_an_earlier_version_without_a_checksum_is_loaded(make_mae, tmp_path, images):
    learner = make_mae()
    model_files.save(learner, tmp_path)
    without_checksum(tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path).encoder(images), learner.encoder(images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("to", ["run", "checkpoint", "timm", "transformers", "mae"])
def test_weights_that_are_not_finite_are_refused(make_mae, tmp_path, to, value):
    learner = make_mae(width=192)
    with torch.no_grad():
        learner.encoder.class_token[3] = value
    if to == "run":
        model_files.save(learner, tmp_path / "x")
    elif to == "checkpoint":
        model_files.write_config(learner, tmp_path / "x")
        Checkpoints(tmp_path / "x" / "checkpoints").save(3, {"model": learner.state_dict()}, {})
    else:
        {"timm": timm_vit, "transformers": transformers_vit_mae, "mae": mae_release}[to].export(learner, tmp_path / "x")
    with pytest.raises(UnveilError, match=r"x.* has weights that are not finite, in .*(class_token|cls_token)"):
        load(tmp_path / "x")


def test_unfinished_run_is_loaded_from_its_newest_undamaged_checkpoint(make_mae, tmp_path, logged):
    learner = make_mae()
    model_files.write_config(learner, tmp_path)
    with pytest.raises(UnveilError, match="no weights yet"):
        load(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20, 30):
        with torch.no_grad():
            learner.mask_token.fill_(step)
        checkpoints.save(step, {"model": learner.state_dict()}, {})
    weights = checkpoints.path(30) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    again = load(tmp_path, say=logged)
    assert again.mask_token[0] == 20
    assert any("step-00000030 is damaged" in text for text in logged)
    assert any("checkpoint of step 20" in text for text in logged)


def without_checksum(path):
    """Rewrites a file as earlier versions wrote it."""
    tensors, metadata = read_weights(path)
    save_file(tensors, path, metadata={key: value for key, value in metadata.items() if key != CHECKSUM})


def test_configs_that_do_not_fit_are_refused(make_mae, tmp_path):
    learner = make_mae()
    model_files.save(learner, tmp_path)
    without_checksum(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["checksum"]

    def refused(change, match):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UnveilError, match=match):
            load(tmp_path)

    refused({"encoder": config["encoder"] | {"depth": 3}}, "12 missing .*blocks.2")
    refused({"encoder": config["encoder"] | {"width": 96}}, "its config needs")
    refused({"encoder": config["encoder"] | {"colour": 1}}, "does not have: colour")
    refused({"encoder": {"width": 96}}, "incomplete")
    refused({"options": None}, "missing")
    refused({"method": "clairvoyance"}, "needs the method 'clairvoyance', which is not installed")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnveilError, match="not valid JSON"):
        load(tmp_path)


def test_damaged_weights_are_refused(make_mae, tmp_path):
    model_files.save(make_mae(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(UnveilError, match="damaged"):
        load(tmp_path)


def test_loading_leaves_the_random_state_alone(make_mae, tmp_path):
    model_files.save(make_mae(), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_eps_is_kept(make_mae, tmp_path):
    learner = make_mae(eps=1e-12)
    model_files.save(learner, tmp_path)
    for again in (load(tmp_path), load(tmp_path / "encoder.safetensors")):
        assert again.encoder.transformer.norm.eps == 1e-12


def test_bare_encoder_can_be_exported(tmp_path):
    encoder = EncoderOnly(ViT(ViTConfig(width=48, depth=1, heads=3, image_size=(8, 8), patch_size=(4, 4), layer_scale=0.1)))
    again = load(model_files.export(encoder, tmp_path / "encoder.safetensors"))
    assert same(again.state_dict(), encoder.state_dict())
