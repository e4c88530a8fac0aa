"""`--init WEIGHTS`: runs that start from trained weights, tried from the outside."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unveil
from tests.runs.test_session import TINY, steps_of, stop_at_step, write_images
from unveil import cli
from unveil.errors import Interrupted, UnveilError
from unveil.experiments.compare import build_comparison, entry_of
from unveil.interop import model_files
from unveil.interop.encoder_only import checksums
from unveil.models.adapt import adapted
from unveil.runs.initial_weights import name_of_weights
from unveil.stop_signals import raise_on_signals

pytestmark = pytest.mark.usefixtures("without_reports")

BRIEF: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name not in ("model", "image_size", "patch_size")},
    "epochs": 1,
}
STILL = BRIEF | {"base_lr": 0.0}
"""A learning rate of 0: the trained encoder is the one that the run started from."""


@pytest.fixture(scope="module")
def pics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "pics")


@pytest.fixture(scope="module")
def source(pics: Path, tmp_path_factory: pytest.TempPathFactory) -> unveil.Run:
    """An MAE whose normalisation is its own."""
    return unveil.pretrain(pics, out=tmp_path_factory.mktemp("runs") / "source", normalisation="data", **TINY)


def encoder_of(run: Any) -> Any:
    return unveil.load(run, say=lambda text: None).encoder


def same(found: Any, expected: Any) -> bool:
    mine, theirs = found.state_dict(), expected.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("method", ["mae", "simmim", "beit", "dino", "mocov3", "supervised"])
def test_every_method_starts_from_the_weights(method, source, pics, tmp_path, capsys) -> None:
    """And so do its teachers and averages, which are the result of some methods."""
    small = {"dino": {"prototypes": 64, "local_crops": 1}, "mocov3": {"hidden": 32}, "beit": {"codebook_size": 8}}
    run = unveil.pretrain(pics, method=method, out=tmp_path / "run", init=source, **STILL, **small.get(method, {}))
    assert same(encoder_of(run), encoder_of(source))
    learner = unveil.load(run, say=lambda text: None)
    expected = encoder_of(source).state_dict()
    copies = [module for module in learner.modules() if type(module).__name__ == "ViT"]
    assert len(copies) == {"dino": 2, "mocov3": 2, "supervised": 2}.get(method, 1)
    for module in copies:
        assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
    vit, old = learner.encoder.config, encoder_of(source).config
    assert (vit.mean, vit.std, vit.image_size, vit.patch_size) == (old.mean, old.std, (16, 16), (4, 4))
    assert run.config["model"] == "vit-nano"
    said = capsys.readouterr().err
    assert f"starting from {source}: 54 of 54 tensors of the encoder; images are normalised as for these weights" in said
    assert run.facts["encoder"] == checksums(encoder_of(source))
    assert run.config["init"] == str(source)
    if method != "supervised":  # its features are judged with the class token or after other crops by some methods, but alike
        assert run.results["features"]["before training"] == run.results["features"]["encoder"]
        spread = run.results["spread"]
        assert spread["before training"] == spread["encoder"] != spread["untrained"]
    unveil.report(run)
    page = (run.path / "report.html").read_text()
    assert "the weights it started from" in page


def test_an_mae_goes_on_where_another_one_was(source, pics, tmp_path, capsys) -> None:
    """Decoder and all: nothing is learnt with a rate of 0, so its errors and its features are those of the source."""
    run = unveil.pretrain(pics, out=tmp_path / "run", init=source, **STILL)
    assert "32 of 32 tensors of its decoder" in capsys.readouterr().err
    assert same(unveil.load(run, say=print), unveil.load(source, say=print))
    assert run.results["held_out"] == source.results["held_out"]
    assert run.results["features"]["before training"] == source.results["features"]["encoder"]
    for row in ("before training", "encoder"):
        assert run.results["spread"][row] == source.results["spread"]["encoder"]
    assert run.results["spread"]["untrained"] == source.results["spread"]["untrained"]


@pytest.mark.parametrize("to", ["timm", "mae", "transformers", "safetensors"])
def test_any_format_that_load_reads(to, source, pics, tmp_path, capsys) -> None:
    weights = unveil.export(
        source, to=to, out=tmp_path / ("weights.pth" if to == "mae" else f"weights-{to}.safetensors" if to == "safetensors" else to)
    )
    path = getattr(weights, "path", weights)
    run = unveil.pretrain(pics, out=tmp_path / "run", init=path, decoder_heads=3, **STILL)
    assert ("32 of 32 tensors of its decoder" in capsys.readouterr().err) == (to != "timm")
    for name, value in encoder_of(source).state_dict().items():
        assert torch.equal(encoder_of(run).state_dict()[name], value), name


def test_an_encoder_file_and_a_decoder_of_another_shape(source, pics, tmp_path, capsys) -> None:
    run = unveil.pretrain(pics, out=tmp_path / "a", init=source.path / "encoder.safetensors", **STILL)
    assert same(encoder_of(run), encoder_of(source))
    assert "decoder" not in capsys.readouterr().err.replace("decoder_", "")
    run = unveil.pretrain(pics, out=tmp_path / "b", init=source, decoder_width=48, **STILL)
    assert "the decoder is new: that of the weights has a width of 96, 2 blocks and 3 heads, this one has a width of 48" in (
        capsys.readouterr().err
    )
    run = unveil.pretrain(pics, out=tmp_path / "c", init=source, target="pixel", **STILL)
    assert "30 of 32 tensors of its decoder: new are head.weight and head.bias" in capsys.readouterr().err
    assert same(encoder_of(run), encoder_of(source))


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, (24, 16), (8, 4)), (4, (16, 16), (4, 4)), (12, (32, 16), (8, 8))])
def test_other_sizes_and_channels(channels, size, patch, source, tmp_path, capsys) -> None:
    chance = np.random.default_rng(1)
    for kind in ("a", "b"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(12):
            np.save(tmp_path / "data" / kind / f"{i}.npy", chance.integers(0, 256, (20, 30, channels), dtype=np.uint8))
    run = unveil.pretrain(tmp_path / "data", out=tmp_path / "run", init=source, image_size=size, patch_size=patch, **STILL)
    found, old = encoder_of(run), encoder_of(source)
    assert (found.config.image_size, found.config.patch_size, found.config.channels) == (size, patch, channels)
    assert same(found, adapted(old, found.config))
    assert found.config.mean == ((0.449,) if channels == 1 else found.config.mean) != old.config.mean
    said = capsys.readouterr().err
    rule = "summed into one" if channels == 1 else f"repeated for {channels} channels, times 3/{channels}"
    assert f"the weights of its 3 channels are {rule}" in said
    assert f", since they have {channels} channel{'s' * (channels > 1)} and not 3; for these weights it was mean" in said


def test_images_of_16_bits_are_normalised_by_themselves(source, tmp_path, capsys) -> None:
    """Sensors often use 12 of 16 bits, so the mean of 8-bit photographs would make them all black."""
    chance = np.random.default_rng(1)
    for kind in ("a", "b"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(12):
            np.save(tmp_path / "data" / kind / f"{i}.npy", chance.integers(0, 4096, (16, 16, 3), dtype=np.uint16))
    run = unveil.pretrain(tmp_path / "data", out=tmp_path / "run", init=source, **STILL)
    vit = encoder_of(run).config
    assert vit.bit_depth == 16
    assert vit.mean == pytest.approx((2048 / 65535,) * 3, abs=2e-3)
    assert "since they have 16 bits and not 8" in capsys.readouterr().err


def test_the_normalisation_of_the_data_on_request(source, pics, tmp_path, capsys) -> None:
    other = unveil.pretrain(pics, out=tmp_path / "other", **TINY | {"epochs": 1})
    assert encoder_of(other).config.mean == (0.485, 0.456, 0.406)
    run = unveil.pretrain(pics, out=tmp_path / "run", init=other, normalisation="data", **STILL)
    assert encoder_of(run).config.mean == encoder_of(source).config.mean
    assert "; for these weights it was mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in capsys.readouterr().err


def test_grey_photographs_with_weights_for_colour(source, tmp_path) -> None:
    """A sum of the weights is what a grey image gave in every channel, if both are normalised alike."""
    for i in range(24):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    run = unveil.pretrain(tmp_path / "data", out=tmp_path / "run", init=source, **STILL)
    grey = torch.randn(2, 1, 16, 16)
    expected = encoder_of(source).features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(encoder_of(run).features(grey), expected, atol=1e-5, rtol=1e-5)


def test_what_contradicts_the_weights_is_refused(source, pics, tmp_path) -> None:
    def refused(match: str, method: str = "mae", **options: Any) -> None:
        with pytest.raises(UnveilError, match=match):
            unveil.pretrain(pics, method=method, out=tmp_path / "no", **BRIEF | {"init": source} | options)
        assert not (tmp_path / "no").exists()

    refused(r"the weights of --init .*source are a vit-nano, but --model is vit-tiny: leave --model out", model="vit-tiny")
    refused("--positions is learned, but the weights of --init have sincos: leave --positions out", "dino", positions="learned")
    refused("--relative-bias is shared, but the weights of --init have none", "simmim", relative_bias="shared")
    refused("--init .*nothing does not exist", init=tmp_path / "nothing")
    refused("there is no option 'teacher'", "dino", teacher=source)
    refused("--teacher-weight is the factor on the loss of a teacher's features: give --teacher as well", teacher_weight=2.0)
    refused("--teacher .*nothing does not exist", teacher=tmp_path / "nothing")
    (tmp_path / "words.txt").write_text("a text\n" * 200)
    words = unveil.pretrain(
        tmp_path / "words.txt", method="bert", model="bert-nano", out=tmp_path / "words", epochs=1, device="cpu"
    )
    for option in ("init", "teacher"):
        refused(f"--{option} .*words: this is a text model, expected an image model", **{option: words})
    with pytest.raises(UnveilError, match="there is no option 'init'; only methods for images start from weights"):
        unveil.pretrain(tmp_path / "words.txt", method="bert", out=tmp_path / "no", init=words)
    simmim = unveil.pretrain(pics, method="simmim", out=tmp_path / "simmim", **TINY | {"epochs": 1})
    refused("DINO cannot start from .*simmim: positions is 'none', expected", "dino", init=simmim)
    with pytest.raises(UnveilError, match="its encoder is no Vision Transformer"):
        unveil.pretrain(pics, method="dvae", out=tmp_path / "dvae", init=source, **BRIEF)


def test_a_stopped_run_resumes_bit_identical_without_the_weights(source, pics, tmp_path, monkeypatch, capsys) -> None:
    shutil.copytree(source.path, tmp_path / "weights")
    options = BRIEF | {"epochs": 3, "init": tmp_path / "weights", "teacher": source}
    whole = unveil.pretrain(pics, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 4)
        with pytest.raises(Interrupted, match="stopped after step 4 of "), raise_on_signals():
            unveil.pretrain(pics, out=tmp_path / "run", **options)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.move(tmp_path / "weights", tmp_path / "gone")
    run = unveil.pretrain(pics, out=tmp_path / "run", **options)
    assert f"weights does not exist any more: using the copy of the encoder in {tmp_path / 'run' / 'init.safetensors'}" in (
        capsys.readouterr().err
    )
    expected, found = (load_file(path / "model.safetensors") for path in (whole.path, run.path))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert steps_of(run.path) == steps_of(whole.path)
    assert run.results["features"] == whole.results["features"]
    assert run.facts["teacher"] == checksums(encoder_of(source))

    learner = unveil.load(tmp_path / "gone", say=print)  # the same path has other weights now
    with torch.no_grad():
        learner.encoder.class_token += 1
    model_files.export(learner, tmp_path / "weights")
    with pytest.raises(UnveilError, match="the encoder: its weights changed since the run began"):
        unveil.pretrain(pics, out=tmp_path / "other", **options)
    (tmp_path / "weights").unlink()
    with pytest.raises(UnveilError, match=r"config teacher: was .*source', is .*gone'"):
        unveil.pretrain(pics, out=tmp_path / "other", **options | {"teacher": tmp_path / "gone"})


def test_a_teacher_that_changed_is_refused(source, pics, tmp_path, monkeypatch) -> None:
    shutil.copytree(source.path, tmp_path / "teacher")
    options = TINY | {"teacher": tmp_path / "teacher", "epochs": 2}
    with monkeypatch.context() as patch:
        stop_at_step(patch, 3)
        with pytest.raises(Interrupted), raise_on_signals():
            unveil.pretrain(pics, out=tmp_path / "run", **options)
    again = unveil.pretrain(pics, out=tmp_path / "teacher-2", **TINY | {"epochs": 1, "seed": 1})
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(again.path, tmp_path / "teacher")
    with pytest.raises(UnveilError, match="the teacher: its weights changed since the run began"):
        unveil.pretrain(pics, out=tmp_path / "run", **options)


def test_a_model_with_a_teacher_is_loaded_without_it(source, pics, tmp_path) -> None:
    shutil.copytree(source.path, tmp_path / "teacher")
    run = unveil.pretrain(pics, out=tmp_path / "run", teacher=tmp_path / "teacher", teacher_weight=2, **TINY | {"epochs": 1})
    shutil.rmtree(tmp_path / "teacher")
    learner = unveil.load(run, say=print)
    assert learner.reconstruct(torch.randn(1, 3, 16, 16)).pixels.shape == (1, 3, 16, 16)
    assert len([name for name in load_file(run.path / "model.safetensors") if "teacher" in name]) == 0
    assert {"reconstruction_loss", "feature_loss"} <= run.log[-1].keys()
    line = run.log[-1]
    assert line["loss"] == pytest.approx(line["reconstruction_loss"] + 2 * line["feature_loss"], rel=1e-5)
    unveil.report(run)
    assert "features of the teacher" in (run.path / "report.html").read_text()
    assert unveil.finetune(run, pics, out=tmp_path / "tuned", epochs=1, device="cpu").results["score"]


def test_a_size_without_a_name(pics, tmp_path) -> None:
    learner = unveil.load(unveil.pretrain(pics, out=tmp_path / "a", **TINY | {"epochs": 1}), say=print)
    odd = copy.deepcopy(learner)
    vit = odd.encoder.config.__class__(**{**odd.encoder.config.__dict__, "depth": 3})
    odd = type(learner).build(vit, learner.config, learner.augmentation.config)
    model_files.export(odd.eval(), tmp_path / "odd.safetensors")
    run = unveil.pretrain(pics, out=tmp_path / "run", init=tmp_path / "odd.safetensors", **BRIEF)
    assert run.config["model"] == "vit-96x3"
    again = unveil.pretrain(pics, out=tmp_path / "more", resume_from=run, epochs=2)
    assert again.config["model"] == "vit-96x3"
    assert len(steps_of(again.path)) == 2 * len(steps_of(run.path))


def test_the_default_folder_names_the_weights(source, pics, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert unveil.pretrain(pics, init=source, **BRIEF).path == Path("runs/pics-mae-from-source")
    names = {
        "a/b/": "b",
        "mae_pretrain_vit_base.pth": "mae_pretrain_vit_base",
        "runs/photos/model.safetensors": "photos",
        "timm:vit_base_patch16_224.mae": "vit_base_patch16_224.mae",
    }
    assert {path: name_of_weights(path) for path in names} == names


def test_the_command_line(source, pics, tmp_path, capsys) -> None:
    words = [
        "pretrain",
        str(pics),
        "--init",
        str(source),
        "--teacher",
        str(source),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--epochs", "1", "--batch-size", "16", "--held-out", "4"])
    assert caught.value.code == 0
    assert (tmp_path / "run" / "results.json").is_file()
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", str(pics), "--init", str(tmp_path / "nothing"), "--out", str(tmp_path / "no")])
    assert caught.value.code == 1
    assert "nothing does not exist" in capsys.readouterr().err


def test_a_plan_keeps_what_follows_from_the_weights(source, pics, tmp_path) -> None:
    options = {"out": tmp_path / "planned", "seconds": 2, "device": "cpu", "precision": "float32", "epochs": 1}
    planned = unveil.plan(str(pics), init=str(source), teacher=str(source), **options)
    assert "--model vit-nano" in planned.command
    assert f"--init {source}" in planned.command
    assert (planned.config["image_size"], planned.config["patch_size"]) == ((16, 16), (4, 4))
    assert (planned.config["decoder_width"], planned.config["decoder_depth"]) == (96, 2)
    with pytest.raises(UnveilError, match="are a vit-nano, but --model is vit-tiny"):
        unveil.plan(str(pics), init=str(source), model="vit-tiny", **options)


def test_a_comparison_starts_one_entry_from_another(pics, tmp_path) -> None:
    rows = unveil.compare(
        "mae,mae-more,mae-taught",
        str(pics),
        out=tmp_path / "runs",
        seeds=(0,),
        with_finetune=False,
        **{"mae-more": {"init": "mae"}, "mae-taught": {"init": "mae", "teacher": "mae"}},
        **{name: value for name, value in TINY.items() if name not in ("base_lr", "epochs")},
        epochs=1,
    )
    first, more, taught = (unveil.Run(tmp_path / "runs" / f"{name}-seed0") for name in ("mae", "mae-more", "mae-taught"))
    assert more.facts["encoder"] == taught.facts["teacher"] == checksums(encoder_of(first))
    assert more.results["features"]["before training"] == first.results["features"]["encoder"]
    assert [row.name for row in rows][:3] == ["mae", "mae-more", "mae-taught"]


def test_the_rate_of_a_comparison_follows_the_weights(source, pics, tmp_path) -> None:
    """And not the default model, which is ten times as wide."""
    options = {"epochs": 1, "batch_size": 16}
    given = build_comparison([entry_of("mae")], str(pics), tmp_path, {**options, "init": str(source)})
    named = build_comparison([entry_of("mae")], str(pics), tmp_path, {**options, "model": "vit-nano"})
    default = build_comparison([entry_of("mae")], str(pics), tmp_path, options)
    rates = [each.entries[0].options["base_lr"] for each in (given, named, default)]
    assert rates[0] == rates[1] != rates[2]
