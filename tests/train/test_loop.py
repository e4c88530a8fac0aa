"""The loop itself, with a small learner: resume, saving, seeds, warm-up, and what it leaves behind."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unveil.blocks.stateless_random import sample_keys, uniform
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Record
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.signals import Agreement, Interrupted

WORLD = World(torch.device("cpu"))


class Small(Learner):
    """Dropout draws from the global generator, so a wrong seed of a step would be noticed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 4))

    def forward(self, batch: Batch) -> Step:
        error = self.layers(batch.images) - batch.images
        return Step(error.square().mean(), {"error": error.abs().mean()})


class Numbers:
    """Four numbers per sample. After `last` steps the process is killed, or the numbers become infinite."""

    samples, batch_size, prefetch = 40, 8, False

    def __init__(self, last: int | None = None, broken: bool = False) -> None:
        self.last, self.broken = last, broken

    def share(self, step: int, share: int, shares: int) -> Batch:
        size = self.batch_size // shares
        keys = sample_keys(0, step * self.batch_size + share * size, size)
        numbers = uniform(keys, 4, 1)
        if self.last is not None and step >= self.last:
            if not self.broken:
                raise KeyboardInterrupt
            numbers = numbers / 0
        return Batch(numbers, torch.ones(size, 2, dtype=torch.int64), keys)


class Lines:
    """Keeps the records, and sends a signal after a step."""

    def __init__(self, last: int = 0) -> None:
        self.last, self.first, self.records = last, -1, list[Record]()

    def start(self, first: int) -> None:
        self.first = first

    def write(self, record: Record) -> None:
        self.records.append(record)
        if record["step"] == self.last:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None: ...


class Stopping(Small):
    """Stops the run by a signal in a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def after_step(self, progress: float) -> None:
        if round(20 * progress) == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Counting(Checkpoints):
    """Counts the checkpoints that are verified, and notes the steps that are saved."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.verified, self.saved = 0, list[int]()

    def fault(self, step: int) -> str | None:
        self.verified += 1
        return super().fault(step)

    def save(self, step, files, facts):
        self.saved.append(step)
        return super().save(step, files, facts)


def recipe(optim: OptimConfig | None = None, **training: float) -> Recipe:
    options = {"epochs": 4, "batch_size": 8, "accum_steps": 2, "log_every": 5, "num_evals": 0} | training
    return Recipe(TrainConfig(**options), optim or OptimConfig(base_lr=0.3), HardwareConfig(precision="float32"), WORLD)


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agreement, "_save_due", lambda self: True)


def timeless(records: list[Record]) -> list[Record]:
    timed = ("samples_per_second", "peak_share", "waiting", "seconds")
    return [{key: value for key, value in record.items() if key not in timed} for record in records]


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("last", [1, 7, 10, 18])
def test_a_killed_run_ends_bit_identical_and_logs_the_same_lines(tmp_path, last):
    """Also where the last checkpoint lies between two lines of the log: the means of the next line cover all of their steps."""
    whole, lines = Small(), Lines()
    assert train(whole, Numbers(), recipe(), checkpoints=Checkpoints(tmp_path / "whole"), sinks=[lines]) == 0
    assert [record["step"] for record in lines.records] == [5, 10, 15, 20]
    checkpoints, killed = Counting(tmp_path / "killed"), Lines()
    with pytest.raises(KeyboardInterrupt):
        train(Small(), Numbers(last), recipe(), checkpoints=checkpoints, sinks=[killed])
    assert checkpoints.saved == list(range(1, last + 1))
    resumed, rest = Small(), Lines()
    assert train(resumed, Numbers(), recipe(), checkpoints=checkpoints, sinks=[rest]) == last == rest.first
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert timeless(killed.records + rest.records) == timeless(lines.records)


@pytest.mark.usefixtures("save_always")
def test_the_newest_checkpoint_is_verified_once(tmp_path):
    train(Small(), Numbers(), recipe(), checkpoints=Checkpoints(tmp_path))
    checkpoints = Counting(tmp_path)
    assert train(Small(), Numbers(), recipe(), checkpoints=checkpoints) == 20
    assert checkpoints.verified == 1


def test_saving_does_not_wait_for_the_log(tmp_path):
    checkpoints, lines = Counting(tmp_path), Lines()
    train(Small(), Numbers(), recipe(log_every=1000, save_seconds=0.0), checkpoints=checkpoints, sinks=[lines])
    assert checkpoints.saved[0] == 1
    assert checkpoints.saved[-1] == 20
    assert [record["step"] for record in lines.records] == [20]
    checkpoints = Counting(tmp_path / "other")
    train(Small(), Numbers(), recipe(log_every=1, save_seconds=1000.0), checkpoints=checkpoints)
    assert checkpoints.saved == [20]


