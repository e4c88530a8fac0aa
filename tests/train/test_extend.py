"""`--extend`: a run is made longer in its own folder, with a warm restart of the learning rate."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unveil
from tests.runs.test_session import TINY, steps_of, stop_at_step, write_images
from unveil import cli
from unveil.errors import Interrupted, UnveilError
from unveil.json_files import json_text, read_json
from unveil.stop_signals import raise_on_signals
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.schedule import Restart

pytestmark = pytest.mark.usefixtures("without_reports")

SHORT = TINY | {"epochs": 2, "warmup_ratio": 0.25, "min_lr": 1e-5}
CPU = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def pics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "pics")


@pytest.fixture(scope="module")
def short(pics: Path, tmp_path_factory: pytest.TempPathFactory) -> unveil.Run:
    return unveil.pretrain(pics, out=tmp_path_factory.mktemp("runs") / "short", **SHORT)


def copy_of(run: unveil.Run, path: Path) -> unveil.Run:
    shutil.copytree(run.path, path)
    return unveil.Run(path)


def same_weights(a: Path, b: Path) -> bool:
    mine, theirs = (load_file(path / "model.safetensors") for path in (a, b))
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def recipe(restarts: tuple[Restart, ...], epochs: float, **options: Any) -> Recipe:
    optim = OptimConfig(base_lr=1.0, **options)
    return Recipe(TrainConfig(epochs=epochs, batch_size=256), optim, HardwareConfig(), CPU, restarts)


def test_the_rate_of_a_restart_by_hand() -> None:
    """100 steps, then 150 more with a warm-up of a tenth of them, to half a cosine that ends at the last step."""
    run = recipe((Restart(100, 100, 10.0),), 25.0, warmup_ratio=0.1, min_lr=0.01)
    for step in range(250):
        first, length = (0, 100) if step < 100 else (100, 150)
        warmup, i = length // 10, step - first
        if i < warmup:
            expected = (i + 1) / warmup
        else:
            expected = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (i - warmup) / (length - warmup)))
        assert run.at(step, 250)[0] == pytest.approx(expected), step


def test_the_steps_before_a_restart_are_those_of_the_run_before() -> None:
    """Also of a run that was stopped at step 60 of 100, and of one that was made longer twice."""
    first = recipe((), 10.0, warmup_epochs=1.0)
    second = recipe((Restart(60, 100, 10.0),), 20.0, warmup_epochs=1.0)
    third = recipe((Restart(60, 100, 10.0), Restart(200, 200, 20.0)), 40.0, warmup_epochs=1.0)
    assert [second.at(step, 200)[0] for step in range(60)] == [first.at(step, 100)[0] for step in range(60)]
    assert [third.at(step, 400)[0] for step in range(200)] == [second.at(step, 200)[0] for step in range(200)]
    assert second.at(60, 200)[0] == pytest.approx(1 / 10)  # one epoch has 10 steps
    assert second.at(69, 200)[0] == pytest.approx(1.0)
    assert third.at(209, 400)[0] == pytest.approx(1.0)
    assert third.at(399, 400)[0] < 1e-3


def test_without_a_restart_nothing_has_changed() -> None:
    for schedule in ("cosine", "linear", "inverse_sqrt", "multistep"):
        run = recipe((), 10.0, schedule=schedule, weight_decay_end=0.4)
        assert [run.at(step, 90) for step in range(90)] == [run.optim.at(step, 90, 256) for step in range(90)]


def test_a_warm_up_longer_than_the_extension_is_refused() -> None:
    with pytest.raises(UnveilError, match="the warm-up takes 5 epochs, but the run has 2"):
        recipe((Restart(100, 100, 10.0),), 12.0, warmup_epochs=5.0).at(100, 120)


def test_a_finished_run_goes_on_in_its_folder(short, pics, tmp_path, capsys) -> None:
    run = copy_of(short, tmp_path / "run")
    done = steps_of(run.path)[-1]
    with pytest.raises(
        UnveilError, match=r"config epochs: was 2\.0, is 5\.0\n.*for 5 epochs in this folder, add --extend; to go on with"
    ):
        unveil.pretrain(pics, out=run, **SHORT | {"epochs": 5})
    unveil.report(run.path)
    before = {path: path.read_bytes() for path in (run.path / "results.json", run.path / "report.html")}
    again = unveil.pretrain(pics, out=run, extend=True, **SHORT | {"epochs": 5})
    total = round(5 * again.results["images"] / 16)
    warmup = round(0.25 * (total - done))
    said = " ".join(capsys.readouterr().err.split())
    assert f"extended: steps 0 to {done} are the earlier run of 2 epochs; then the learning rate warms up to 0.000125 over" in said
    assert f" over {warmup} steps, and falls by half a cosine to " in said
    assert steps_of(run.path) == [*range(1, total + 1)]
    rates = [line["learning_rate"] for line in again.log]
    assert rates[:done] == [line["learning_rate"] for line in short.log]
    assert rates[done : done + warmup] == pytest.approx([2e-3 / 16 * (i + 1) / warmup for i in range(warmup)])
    assert rates[done + warmup] == max(rates)
    assert rates[done + warmup :] == sorted(rates[done + warmup :], reverse=True)
    for path, content in before.items():  # the earlier results are kept, and the new ones are others
        assert (run.path / "history" / "epochs-2" / path.name).read_bytes() == content != path.read_bytes()
    assert again.config["epochs"] == 5
    assert again.facts["extensions"] == [{"step": done, "total": done, "epochs": 2.0}]
    assert again.results["images_seen"] == 16 * total
    assert f"at step {done}, from 2 epochs" in unveil.report(run.path).read_text()
    for extend in (True, False):  # the same command again finds a finished run
        results = (run.path / "results.json").read_bytes()
        unveil.pretrain(pics, out=run, extend=extend, **SHORT | {"epochs": 5})
        assert (run.path / "results.json").read_bytes() == results
        assert "is finished. Its report" in capsys.readouterr().err
    third = unveil.pretrain(pics, out=run, extend=True, **SHORT | {"epochs": 6})  # and a second time
    assert third.facts["extensions"] == [{"step": done, "total": done, "epochs": 2.0}, {"step": total, "total": total, "epochs": 5}]
    assert [line["learning_rate"] for line in third.log][:total] == rates
    assert sorted(path.name for path in (run.path / "history").iterdir()) == ["epochs-2", "epochs-5"]


def test_the_optimiser_goes_on_too(short, pics, tmp_path) -> None:
    """The first step after the restart, by torch's own AdamW on the state of the checkpoint, has the same result."""
    run = copy_of(short, tmp_path / "run")
    done = steps_of(run.path)[-1]
    moments = load_file(run.checkpoints().path(done) / "optimizer.safetensors")
    longer = unveil.pretrain(pics, out=run, extend=True, **SHORT | {"epochs": 3, "save_seconds": 0.0, "keep_checkpoints": 99})
    first = run.checkpoints().steps()[-2] if run.checkpoints().steps()[-1] == done else run.checkpoints().steps()[-1]
    after = load_file(longer.checkpoints().path(first) / "optimizer.safetensors")
    name = next(key for key in moments if key.endswith("head.weight:step"))
    assert float(moments[name]) == done
    assert float(after[name]) == first > done


