"""The loop itself, with a small learner: resume, saving, seeds, warm-up, and what it leaves behind."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unveil.blocks.ema import ema_copy, ema_update
from unveil.blocks.stateless_random import sample_keys, uniform
from unveil.data.batch import Batch
from unveil.errors import Interrupted, UnveilError
from unveil.learner import Learner, Step
from unveil.stop_signals import Stopped, raise_on_signals
from unveil.train import recorder
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Record
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Recorder
from unveil.train.signals import Agreement

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
    """Four numbers per sample. After `last` steps the process is killed. In the steps of `broken`, sample 2 is infinite."""

    samples, batch_size, prefetch = 40, 8, False

    def __init__(self, last: int | None = None, broken: Container[int] = ()) -> None:
        self.last, self.broken = last, broken

    def share(self, step: int, share: int, shares: int) -> Batch:
        size = self.batch_size // shares
        keys = sample_keys(0, step * self.batch_size + share * size, size)
        numbers = uniform(keys, 4, 1)
        if self.last is not None and step >= self.last:
            raise KeyboardInterrupt
        if step in self.broken and share == 0:
            numbers[2] /= 0
        return Batch(numbers, torch.ones(size, 2, dtype=torch.int64), keys)

    def names(self, step: int, share: int, shares: int) -> list[str]:
        size = self.batch_size // shares
        return [f"step {step} number {share * size + i}" for i in range(size)]


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


def test_a_signal_saves_and_stops(tmp_path):
    with pytest.raises(Interrupted, match="stopped after step 5 of 20, and saved a checkpoint") as caught:
        train(Small(), Numbers(), recipe(), checkpoints=(checkpoints := Counting(tmp_path)), sinks=[Lines(last=5)])
    assert checkpoints.saved == [5]
    assert caught.value.number == signal.SIGTERM


def test_without_checkpoints_a_signal_is_the_callers():
    with pytest.raises(Stopped) as caught, raise_on_signals():
        train(Small(), Numbers(), recipe(), sinks=[Lines(last=5)])
    assert caught.value.number == signal.SIGTERM


def test_a_signal_in_the_last_step_is_not_forgotten(tmp_path):
    checkpoints = Counting(tmp_path)
    with pytest.raises(Interrupted, match="stopped after the last step: the trained model is saved"):
        train(Stopping(20), Numbers(), recipe(), checkpoints=checkpoints)
    assert checkpoints.saved == [20]
    assert train(Small(), Numbers(), recipe(), checkpoints=checkpoints) == 20


@pytest.mark.parametrize("at", [5, 20])
def test_a_signal_in_an_evaluation_stops_it_and_the_next_start_repeats_it(tmp_path, at):
    def monitor(learner: Learner) -> Record:
        if len(calls) == at // 5 - 1:
            signal.raise_signal(signal.SIGTERM)
        calls.append(learner.training)
        return {"knn": float(learner.layers[0].weight.detach().sum())}

    calls: list[bool] = []
    whole, stopped, rest = Lines(), Lines(), Lines()
    options = recipe(num_evals=4)
    calls += [False] * 100
    train(Small(), Numbers(), options, sinks=[whole], monitors=[monitor])
    calls.clear()
    saves = "saved a checkpoint" if at == 5 else "the trained model is saved"
    with pytest.raises(Interrupted, match=saves):
        train(Small(), Numbers(), options, checkpoints=(checkpoints := Counting(tmp_path)), sinks=[stopped], monitors=[monitor])
    assert checkpoints.saved == [at]
    calls += [False] * 100
    assert train(Small(), Numbers(), options, checkpoints=checkpoints, sinks=[rest], monitors=[monitor]) == at
    assert timeless(stopped.records + rest.records) == timeless(whole.records)
    assert not any(calls)  # in eval mode


class Waiting(Numbers):
    """Hangs in a step while it reads, as a network share does."""

    prefetch = True

    def share(self, step: int, share: int, shares: int) -> Batch:
        if (step, share) == (7, 0):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(3)
        return super().share(step, share, shares)


def test_a_signal_while_samples_are_read_saves_at_once(tmp_path):
    began = time.monotonic()
    with pytest.raises(Interrupted, match=r"stopped after step . of 20, and saved") as caught:
        train(Small(), Waiting(), recipe(), checkpoints=(checkpoints := Counting(tmp_path)))
    assert caught.value.number == signal.SIGHUP
    assert time.monotonic() - began < 2.5
    assert len(checkpoints.saved) == 1
    whole, resumed = Small(), Small()
    train(whole, Numbers(), recipe())
    train(resumed, Numbers(), recipe(), checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class Failing(Numbers):
    """Cannot read a step."""

    def __init__(self, error: Exception, prefetch: bool) -> None:
        super().__init__()
        self.error, self.prefetch = error, prefetch

    def share(self, step: int, share: int, shares: int) -> Batch:
        if step == 7:
            raise self.error
        return super().share(step, share, shares)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "reading the samples failed with MemoryError: no details"),
        (RuntimeError("can't start new thread"), "reading the samples failed with RuntimeError: can't start new thread"),
        (UnveilError("too many images are lost"), "too many images are lost"),
    ],
)
def test_a_failure_to_read_saves_first_and_is_one_sentence(tmp_path, prefetch, error, says):
    with pytest.raises(UnveilError, match=rf"^{says}\. Step 7 is saved: the same command resumes from there\.$"):
        train(Small(), Failing(error, prefetch), recipe(), checkpoints=(checkpoints := Counting(tmp_path)))
    assert checkpoints.saved == [7]


# Steps that are not finite


class Fragile(Small):
    """Has all that a step may change: statistics of a batch norm, a buffer of its own, and an average of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.average = ema_copy(self.layers)
        self.register_buffer("centre", torch.zeros(4))
        self.steps: list[float] = []

    def forward(self, batch: Batch) -> Step:
        self.centre += batch.images.mean(dim=0)
        return super().forward(batch._replace(images=self.norm(batch.images)))

    def after_step(self, progress: float) -> None:
        self.steps.append(round(20 * progress))
        ema_update(self.average, self.layers, 0.9)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("accum_steps", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, accum_steps):
    """The state after it is that before it, bit for bit, and all later steps are those of a run whose order leaves it out."""
    checkpoints, lines = Checkpoints(tmp_path, keep=99), Lines()
    options = recipe(log_every=1, accum_steps=accum_steps, save_seconds=0)
    train(learner := Fragile(), Numbers(broken=[7]), options, checkpoints=checkpoints, sinks=[lines])
    for name in ("model", "optimizer"):
        before, after, later = (checkpoints.load(step, name) for step in (7, 8, 9))
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        assert not all(torch.equal(value, later[key]) for key, value in before.items())
    assert learner.steps == [step for step in range(1, 21) if step != 8]
    assert [record["step"] for record in lines.records] == learner.steps
    assert [record.get("skipped_steps") for record in lines.records] == [None] * 7 + [1] * 12
    assert all(math.isfinite(record["loss"]) for record in lines.records)
    assert all(x.isfinite().all() for x in learner.state_dict().values())


