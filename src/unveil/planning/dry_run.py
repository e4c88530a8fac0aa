"""A dry run: executes each part of a pre-training run briefly, to predict the time and memory of the whole run.

It calls the same functions as `pretrain`: it reads images, trains, writes a checkpoint, evaluates, and writes the report. Then it
extrapolates to the number of steps, checkpoints, evaluations and evaluated images of the whole run.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unveil.atomic_files import WriteError, free_bytes, spell_size
from unveil.data.dataset import MEMORY
from unveil.data.image_samples import sample_images
from unveil.data.loader import ImageLoader, first_batch
from unveil.data.sources import Source
from unveil.data.splits import Subset
from unveil.errors import Interrupted, UnveilError
from unveil.evaluate.features import MAX_RAW
from unveil.interop import model_files
from unveil.learner import Method
from unveil.planning.trial_evaluation import ImageCounts, TimedEvaluator, time_evaluation
from unveil.reports.page import write_page
from unveil.runs.image_evaluation import save_samples
from unveil.runs.image_pretraining import ImagePlan
from unveil.runs.session import move_to_device
from unveil.stop_signals import Stopped
from unveil.train.checkpoint import Checkpoints
from unveil.train.guards import seeded
from unveil.train.log import JsonLines, Record
from unveil.train.loop import train
from unveil.train.memory_trial import fit_batch_in_memory
from unveil.train.parallel import World, broadcast_from_main, is_replicated
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import run_monitors
from unveil.train.run_cost import peak_memory, process_bytes
from unveil.train.run_folder import open_run
from unveil.train.state import load_model_state

STEP_SHARE, EVALUATION_SHARE = 0.35, 0.1
"""Shares of the duration of a dry run for training steps, and for each kind of evaluation."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Measurements in seconds and bytes. They are for all images, even if only some of them were read."""

    reading: float
    """Time until the first step: listing and reading the images, building the model, trying the batch for memory."""
    steps: tuple[float, ...]
    """Times of the steps. The first steps are a warm-up and take longer."""
    waiting: float
    """Share of the time of these steps that was spent waiting for images."""
    accum_steps: int
    """Microbatches per step."""
    checkpoint: float
    """Time to write a checkpoint."""
    monitor: float
    """Time of an evaluation during training."""
    evaluation: float
    """Time to write the model, for the final evaluation, and for the report."""
    memory: int | None
    """Peak memory of the process, or of the final evaluation if that needs more; None if it cannot be measured."""
    train: int
    """Number of training images."""
    read: float
    """Share of the images that was read."""

    @property
    def warmup(self) -> int:
        """Number of steps of the warm-up."""
        return min(max(1, len(self.steps) // 5), len(self.steps) - 1)

    @property
    def step(self) -> float:
        """Seconds of a step after the warm-up."""
        return float(np.mean(self.steps[self.warmup :]))

    def training(self, total: int) -> float:
        """Seconds of `total` steps."""
        return sum(self.steps[: min(self.warmup, total)]) + max(0, total - self.warmup) * self.step

    def steps_within(self, seconds: float) -> int:
        """The maximum number of steps within this time: the inverse of `training`."""
        first = sum(self.steps[: self.warmup])
        return max(0, self.warmup + int((seconds - first) / self.step + 1e-6)) if seconds >= first else 0

    def checkpoint_count(self, total: int, config: TrainConfig) -> int:
        """Number of checkpoints in `total` steps. Saving takes at most 2 % of the time: see `unveil.train.signals.Agreement`."""
        return 1 + int(self.training(total) / max(config.save_seconds, 50 * self.checkpoint, self.step * config.log_every))

    def monitor_count(self, total: int, config: TrainConfig) -> int:
        """Number of evaluations during `total` steps, at most one per step."""
        return len({round(total * (i + 1) / config.num_evals) for i in range(config.num_evals)} - {0})

    def parts(self, total: int, config: TrainConfig) -> dict[str, float]:
        """Seconds of each part of a run of `total` steps."""
        return {
            "reading": self.reading,
            "training": self.training(total),
            "monitoring": self.monitor_count(total, config) * self.monitor,
            "saving": self.checkpoint_count(total, config) * self.checkpoint,
            "evaluation": self.evaluation,
        }


def dry_run(plan: ImagePlan, folder: Path, listing: float, seconds: float) -> DryRun:
    """Executes each part of a run briefly.

    Args:
        plan: The run.
        folder: The run folder. The dry run writes into a temporary folder next to it.
        listing: Seconds that were needed to list DATA and to resolve the options.
        seconds: The approximate duration of the dry run.
    """
    world, training = plan.recipe.world, plan.recipe.training
    plan, share = shorten_run(plan, seconds)
    before, start = process_bytes("VmRSS") or 0, time.monotonic()
    train_set, test_set, held_out, *_ = plan.open_subsets()
    opening, stored = time.monotonic() - start, (process_bytes("VmRSS") or 0) - before
    counts = ImageCounts.of(plan, train_set, test_set, held_out, share)
    start = time.monotonic()
    vit = plan.vit(train_set.dataset)
    with seeded(training.seed):
        learner = plan.build(vit)
    untrained = copy.deepcopy(learner.encoder)  # `pretrain` keeps one, too
    loader = plan.loader(train_set.labelled() if learner.classes else train_set, learner)
    move_to_device(loader, world)
    building = time.monotonic() - start
    trial = fit_batch_in_memory(learner, first_batch(loader), loader.batch_size, training.accum_steps, plan.recipe.hardware, world)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        telling_of_trial(folder.parent),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}-trial-", dir=folder.parent) as temporary,
    ):
        checkpoints = TimedCheckpoints(Path(temporary) / "checkpoints")
        evaluator = TimedEvaluator(plan.recipe, train_set, test_set, counts, seconds * EVALUATION_SHARE)
        log = time_steps(plan.recipe, learner, loader, checkpoints, evaluator, seconds * STEP_SHARE)
        monitor = evaluation = 0.0
        if world.is_main:
            monitor, learner = evaluator.monitor_seconds(), plan.build(vit)  # as `pretrain` does: not sharded, not compiled
            load_model_state(learner, checkpoints.load(checkpoints.steps()[0], "model"))
            learner.to(world.device).eval()
            evaluation = time_evaluation(learner, evaluator, counts, encoders=3 if plan.init else 2)
            evaluation += time_writing(plan, learner, test_set if len(test_set) else train_set, Path(temporary), log.records)
        del untrained
    steps = [record["seconds"] / log.every for record in log.records for _ in range(log.every)]
    waiting = sum(record["waiting"] * record["seconds"] for record in log.records)
    return DryRun(
        reading=listing + opening / share + building + log.before_first_step,
        steps=tuple(steps),
        waiting=waiting / sum(record["seconds"] for record in log.records),
        accum_steps=trial.accum_steps,
        checkpoint=max(checkpoints.seconds, default=0.0),
        monitor=monitor,
        evaluation=evaluation,
        memory=predict_memory(plan, vit.channels, counts, stored, share),
        train=counts.train,
        read=share,
    )