def test_a_stopped_extension_resumes_bit_identical(short, pics, tmp_path, monkeypatch) -> None:
    longer = SHORT | {"epochs": 4}
    whole, run = copy_of(short, tmp_path / "whole"), copy_of(short, tmp_path / "run")
    unveil.pretrain(pics, out=whole, extend=True, **longer)
    done = steps_of(short.path)[-1]
    with monkeypatch.context() as patch:
        stop_at_step(patch, done + 2)
        with pytest.raises(Interrupted), raise_on_signals():
            unveil.pretrain(pics, out=run, extend=True, **longer)
    assert not (run.path / "results.json").exists()
    assert same_weights(run.path, short.path)  # the finished encoder stays usable
    assert unveil.load(run, say=print)
    unveil.pretrain(pics, out=run, extend=True, **longer)  # the same command again
    assert same_weights(run.path, whole.path)
    assert unveil.Run(run).log[-1]["loss"] == unveil.Run(whole).log[-1]["loss"]
    assert unveil.Run(run).facts["extensions"] == unveil.Run(whole).facts["extensions"]


def test_stopped_before_its_first_step_nothing_is_lost(short, pics, tmp_path, monkeypatch) -> None:
    run = copy_of(short, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("unveil.runs.session.train", lambda *a, **b: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Interrupted):
            unveil.pretrain(pics, out=run, extend=True, **SHORT | {"epochs": 4})
    assert same_weights(run.path, short.path)
    assert (run.path / "history" / "epochs-2" / "results.json").read_bytes() == (short.path / "results.json").read_bytes()
    finished = unveil.pretrain(pics, out=run, **SHORT | {"epochs": 4})  # the flag is not needed any more
    assert finished.results["images_seen"] > short.results["images_seen"]


@pytest.mark.parametrize("after", ["keep_results", "nothing"])
def test_killed_while_the_folder_changes(after, short, pics, tmp_path, monkeypatch) -> None:
    """Before `run.json` is written, the run is still the earlier one: either command goes on."""
    run = copy_of(short, tmp_path / "run")
    with monkeypatch.context() as patch:
        if after == "keep_results":
            patch.setattr("unveil.train.extend.write_text", lambda *_: (_ for _ in ()).throw(MemoryError))
        else:
            patch.setattr("unveil.train.extend.sync", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            unveil.pretrain(pics, out=run, extend=True, **SHORT | {"epochs": 4})
    other = copy_of(run, tmp_path / "other")
    assert unveil.pretrain(pics, out=other, **SHORT).results["features"] == short.results["features"]
    longer = unveil.pretrain(pics, out=run, extend=True, **SHORT | {"epochs": 4})
    assert len(longer.facts["extensions"]) == 1
    kept = json.loads((run.path / "history" / "epochs-2" / "results.json").read_text())
    assert kept["features"] == short.results["features"]


def test_an_unfinished_run_is_extended(short, pics, tmp_path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        stop_at_step(patch, 3)
        with pytest.raises(Interrupted), raise_on_signals():
            unveil.pretrain(pics, out=tmp_path / "run", **SHORT)
    run = unveil.pretrain(pics, out=tmp_path / "run", extend=True, **SHORT | {"epochs": 4})
    planned = steps_of(short.path)[-1]
    assert f"steps 0 to 3 are the earlier run of 2 epochs, which was planned for {planned}; then" in (
        " ".join(capsys.readouterr().err.split())
    )
    assert run.facts["extensions"] == [{"step": 3, "total": planned, "epochs": 2.0}]
    assert [line["learning_rate"] for line in run.log[:3]] == [line["learning_rate"] for line in short.log[:3]]


def test_a_run_that_has_not_begun_simply_begins(short, pics, tmp_path) -> None:
    run = unveil.pretrain(pics, out=tmp_path / "run", extend=True, **SHORT)
    assert same_weights(run.path, short.path)
    assert "extensions" not in run.facts


def test_what_is_no_extension_is_refused(short, pics, tmp_path) -> None:
    run = copy_of(short, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(UnveilError, match=match):
            unveil.pretrain(pics, out=run, extend=True, **SHORT | options)
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before

    for epochs in (2, 1):
        refused(rf"is a run of 2 epochs, and --epochs is {epochs}: to extend it, give more than 2", epochs=epochs)
    refused("config seed: was 0, is 1", epochs=4, seed=1)
    shutil.rmtree(run.path / "checkpoints")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    refused("has no good checkpoint to go on from: train it again in another --out", epochs=4)


def test_a_damaged_record_is_a_sentence(short, pics, tmp_path) -> None:
    run = copy_of(short, tmp_path / "run")
    facts = read_json(run.path / "run.json")
    for entry in ({"step": 5}, {"step": -1, "total": 3, "epochs": 2}, {"step": 3, "total": 3, "epochs": "x"}):
        (run.path / "run.json").write_text(json_text({**facts, "extensions": [entry]}))
        with pytest.raises(UnveilError, match=r"run\.json is damaged: extensions"):
            unveil.pretrain(pics, out=run, **SHORT)


def test_finetuning_is_extended_too(short, pics, tmp_path, capsys) -> None:
    options = {"out": tmp_path / "tuned", "device": "cpu", "batch_size": 16, "precision": "float32", "log_every": 1}
    tuned = unveil.finetune(short, pics, epochs=1, **options)
    before = (tuned.path / "predictions.csv").read_bytes() if (tuned.path / "predictions.csv").exists() else b""
    done = steps_of(tuned.path)[-1]
    with pytest.raises(UnveilError, match="for 3 epochs in this folder, add --extend"):
        unveil.finetune(short, pics, epochs=3, **options)
    longer = unveil.finetune(short, pics, epochs=3, extend=True, **options)
    assert steps_of(longer.path) == [*range(1, round(3 * longer.results["trained_on"] / 16) + 1)]
    assert done < steps_of(longer.path)[-1]
    kept = {path.name for path in (tuned.path / "history" / "epochs-1").iterdir()}
    assert {"results.json", "report.html"} <= kept
    assert not before or (tuned.path / "history" / "epochs-1" / "predictions.csv").read_bytes() == before


def test_the_command_line(short, pics, tmp_path, capsys) -> None:
    run = copy_of(short, tmp_path / "run")
    words = ["pretrain", str(pics), "--out", str(run), "--epochs", "3", "--extend"]
    for name, value in SHORT.items():
        if name != "epochs":
            words += ["--" + name.replace("_", "-"), *(str(each) for each in (value if isinstance(value, tuple) else (value,)))]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0
    assert read_json(run.path / "run.json")["config"]["epochs"] == 3.0
