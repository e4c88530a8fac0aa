"""Checkpoints that a thread writes are those that the loop would have written, one at a time, and none is lost."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.train.test_loop import Bare, Fragile, Lines, Numbers, Stopping, recipe, timeless
from tests.train.test_loss_scale import SteepBare, half
from unveil.atomic_files import WriteError
from unveil.errors import Interrupted
from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints
from unveil.train.loop import train
from unveil.train.recorder import Recorder
from unveil.train.signals import Agreement
from unveil.train.snapshot import Snapshot, Writer


class Slow(Checkpoints):
    """Takes longer than a step. Notes the step and the thread of each checkpoint."""

    def __init__(self, folder: Path, fails: int = 0) -> None:
        super().__init__(folder, keep=99)
        self.fails, self.written, self.at_once = fails, list[tuple[int, bool]](), 0

    def save(self, step, files, facts):
        self.at_once += 1
        time.sleep(0.03)
        assert self.at_once == 1
        self.written.append((step, threading.current_thread() is threading.main_thread()))
        if step == self.fails:
            raise WriteError("the disk is full", True)
        path = super().save(step, files, facts)
        self.at_once -= 1
        return path


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, and in every step: each checkpoint waits for the one before it."""
    monkeypatch.setattr(Recorder, "_in_thread", property(lambda _: True, lambda *_: None), raising=False)
    monkeypatch.setattr(Agreement, "_save_due", lambda self: True)


@pytest.mark.usefixtures("in_thread")
@pytest.mark.parametrize("kind", [Fragile, Bare])
def test_a_thread_writes_what_the_loop_would_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Learner]) -> None:
    """Of the step in which it was asked, though the weights have changed since."""
    threads, plain = Slow(tmp_path / "thread"), Slow(tmp_path / "plain")
    train(one := kind(), Numbers(broken=(7,)), recipe(), checkpoints=threads, sinks=[lines := Lines()])
    assert threads.written == [(step, step == 20) for step in range(1, 21)]
    monkeypatch.setattr(Recorder, "_in_thread", property(lambda _: False, lambda *_: None), raising=False)
    train(two := kind(), Numbers(broken=(7,)), recipe(), checkpoints=plain, sinks=[others := Lines()])
    assert plain.written == [(step, True) for step in range(1, 21)]
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert timeless(lines.records) == timeless(others.records)
    for step in range(1, 21):
        assert threads.fault(step) is None
        for name in ("model", "optimizer"):
            found, true = (checkpoints.load(step, name) for checkpoints in (threads, plain))
            assert found.keys() == true.keys()
            assert all(torch.equal(value, true[key]) for key, value in found.items())
        assert threads.manifest(step)["skipped"] == plain.manifest(step)["skipped"]
        assert threads.manifest(step)["meter"]["sums"] == plain.manifest(step)["meter"]["sums"]


@pytest.mark.usefixtures("in_thread")
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_failure_of_the_thread_ends_the_run_with_its_sentence(tmp_path: Path, log_every: int) -> None:
    with pytest.raises(WriteError, match="the disk is full"):
        train(Fragile(), Numbers(), recipe(log_every=log_every), checkpoints=(checkpoints := Slow(tmp_path, fails=4)))
    assert checkpoints.steps() == [3, 2, 1]
    checkpoints = Checkpoints(tmp_path, keep=99)
    train(resumed := Fragile(), Numbers(), recipe(), checkpoints=checkpoints)
    train(whole := Fragile(), Numbers(), recipe())
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


@pytest.mark.usefixtures("in_thread")
def test_a_signal_while_the_thread_writes_leaves_whole_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped after step 7 of 20, and saved a checkpoint"):
        train(Stopping(7), Numbers(), recipe(), checkpoints=(checkpoints := Slow(tmp_path)))
    assert checkpoints.written[-2:] == [(6, False), (7, True)]
    assert [checkpoints.fault(step) for step in range(1, 8)] == [None] * 7


@pytest.mark.parametrize("last", [2, 6, 10, 13])
def test_a_killed_run_in_which_everything_overlaps_resumes_bit_identical(tmp_path, monkeypatch, last):
    """float16, a host that does not wait, and a thread that writes: the same as a plain run that was never stopped."""
    options, broken = half(log_every=5), (8, 12)
    train(whole := SteepBare(), Numbers(broken=broken), options, sinks=[lines := Lines()])
    monkeypatch.setattr(Agreement, "_save_due", lambda self: True)
    monkeypatch.setattr(Agreement, "slow", property(lambda _: False, lambda *_: None), raising=False)
    for name in ("_can_lag", "_in_thread"):
        monkeypatch.setattr(Recorder, name, property(lambda _: True, lambda *_: None), raising=False)
    first, rest = Lines(), Lines()
    with pytest.raises(KeyboardInterrupt):
        train(SteepBare(), Numbers(last, broken=broken), options, checkpoints=Checkpoints(tmp_path), sinks=[first])
    begun = train(resumed := SteepBare(), Numbers(broken=broken), options, checkpoints=Checkpoints(tmp_path), sinks=[rest])
    assert 0 < begun <= last
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    kept = [line for line in first.records if line["step"] <= begun]
    assert timeless(kept + rest.records) == timeless(lines.records)


@pytest.mark.usefixtures("in_thread")
def test_an_error_waits_for_the_thread(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Fragile(), Numbers(last=5), recipe(), checkpoints=(checkpoints := Slow(tmp_path)))
    assert checkpoints.steps() == [5, 4, 3, 2, 1]
    with pytest.raises(KeyboardInterrupt):  # and not what the thread raises
        train(Fragile(), Numbers(last=7), recipe(), checkpoints=Slow(tmp_path, fails=7))


def test_saving_in_a_thread_takes_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    agreement = Agreement(None, 20.0, None)
    now[0] = 30.0
    assert agreement._save_due()
    with agreement.saving():
        now[0] += 0.1
    agreement.writing = True
    now[0] += 30.0
    assert not agreement._save_due()
    agreement.wrote(4.0)
    assert not agreement._save_due()
    now[0] += 11.0
    assert agreement._save_due()
    agreement.wrote(0.0)  # nothing was written since
    assert agreement._write_cost == 4.0


def fail() -> None:
    raise OSError("no")


def test_a_snapshot_does_not_change_and_a_writer_ends_with_its_job() -> None:
    weight, done = torch.zeros(3), []
    snapshot = Snapshot({"model": {"weight": weight}}, torch.device("cpu"))
    weight += 1
    assert snapshot.read()["model"]["weight"].tolist() == [0, 0, 0]
    gathered = Snapshot({"model": {"weight": weight}}, torch.device("meta"))  # a copy already, such as that of a sharded weight
    assert gathered.read()["model"]["weight"] is weight
    with Writer() as writer:
        writer.start(lambda: (time.sleep(0.05), done.append(1)))
        assert writer.busy
    assert done == [1]
    with pytest.raises(OSError, match="no"), Writer() as writer:
        writer.start(fail)


def test_what_no_gpu_has_measured_is_off() -> None:
    code = "from unveil.train import overlap; print(*(name for name in overlap.NAMES if overlap.enabled(name)))"
    for value, enabled in (("", "lag"), ("1", ""), ("0", "lag save copy gather"), ("lag,copy", "save gather")):
        environment = os.environ | {"UNVEIL_WAIT": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == enabled