@pytest.mark.usefixtures("save_always")
def test_a_loss_that_is_not_finite_is_never_saved(tmp_path):
    checkpoints = Counting(tmp_path)
    with pytest.raises(UnveilError, match=r"the loss is nan.*near step 4.*images contain values that are not finite"):
        train(Small(), Numbers(3, broken=True), recipe(log_every=1000), checkpoints=checkpoints)
    assert checkpoints.saved == [1, 2, 3]
    assert checkpoints.newest() == 3


def test_a_signal_saves_and_stops(tmp_path):
    with pytest.raises(Interrupted, match="stopped after step 5 of 20, and saved a checkpoint"):
        train(Small(), Numbers(), recipe(), checkpoints=(checkpoints := Counting(tmp_path)), sinks=[Lines(last=5)])
    assert checkpoints.saved == [5]
    with pytest.raises(Interrupted, match=r"stopped after step 5 of 20$"):
        train(Small(), Numbers(), recipe(), sinks=[Lines(last=5)])


def test_a_stop_between_two_lines_of_the_log_does_not_change_them(tmp_path):
    whole, stopped, rest = Lines(), Lines(), Lines()
    train(Small(), Numbers(), recipe(), sinks=[whole])
    with pytest.raises(Interrupted, match="stopped after step 7 of 20"):
        train(Stopping(7), Numbers(), recipe(), checkpoints=(checkpoints := Counting(tmp_path)), sinks=[stopped])
    assert checkpoints.saved == [7]
    assert train(Small(), Numbers(), recipe(), checkpoints=checkpoints, sinks=[rest]) == 7
    assert [record["step"] for record in stopped.records + rest.records] == [5, 10, 15, 20]
    assert timeless(stopped.records + rest.records) == timeless(whole.records)


def test_a_checkpoint_without_the_state_of_the_log_can_be_resumed(tmp_path):
    """As those of d98af96."""
    with pytest.raises(Interrupted):
        train(Stopping(7), Numbers(), recipe(), checkpoints=(checkpoints := Counting(tmp_path)))
    manifest = checkpoints.path(7) / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["meter"]
    manifest.write_text(json.dumps(facts))
    whole, resumed, lines = Small(), Small(), Lines()
    train(whole, Numbers(), recipe())
    assert train(resumed, Numbers(), recipe(), checkpoints=checkpoints, sinks=[lines]) == 7
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [record["step"] for record in lines.records] == [10, 15, 20]


@pytest.mark.parametrize("last", [None, 3])
def test_global_generators_are_what_they_were(last):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        train(Small(), Numbers(last), recipe())
    except KeyboardInterrupt:
        assert last
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_caller_does_not_change_the_result():
    learners = [Small(), Small()]
    for seed, learner in enumerate(learners):
        torch.manual_seed(seed)
        train(learner, Numbers(), recipe())
    assert all(torch.equal(a, b) for a, b in zip(*(learner.parameters() for learner in learners), strict=True))


def test_warmup_in_epochs():
    """Two of four epochs of five steps: the rate rises for ten steps."""
    rates = {}
    for name, optim in {
        "epochs": OptimConfig(base_lr=0.32, warmup_epochs=2.0, warmup_ratio=0.9),
        "ratio": OptimConfig(base_lr=0.32, warmup_ratio=0.5),
    }.items():
        lines = Lines()
        train(Small(), Numbers(), recipe(optim, log_every=1), sinks=[lines])
        rates[name] = [record["learning_rate"] for record in lines.records]
    assert rates["epochs"] == rates["ratio"]
    assert rates["epochs"][:10] == pytest.approx([0.001 * (i + 1) for i in range(10)])
    assert rates["epochs"][11] < rates["epochs"][10]
    with pytest.raises(UnveilError, match=r"the warm-up takes 5 epochs, but the run has 4: use --warmup-epochs between 0 and 4"):
        train(Small(), Numbers(), recipe(OptimConfig(warmup_epochs=5)))


def test_the_loop_is_imported_without_what_it_may_not_need():
    """FSDP and the compiler take seconds to import."""
    code = (
        "import sys, unveil.train.loop, unveil.train.run_folder\n"
        "heavy = ['torch._dynamo', 'torch._inductor', 'torch.distributed.fsdp', 'torch.distributed.tensor', 'matplotlib', 'timm']\n"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
