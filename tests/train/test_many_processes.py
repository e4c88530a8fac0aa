"""What happens on one of two processes happens on both: a loss that is not finite, a signal, a failure to read."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.processes import FORKS
from tests.train.test_loop import Fragile, Numbers, recipe
from unveil.data.batch import Batch
from unveil.errors import Interrupted, UnveilError
from unveil.learner import Step
from unveil.train.checkpoint import Checkpoints
from unveil.train.loop import train
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe

CPU = torch.device("cpu")


class Share(Numbers):
    """The numbers of one process. In step 7, something happens to it if its rank is 1."""

    def __init__(self, rank: int, event: str) -> None:
        super().__init__(broken=range(7, 9) if event == "not finite" and rank else ())
        self.rank, self.event = rank, event

    def share(self, step: int, share: int, shares: int) -> Batch:
        if (self.rank, step) == (1, 7) and self.event == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if (self.rank, step) == (1, 7) and self.event == "lost":
            raise UnveilError("too many images are lost")
        batch = super().share(step, share, shares)
        if self.rank and step in self.broken:
            batch.images[0] /= 0
        return batch


def work(rank: int, folder: Path, way: str, event: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    options = recipe(accum_steps=1, log_every=1, num_evals=2, max_skipped_steps=3)
    precision = "float16" if event == "overflow" else "float32"
    two = Recipe(options.training, options.optim, HardwareConfig(precision=precision, parallel=way), World(CPU, rank, 2))
    learner, said = (Steep if event == "overflow" else Fragile)(), ""
    try:
        train(learner, Share(rank, event), two, checkpoints=Checkpoints(folder / "checkpoints"))
    except (Interrupted, UnveilError) as error:
        said = str(error)
    layers = {name: value for name, value in learner.state_dict().items() if way == "ddp" and name.startswith("layers")}
    finite = all(bool(value.isfinite().all()) for value in layers.values())
    answers.put((rank, said, learner.steps, finite, {name: value.tolist() for name, value in layers.items()}))
    dist.destroy_process_group()


def run(folder: Path, way: str, event: str) -> list[Any]:
    """The answers of both processes, in the order of their ranks."""
    answers = FORKS.Queue()
    processes = [FORKS.Process(target=work, args=(rank, folder, way, event, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted((answers.get(timeout=120) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_step_that_is_not_finite_on_one_process_is_applied_on_none(tmp_path: Path, way: str) -> None:
    for _, said, steps, finite, _ in run(tmp_path, way, "not finite"):
        assert said == ""
        assert steps == [*range(1, 8), *range(10, 21)]
        assert finite
    saved = Checkpoints(tmp_path / "checkpoints")
    assert saved.manifest(20)["skipped"]["count"] == 2
    assert all(value.isfinite().all() for name in ("model", "optimizer") for value in saved.load(20, name).values())


class Steep(Fragile):
    """Gradients overflow in float16 at the first scales."""

    def forward(self, batch: Batch) -> Step:
        return Step(super().forward(batch).loss * 500, {})


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_an_overflow_halves_the_scale_of_both(tmp_path: Path, way: str) -> None:
    """And counts as no skipped step, of which three would have ended the run."""
    (_, main, steps, _, layers), (_, other, others, _, same) = run(tmp_path, way, "overflow")
    assert main == other == ""
    assert steps == others
    assert 8 <= len(steps) < 18
    assert layers == same
    manifest = Checkpoints(tmp_path / "checkpoints").manifest(20)
    assert manifest["skipped"]["count"] == 0
    assert manifest["loss_scale"]["scale"] == 2.0 ** (16 - (20 - len(steps)))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path) -> None:
    (_, main, steps, _, layers), (_, other, others, _, same) = run(tmp_path, "ddp", "signal")
    assert main == other == "stopped after step 8 of 20, and saved a checkpoint: run the same command to resume"
    assert steps == others == [*range(1, 9)]
    assert layers == same
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8]


@pytest.mark.slow
def test_images_that_one_process_cannot_read_stop_both_with_a_checkpoint(tmp_path: Path) -> None:
    (_, main, steps, _, _), (_, other, _, _, _) = run(tmp_path, "ddp", "lost")
    assert main == "another process cannot read its samples. Step 7 is saved: the same command resumes from there."
    assert other == "too many images are lost. Step 7 is saved: the same command resumes from there."
    assert steps == [*range(1, 8)]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [7]
