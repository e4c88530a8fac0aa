"""A run from its beginning to its end: one writer, what is safe after a stop in each phase, and going on from another run."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unveil
from unveil import cli
from unveil.errors import Interrupted, UnveilError
from unveil.folder_lock import locked
from unveil.runs import images as image_runs
from unveil.runs import session
from unveil.stop_signals import raise_on_signals
from unveil.train import parallel
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.recorder import Recorder

pytestmark = pytest.mark.usefixtures("without_reports")

TINY: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "batch_size": 16,
    "base_lr": 2e-3,
    "epochs": 4,
    "log_every": 1,
    "num_evals": 1,
    "held_out": 4,
    "precision": "float32",
    "device": "cpu",
}


def write_images(folder: Path, count: int = 24) -> Path:
    chance = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            np.save(folder / kind / f"{i:02d}.npy", chance.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def pics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "pics")


@pytest.fixture(scope="module")
def whole(pics: Path, tmp_path_factory: pytest.TempPathFactory) -> unveil.Run:
    return unveil.pretrain(pics, out=tmp_path_factory.mktemp("runs") / "whole", **TINY)


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends SIGHUP when this step is logged."""
    log = Recorder.log

    def stop(self: Recorder, done: int) -> bool:
        if done == step:
            signal.raise_signal(signal.SIGHUP)
        return log(self, done)

    monkeypatch.setattr(Recorder, "log", stop)


def test_a_second_writer_is_refused_and_changes_nothing(pics, tmp_path):
    with locked(tmp_path / "run", "training in"):
        for train in (unveil.pretrain, lambda *a, **o: unveil.compare("mae,simmim", str(a[0]), out=o["out"], epochs=1)):
            with pytest.raises(UnveilError, match=r"another process \(pid \d+ on .*\) is training in .*run since"):
                train(pics, out=tmp_path / "run", **({} if train is not unveil.pretrain else TINY))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert not list((tmp_path / "run").iterdir())


def test_finetune_and_probe_are_refused_too(whole, pics, tmp_path):
    for task in (unveil.finetune, unveil.probe):
        with locked(tmp_path / "out", "training in"), pytest.raises(UnveilError, match="is training in"):
            task(whole.path, pics, out=tmp_path / "out", device="cpu", epochs=1)
    with pytest.raises(UnveilError, match="has results already, of a run or of a probe: choose another --out"):
        unveil.probe(whole.path, pics, out=whole.path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_while_images_are_read(pics, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(image_runs.ImagePlan, "open_subsets", lambda *_, **__: signal.raise_signal(number))
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", str(pics), "--out", str(tmp_path / "run"), "--model", "vit-nano", "--device", "cpu"])
    assert caught.value.code == 128 + number
    assert "unveil: stopped: no step was saved yet, run the same command to start again" in capsys.readouterr().err


def test_a_stop_while_evaluating_says_that_the_model_is_safe(pics, tmp_path, monkeypatch):
    """In the inner linear probe, after training; then the same command evaluates, and does not train again."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("unveil.evaluate.logistic.choose_penalty", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted) as caught, raise_on_signals():
            unveil.pretrain(pics, out=out, **TINY)
    assert str(caught.value) == f"stopped while evaluating: the trained model is saved in {out}, and the same command evaluates it"
    assert caught.value.number == signal.SIGTERM
    assert not (out / "results.json").exists()
    log = (out / "log.jsonl").read_bytes()
    assert "features" in unveil.pretrain(pics, out=out, **TINY).results
    assert (out / "log.jsonl").read_bytes() == log


def test_a_probe_does_not_promise_to_resume(whole, pics, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unveil.evaluate.logistic.choose_penalty", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        cli.main(["probe", str(whole.path), str(pics), "--out", str(tmp_path / "probe"), "--device", "cpu"])
    assert caught.value.code == 143
    said = capsys.readouterr().err
    assert "unveil: stopped: run the same command to start again" in said
    assert "step" not in said.splitlines()[-1]


def test_a_run_goes_on_from_another_one_bit_identical(whole, pics, tmp_path, monkeypatch):
    """A stopped run, continued in a new folder with the same options, is the run that was never stopped."""
    with monkeypatch.context() as patch:
        stop_at_step(patch, 5)
        with pytest.raises(Interrupted, match="stopped after step 5 of "), raise_on_signals():
            unveil.pretrain(pics, out=tmp_path / "first", **TINY)
    shutil.copytree(tmp_path / "first", tmp_path / "before")
    run = unveil.pretrain(pics, out=tmp_path / "second", resume_from=tmp_path / "first")
    expected, found = (load_file(path / "model.safetensors") for path in (whole.path, run.path))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert steps_of(run.path) == steps_of(whole.path)
    assert run.config == whole.config | {"resume_from": str(tmp_path / "first")}
    for path in (tmp_path / "before").rglob("*"):  # the run that it came from did not change
        other = tmp_path / "first" / path.relative_to(tmp_path / "before")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_a_finished_run_is_lengthened_with_another_rate(whole, pics, tmp_path):
    longer = {"epochs": 6, "base_lr": 1e-3}
    run = unveil.pretrain(pics, out=tmp_path / "longer", resume_from=whole.path, **longer)
    done, total = len(steps_of(whole.path)), len(steps_of(run.path))
    assert steps_of(run.path) == [*range(1, total + 1)]
    assert total == round(6 * whole.results["images"] / 16) > done
    old, new = whole.log, run.log
    assert [line["loss"] for line in new[:done]] == [line["loss"] for line in old]
    fresh = unveil.pretrain(pics, out=tmp_path / "fresh", **(TINY | longer))
    assert [line["learning_rate"] for line in new[done:]] == [line["learning_rate"] for line in fresh.log[done:]]
    again = unveil.pretrain(pics, out=tmp_path / "longer", resume_from=whole.path, **longer)
    assert again.results == run.results


def test_what_cannot_go_on_is_refused(whole, pics, tmp_path):
    def refused(match: str, data: Path = pics, **options: Any) -> None:
        with pytest.raises(UnveilError, match=match):
            unveil.pretrain(data, **({"out": tmp_path / "new", "resume_from": whole.path} | options))
        assert not (tmp_path / "new" / "checkpoints").exists()

    refused(r"differences:\n  config seed: was 0, is 1\nOnly the length", seed=1)
    refused(r"config mask_ratio: was 0.75, is 0.5", mask_ratio=0.5)
    refused(r"with these differences:\n  data: was 48 images, is 4 images", data=write_images(tmp_path / "few", 2))
    refused(r"has done \d+ steps, and this run would have \d+: give more --epochs")
    refused("is --out itself: leave it out to resume that run", out=whole.path)
    refused("is not a run folder", resume_from=tmp_path)
    with pytest.raises(UnveilError, match="is a pretrain run: a finetune run cannot go on from it"):
        unveil.finetune(whole.path, pics, out=tmp_path / "tuned", resume_from=whole.path, device="cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_on_a_processor_without_it_is_said(fast, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "_cpu_flags", lambda: frozenset(["avx2", *(["avx512_bf16"] if fast else [])]))
    for precision in ("auto", "float32", "bfloat16"):
        recipe = session.join(TrainConfig(), OptimConfig(), HardwareConfig(device="cpu", precision=precision))
        said = capsys.readouterr().err
        assert ("this processor has no matrix products in bfloat16" in said) == (precision == "bfloat16" and not fast)
        assert recipe.hardware.precision == ("bfloat16" if precision == "bfloat16" or (precision == "auto" and fast) else "float32")