def shorten_run(plan: ImagePlan, seconds: float) -> tuple[ImagePlan, float]:
    """The run on a share of the images, if reading all of them into memory would take too long; and this share."""
    source, test, start = plan.source, plan.test_source, time.monotonic()
    sample = sample_images(source, 64, shrink_to=plan.side, max_pixels=plan.run_config.max_pixels)
    per_image, size = (time.monotonic() - start) / len(sample), sum(image.nbytes for image in sample) / len(sample)
    total = len(source) + (len(test) if test else 0)
    fits_in_memory = size * len(source) <= MEMORY  # if not, images are read during training
    if not fits_in_memory or per_image * total < seconds / 2 or plan.recipe.world.device.type != "cpu":
        return plan, 1.0
    share = seconds / 3 / (per_image * total)
    test = part_of(test, share) if test else None
    roles = plan.roles._replace(train=part_of(source, share), test=test, held_out_of=max(1, int(plan.roles.held_out_of * share)))
    return replace(plan, roles=roles), share


def part_of(source: Source, share: float) -> Source:
    """A source with a share of the images, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(source) - 1, max(2, round(share * len(source)))).astype(int))
    indices = chosen.tolist()
    return replace(
        source,
        names=[source.names[i] for i in indices],
        labels=None if source.labels is None else source.labels[chosen],
        reader=lambda index: source.reader(indices[index]),
    )


class TimeUp(Exception):  # noqa: N818 - not an error
    """Raised to end the training loop of a dry run."""


class TimedLog:
    """A sink that records the log, and ends the loop on all processes when the time is up.

    After the second record it calls `monitor`, as the loop does, since memory is at its peak then.
    """

    def __init__(self, world: World, seconds: float, every: int, monitor: Callable[[], None]) -> None:
        self.world, self.seconds, self.every, self.monitor = world, seconds, every, monitor
        self.records: list[Record] = []
        self._start = self._second = time.monotonic()
        self.before_first_step = 0.0

    def start(self, first: int) -> None: ...

    def write(self, record: Record) -> None:
        self.records.append(record)
        if len(self.records) == 1:
            self.before_first_step = time.monotonic() - self._start - record["seconds"]
        if len(self.records) == 2:
            self.monitor()
            self._second = time.monotonic()
        late = time.monotonic() - self._second > self.seconds
        if broadcast_from_main(int(len(self.records) >= 4 and late), self.world):
            raise TimeUp

    def close(self) -> None: ...


class TimedCheckpoints(Checkpoints):
    """Checkpoints that record how long each of them takes."""

    seconds: tuple[float, ...] = ()

    def save(self, step: int, files: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        start = time.monotonic()
        path = super().save(step, files, facts)
        self.seconds = (*self.seconds, time.monotonic() - start)
        return path


@contextmanager
def telling_of_trial(folder: Path) -> Iterator[None]:
    """A context that names the folder if its disk is too full for a trial run, which writes a checkpoint and a report."""
    try:
        yield
    except WriteError as error:
        if not error.is_full:
            raise
        free = spell_size(free_bytes(folder))
        raise UnveilError(
            f"the disk of {folder} is too full for a trial run ({free} are free): make room, or choose --out"
        ) from None


def time_steps(
    recipe: Recipe, learner: Method, loader: ImageLoader, checkpoints: Checkpoints, evaluator: TimedEvaluator, seconds: float
) -> TimedLog:
    """Runs the training loop until the time is up. Saves after the first step, and evaluates after the second line of the log."""
    world, hardware = recipe.world, recipe.hardware

    def monitor() -> None:
        if world.is_main and is_replicated(hardware, world):
            run_monitors(learner, [evaluator.monitor])

    every = 5 if world.device.type == "cuda" else 1  # reading the log after each step would slow a GPU down
    training = replace(recipe.training, log_every=every, save_seconds=0.0, num_evals=0, epochs=1e9)
    log = TimedLog(world, seconds, every, monitor)
    try:
        train(learner, loader, replace(recipe, training=training), checkpoints=checkpoints, sinks=[log])
    except TimeUp:
        pass
    except Interrupted as error:  # what it saved is temporary
        raise Stopped(error.number) from None
    return log


def time_writing(plan: ImagePlan, learner: Method, samples: Subset, folder: Path, records: list[Record]) -> float:
    """Seconds to write the model and the report, into a temporary run folder."""
    start = time.monotonic()
    run = open_run(folder / "run", "pretrain", plan.config, plan.facts, write=True, say=lambda text: None)
    log = JsonLines(run.path / "log.jsonl")
    log.start(0)
    for record in records:
        log.write(record)
    log.close()
    model_files.save(learner, run.path)
    save_samples(run.path / "samples.npz", samples, learner.encoder.config)
    write_page(run, learner)
    return time.monotonic() - start


def predict_memory(plan: ImagePlan, channels: int, counts: ImageCounts, stored: int, share: float) -> int | None:
    """The peak memory of the whole run in bytes; None if it cannot be measured.

    On a CPU, this includes images that were not read, and the raw pixels in float32 for the final evaluation.
    """
    device = plan.recipe.world.device
    peak, now = peak_memory(device), process_bytes("VmRSS")
    if peak is None or now is None or device.type != "cpu":
        return peak
    height, width = plan.sizes[0]
    pixels = min(MAX_RAW, channels * height * width) * (counts.labelled_train + counts.labelled_test)
    similarities = 1024 * counts.labelled_train  # of k-NN
    return int(max(peak, now + 4 * (pixels + similarities)) + stored * (1 / share - 1))