class Bare(Small):
    """Does nothing after a step, so that a GPU can drop one by itself. Its buffer changes in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: Batch) -> Step:
        return super().forward(batch._replace(images=self.norm(batch.images)))


@pytest.mark.parametrize("broken", [(), (4,), (7,), (4, 5), (6, 7), (9, 10), (9, 12, 13), (18, 19), range(3, 9), range(5, 10)])
@pytest.mark.parametrize("careful", [0, 3, 100])
def test_a_host_that_does_not_wait_learns_the_same(tmp_path, monkeypatch, broken, careful):
    """As on a fast GPU: the optimiser drops a step by itself, and the host is told in the next one. No line of the log waits."""
    seen, lagged, follow = [], [], Recorder.follow
    for lags in (False, True):
        monkeypatch.setattr(recorder, "CAREFUL_STEPS", careful)
        monkeypatch.setattr(Agreement, "slow", property(lambda _, lags=lags: not lags, lambda *_: None), raising=False)
        monkeypatch.setattr(Recorder, "_can_lag", property(lambda _: True, lambda *_: None), raising=False)
        monkeypatch.setattr(Recorder, "follow", lambda self, *step: (lagged.append(1), follow(self, *step))[1])
        checkpoints, learner, lines = Checkpoints(tmp_path / f"{lags}", keep=99), Bare(), Lines()
        train(learner, Numbers(broken=broken), recipe(), checkpoints=checkpoints, sinks=[lines])
        seen.append((learner.state_dict(), timeless(lines.records), checkpoints.load(20, "optimizer"), checkpoints.manifest(20)))
    assert len(lagged) == 19 or broken
    for part in (0, 2):
        assert seen[0][part].keys() == seen[1][part].keys()
        assert all(torch.equal(value, seen[1][part][key]) for key, value in seen[0][part].items())
    assert seen[0][1] == seen[1][1]
    assert seen[0][3]["skipped"] == seen[1][3]["skipped"]
    assert seen[0][3]["skipped"]["count"] == len(broken)


@pytest.mark.parametrize("last", [6, 7, 8, 9])
def test_a_host_that_does_not_wait_saves_what_it_was_told(tmp_path, monkeypatch, last):
    """A signal, or a failure to read, while the last step is not decided yet."""
    monkeypatch.setattr(Agreement, "slow", property(lambda _: False, lambda *_: None), raising=False)
    monkeypatch.setattr(Recorder, "_can_lag", property(lambda _: True, lambda *_: None), raising=False)
    numbers = Numbers(broken=(7,))
    train(whole := Bare(), numbers, recipe(), sinks=[lines := Lines()])
    checkpoints, first, rest = Checkpoints(tmp_path), Lines(), Lines()

    class Until(Numbers):
        def share(self, step: int, share: int, shares: int) -> Batch:
            if step == last:
                raise MemoryError
            return super().share(step, share, shares)

    with pytest.raises(UnveilError, match=f"Step {last} is saved"):
        train(Bare(), Until(broken=(7,)), recipe(), checkpoints=checkpoints, sinks=[first])
    train(resumed := Bare(), numbers, recipe(), checkpoints=checkpoints, sinks=[rest])
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert timeless(first.records + rest.records) == timeless(lines.records)


def test_a_host_that_does_not_wait_stops_after_too_many_skipped_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(Agreement, "slow", property(lambda _: False, lambda *_: None), raising=False)
    monkeypatch.setattr(Recorder, "_can_lag", property(lambda _: True, lambda *_: None), raising=False)
    checkpoints = Counting(tmp_path)
    with pytest.raises(UnveilError, match=r"3 of 6 steps were skipped.*the loss is nan; the batch holds step 5 number 0"):
        train(Bare(), Numbers(broken=range(3, 9)), recipe(max_skipped_steps=3), checkpoints=checkpoints)
    assert checkpoints.saved == [6]
    assert all(x.isfinite().all() for x in checkpoints.load(6, "model").values())


@pytest.mark.usefixtures("save_always")
def test_runs_that_skip_steps_resume_bit_identical(tmp_path):
    broken = [2, 6, 7, 8, 15]
    train(whole := Fragile(), Numbers(broken=broken), recipe(), checkpoints=Checkpoints(tmp_path / "whole"), sinks=[a := Lines()])
    for last in (3, 8, 9):
        checkpoints, b, c = Checkpoints(tmp_path / str(last)), Lines(), Lines()
        with pytest.raises(KeyboardInterrupt):
            train(Fragile(), Numbers(last, broken=broken), recipe(), checkpoints=checkpoints, sinks=[b])
        assert train(learner := Fragile(), Numbers(broken=broken), recipe(), checkpoints=checkpoints, sinks=[c]) == last
        assert all(torch.equal(x, y) for x, y in zip(whole.state_dict().values(), learner.state_dict().values(), strict=True))
        assert timeless(b.records + c.records) == timeless(a.records)
        assert checkpoints.manifest(20)["skipped"]["count"] == 5


def test_too_many_skipped_steps_stop_the_run_which_can_go_on(tmp_path):
    """The first stop names the sample; the same command goes on behind it, and says so when it stops for the same reason."""
    numbers, checkpoints = Numbers(broken=range(3, 9)), Counting(tmp_path / "run" / "checkpoints")
    for _ in range(2):
        with pytest.raises(UnveilError) as caught:
            train(Small(), numbers, recipe(max_skipped_steps=3), checkpoints=checkpoints)
        said = str(caught.value)
        assert "because of 1 of 8 samples: step" in said
        assert f"add --resume-from {tmp_path / 'run'}, a new --out, and a smaller --base-lr" in said
        assert ("as when it was stopped the last time" in said) == (len(checkpoints.saved) == 2)
    assert checkpoints.saved == [6, 9]
    assert "3 of 6 steps were skipped" not in said
    assert "6 of 9 steps were skipped" in said
    assert "step 8 number 2. The checkpoint of step 9 is good. The same command tries the next steps" in said
    train(learner := Small(), numbers, recipe(max_skipped_steps=3), checkpoints=checkpoints)
    assert all(x.isfinite().all() for x in learner.state_dict().values())
    with pytest.raises(UnveilError, match="1 of 4 steps were skipped"):
        train(Small(), numbers, recipe(max_skipped_steps=0))


def test_a_steady_share_of_skipped_steps_stops_the_run():
    with pytest.raises(UnveilError, match="4 of 7 steps were skipped"):
        train(Small(), Numbers(broken=range(0, 20, 2)), recipe(max_skipped_steps=3))
    train(Small(), Numbers(broken=range(12, 1000, 12)), recipe(epochs=50, max_skipped_steps=3))  # less than a tenth


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(capsys):
    class Root(Small):
        """The root of 0 has a finite value, and an infinite slope."""

        def forward(self, batch: Batch) -> Step:
            return Step(self.layers[0].weight.sum() * 0 + (self.layers[0].bias.sum() * 0).sqrt() + 2, {})

    with pytest.raises(UnveilError) as caught:
        train(Root(), Numbers(), recipe(max_skipped_steps=0))
    assert "In the last one, the loss is finite, 2, but the norm of the gradient is nan; the batch holds step 0 number 0" in str(
        caught.value
    )


@pytest.mark.usefixtures("save_always")
def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A rate that makes them infinite in one step. The loss and the gradient of that step were finite."""

    class Exploding(Small):
        def after_step(self, progress: float) -> None:
            if round(20 * progress) == 4:
                self.layers[0].weight.data[0, 0] = float("inf")

    checkpoints = Counting(tmp_path)
    for _ in range(2):
        with pytest.raises(
            UnveilError, match=r"after step 4, the model is not finite any more, see layers.0.weight: the steps were"
        ):
            train(Exploding(), Numbers(), recipe(), checkpoints=checkpoints)
    assert checkpoints.saved == [1, 2, 3]
    optim = OptimConfig(base_lr=3e39, warmup_ratio=0)
    with pytest.raises(UnveilError, match=r"after step 1, .* were too large \(learning rate .*No checkpoint was saved before"):
        train(Small(), Numbers(), recipe(optim), checkpoints=(none := Counting(tmp_path / "none")))
    assert not none.saved
    with pytest.raises(UnveilError, match=r"after step 4, .*Use a smaller --base-lr"):
        train(Exploding(), Numbers(), recipe())


def test_a_checkpoint_of_an_earlier_version_that_is_not_finite_is_passed_over(tmp_path):
    checkpoints, said = Checkpoints(tmp_path, warn=(said := []).append), said
    with pytest.raises(Interrupted):
        train(Stopping(7), Numbers(), recipe(), checkpoints=checkpoints)
    files = {name: checkpoints.load(7, name) for name in ("model", "optimizer")}
    files["model"]["layers.0.bias"][0] = float("nan")
    checkpoints.save(9, files, {"total": 20})
    assert train(Small(), Numbers(), recipe(), checkpoints=checkpoints) == 7
    assert said == ["checkpoint step-00000009 is damaged (layers.0.bias is not finite): using the one before it"]


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
    del facts["meter"], facts["skipped"], facts["finite"], facts["checksum"]
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
