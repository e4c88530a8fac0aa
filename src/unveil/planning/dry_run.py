"""A run in small: its own images, learner, loop, checkpoint, judging and report, each for a moment, to say what the whole takes.

What is timed is what `pretrain` calls. Only counts are multiplied: steps, checkpoints, looks, images to judge on.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unveil.data.dataset import MEMORY, sample_images
from unveil.data.loader import ImageLoader, first_batch
from unveil.data.sources import Source
from unveil.evaluate.features import LINEAR, LINEAR_EPOCHS, at_once, features_of, fit_linear, raw_pixels
from unveil.evaluate.knn import knn_scores
from unveil.interop import model_files as native
from unveil.learner import Method
from unveil.recipes.pretrain import held_out, save_samples
from unveil.reports.page import write_page
from unveil.runs.open_data import Subset, stored_side
from unveil.runs.pretrain_setup import PretrainPlan
from unveil.runs.train_in_run import at_hand
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import JsonLines, Record
from unveil.train.loop import TrainConfig, judge, train
from unveil.train.memory_trial import fit_batch_in_memory
from unveil.train.parallel import World, broadcast_from_main, is_replicated
from unveil.train.run_cost import peak_memory, process_bytes
from unveil.train.run_folder import open_run
from unveil.train.state import load_model_state

STEPPING, LOOKING = 0.35, 0.1
"""Shares of the trial's seconds that go into steps, and into each thing that is looked at."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was measured; times in seconds, memory in bytes, for the whole data even where only a part of it was read."""

    reading: float
    """Until the first step can begin: listing and reading the images, building the model, trying it for memory."""
    steps: tuple[float, ...]
    """The first steps, one by one; those of the warm-up are longer."""
    waiting: float
    """Share of that time that the images were waited for."""
    parts: int
    """Parts in which a step is computed."""
    save: float
    """A checkpoint."""
    look: float
    """What the monitors take each time."""
    judging: float
    """The model's files, the closing evaluation and the report."""
    memory: int | None
    """The most that the process held, or would hold when it judges; None where nobody counts."""
    train: int
    """Images to train on."""
    read: float
    """Share of the images that was really read."""

    @property
    def warm(self) -> int:
        """Steps that are left out as a warm-up."""
        return min(max(1, len(self.steps) // 5), len(self.steps) - 1)

    @property
    def step(self) -> float:
        """Seconds of a step after the warm-up."""
        return float(np.mean(self.steps[self.warm :]))

    def training(self, total: int) -> float:
        """Seconds of so many steps."""
        return sum(self.steps[: min(self.warm, total)]) + max(0, total - self.warm) * self.step

    def steps_within(self, seconds: float) -> int:
        """The most steps that take no longer: `training`, backwards."""
        first = sum(self.steps[: self.warm])
        return max(0, self.warm + int((seconds - first) / self.step + 1e-6)) if seconds >= first else 0

    def saves(self, total: int, config: TrainConfig) -> int:
        """Checkpoints of so many steps: see `unveil.train.watch.Pace`."""
        return 1 + int(self.training(total) / max(config.save_seconds, 50 * self.save, self.step * config.log_every))

    def looks(self, total: int, config: TrainConfig) -> int:
        """How often the monitors look: not twice at a step."""
        return len({round(total * (i + 1) / config.monitor_times) for i in range(config.monitor_times)} - {0})

    def bill(self, total: int, config: TrainConfig) -> dict[str, float]:
        """Seconds of each part of a whole run."""
        return {
            "reading": self.reading,
            "training": self.training(total),
            "looking": self.looks(total, config) * self.look,
            "saving": self.saves(total, config) * self.save,
            "judging": self.judging,
        }


def rehearse(setting: PretrainPlan, folder: Path, listing: float, seconds: float) -> DryRun:
    """Runs each part of a run for a moment.

    Args:
        setting: The run.
        folder: Where the run would write: the trial writes into a folder beside it, and removes that.
        listing: Seconds that it took to list DATA and to settle the knobs.
        seconds: About how long the trial may take.
    """
    world = setting.world
    setting, share = shortened(setting, seconds)
    held, start = process_bytes("VmRSS") or 0, time.monotonic()
    dataset, judged, cut = setting.open_parts()
    opening, kept = time.monotonic() - start, (process_bytes("VmRSS") or 0) - held
    counts = Counts.of(setting, dataset, judged, cut, share)
    start = time.monotonic()
    vit = setting.vit(dataset.dataset)
    torch.manual_seed(setting.training.seed)
    learner = setting.build(vit)
    untrained = copy.deepcopy(learner.encoder)  # `pretrain` keeps one, too
    loader = setting.loader(dataset.labelled() if learner.classes else dataset)
    at_hand(loader, world)
    building = time.monotonic() - start
    parts = fit_batch_in_memory(
        learner, first_batch(loader), loader.batch_size, setting.training.accumulate, setting.hardware, world
    ).parts
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-trial-", dir=folder.parent) as beside:
        checkpoints = TimedCheckpoints(Path(beside) / "checkpoints")
        eye = TimedEvaluator(setting, dataset, judged, counts, seconds * LOOKING)
        watch = stepped(setting, learner, loader, checkpoints, eye, seconds * STEPPING)
        look = close = 0.0
        if world.is_main:
            look, learner = eye.seconds(), setting.build(vit)  # as `pretrain` does: this one is whole
            load_model_state(learner, checkpoints.load(checkpoints.steps()[0], "model"))
            learner.to(world.device).eval()
            close = closing(learner, eye, counts)
            close += ending(setting, learner, judged if len(judged) else dataset, Path(beside), watch.records)
        del untrained
    taken = [record["seconds"] / watch.every for record in watch.records for _ in range(watch.every)]
    return DryRun(
        reading=listing + opening / share + building + watch.began,
        steps=tuple(taken),
        waiting=sum(r["waiting"] * r["seconds"] for r in watch.records) / sum(r["seconds"] for r in watch.records),
        parts=parts,
        save=max(checkpoints.seconds, default=0.0),
        look=look,
        judging=close,
        memory=most_memory(setting, vit.channels, counts, kept, share),
        train=counts.train,
        read=share,
    )


def shortened(setting: PretrainPlan, seconds: float) -> tuple[PretrainPlan, float]:
    """The run on a part of the images, where reading all of them into memory would take too long; and what share they are."""
    source, test, start = setting.source, setting.test_source, time.monotonic()
    sample = sample_images(source, 64, shrink_to=stored_side(setting.sizes[0]), pixel_limit=setting.own.pixel_limit)
    each, size = (time.monotonic() - start) / len(sample), sum(x.nbytes for x in sample) / len(sample)
    total = len(source) + (len(test) if test else 0)
    if size * len(source) > MEMORY or each * total < seconds / 2 or setting.world.device.type != "cpu":
        return setting, 1.0
    share = seconds / 3 / (each * total)
    return replace(setting, source=part_of(source, share), test_source=part_of(test, share) if test else None), share


def part_of(source: Source, share: float) -> Source:
    """Images from all over a source."""
    chosen = np.unique(np.linspace(0, len(source) - 1, max(2, round(share * len(source)))).astype(int))
    numbers = chosen.tolist()
    return replace(
        source,
        names=[source.names[i] for i in numbers],
        labels=None if source.labels is None else source.labels[chosen],
        reader=lambda index: source.reader(numbers[index]),
    )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images of the whole run, by what they are for."""

    train: int
    judged: int
    bank: int
    """Labelled images that the features are judged on: those that are known ..."""
    queries: int
    """... and those that are asked for."""
    classes: int

    @classmethod
    def of(cls, setting: PretrainPlan, dataset: Subset, judged: Subset, cut: bool, share: float) -> "Counts":
        """Counted, or where only a share was read, extrapolated."""
        train, asked = round(len(dataset) / share), round(len(judged) / share)
        if cut:  # out of the same images, up to a limit
            train, asked = train + asked, min(setting.own.held_out, int(0.1 * (train + asked)))
            train -= asked
        known, questions = ((part.labels >= 0).double().mean().item() if len(part) else 0.0 for part in (dataset, judged))
        bank, queries = min(round(known * train), 20_000), min(round(questions * asked), 10_000)
        judges = bool(bank and queries)
        classes = max(len(dataset.dataset.classes), 2)
        return cls(train=train, judged=asked, bank=bank * judges, queries=queries * judges, classes=classes)


class TimeUp(Exception):  # noqa: N818 - no error: the time is up
    """Ends the loop of a trial."""


class TimedLog:
    """Takes a log line for every so many steps, and ends the loop when the time is up; many processes end it together.

    After the second one it calls `look`, where a monitor would: memory is at its fullest there.
    """

    def __init__(self, world: World, seconds: float, every: int, look: Callable[[], None]) -> None:
        self.world, self.seconds, self.every, self.look = world, seconds, every, look
        self.records: list[Record] = []
        self._start = self._second = time.monotonic()
        self.began = 0.0

    def write(self, record: Record) -> None:
        """Takes a log line."""
        self.records.append(record)
        if len(self.records) == 1:
            self.began = time.monotonic() - self._start - record["seconds"]
        if len(self.records) == 2:
            self.look()
            self._second = time.monotonic()
        late = time.monotonic() - self._second > self.seconds
        if broadcast_from_main(int(len(self.records) >= 4 and late), self.world):
            raise TimeUp

    def close(self) -> None: ...


class TimedCheckpoints(Checkpoints):
    """Checkpoints that note how long they took."""

    seconds: tuple[float, ...] = ()

    def save(self, step: int, files: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """See `Checkpoints`."""
        start = time.monotonic()
        path = super().save(step, files, facts)
        self.seconds = (*self.seconds, time.monotonic() - start)
        return path


class TimedEvaluator:
    """Looks at the encoder as the monitors do, on as many images as there is time for, and notes what one takes.

    A full batch of them in any case: the memory that it takes may be the most of all.
    """

    def __init__(self, setting: PretrainPlan, dataset: Subset, judged: Subset, counts: Counts, room: float) -> None:
        self.setting, self.dataset, self.judged, self.counts, self.room = setting, dataset, judged, counts, room
        self.kept_aside = self.encoding = 0.0
        """Seconds of the error on images kept aside, and of the features of an image."""

    def look(self, learner: Any) -> Record:
        """A monitor."""
        vit, hardware, world = learner.encoder.config, self.setting.hardware, self.setting.world
        if len(self.judged):
            hold = partial(held_out, learner, judged=self.judged, vit=vit, hardware=hardware, world=world)
            most = min(256, self.counts.judged)
            self.kept_aside = most * timed(lambda count: hold(most=count), most, self.room, at_once(world))
        self.encoding = self.each(learner, learner.encoder.features)
        return {}

    def each(self, learner: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Seconds that a function of normalised images takes for one."""
        vit, hardware, world = learner.encoder.config, self.setting.hardware, self.setting.world
        few = partial(Subset, self.dataset.dataset)
        return timed(
            lambda count: features_of(function, few(self.dataset.places[:count]), vit, hardware, world),
            min(2500, len(self.dataset)),
            self.room,
            at_once(world),
        )

    def seconds(self) -> float:
        """Of a whole look; 0 where it could not look, for the learner is shared out over processes."""
        looked = min(self.counts.bank, 2000) + min(self.counts.queries, 500) if self.counts.bank else min(self.counts.train, 500)
        return self.kept_aside + looked * self.encoding


def stepped(
    setting: PretrainPlan, learner: Method, loader: ImageLoader, checkpoints: Checkpoints, eye: TimedEvaluator, seconds: float
) -> TimedLog:
    """The loop itself, ended when the time is up; it saves after the first line of the log, and looks after the second."""
    world, hardware = setting.world, setting.hardware

    def look() -> None:
        if world.is_main and is_replicated(hardware, world):
            judge(learner, [eye.look])

    every = 5 if world.device.type == "cuda" else 1  # a GPU that is read after each step cannot run ahead
    eager = replace(setting.training, log_every=every, save_seconds=0.0, monitor_times=0, epochs=1e9)
    watch = TimedLog(world, seconds, every, look)
    with suppress(TimeUp):
        train(learner, loader, eager, setting.optim, hardware, world, checkpoints=checkpoints, sinks=[watch])
    return watch


def timed(run: Callable[[int], object], most: int, room: float, least: int = 16) -> float:
    """Seconds an image that `run(count)` takes, with as many as `room` seconds allow, between `least` and `most`."""
    few = min(most, 16)
    run(few)  # a warm-up
    start = time.monotonic()
    run(few)
    each = (time.monotonic() - start) / few
    count = min(most, max(least, int(room / each)))
    start = time.monotonic()
    run(count)
    return (time.monotonic() - start) / count


def closing(learner: Method, eye: TimedEvaluator, counts: Counts) -> float:
    """Seconds of the closing evaluation: the encoder, the same untrained, and raw pixels."""
    vit = learner.encoder.config
    with torch.no_grad():
        eye.look(learner)
    if not counts.bank:
        return eye.kept_aside + 2 * min(counts.train, 2000) * eye.encoding
    reading = (counts.bank + counts.queries) * (2 * eye.encoding + eye.each(learner, raw_pixels))
    pixels = vit.channels * vit.image_size[0] * vit.image_size[1]
    return eye.kept_aside + reading + 2 * comparing(vit.width, counts) + comparing(pixels, counts)


def comparing(width: int, counts: Counts) -> float:
    """Seconds of k-NN and of the linear probe on features of this width: by the first queries, and by the probe's first steps.

    The bank has its own size, up to a quarter of a GiB: one that fits the caches would be read faster.
    """
    size = max(32, min(1024, counts.bank // 20))
    rows = max(2 * size, min(counts.bank, 2**26 // width))
    features, labels = torch.rand(rows, width), torch.arange(rows) % counts.classes
    asked = features[: min(counts.queries, 1024)]  # so many at a time, as `knn_scores` takes them
    start = time.monotonic()
    knn_scores(asked, features, labels, counts.classes)
    each = (time.monotonic() - start) / len(asked)

    def fit(count: int) -> float:
        start = time.monotonic()
        config = TrainConfig(epochs=count * size / rows, batch_size=size)
        fit_linear(features, labels, counts.classes, config, LINEAR)
        return time.monotonic() - start

    fit(2)
    few, more = fit(4), fit(44)
    linear = few + max(0.0, more - few) / 40 * (LINEAR_EPOCHS * counts.bank / size - 4)
    return each * counts.queries * (counts.bank / rows) + linear


def ending(setting: PretrainPlan, learner: Method, samples: Subset, folder: Path, records: list[Record]) -> float:
    """Seconds of writing the model and the report, into a run folder of their own."""
    start = time.monotonic()
    run = open_run(folder / "run", "pretrain", setting.config, setting.facts, write=True, say=lambda text: None)
    log = JsonLines(run.path / "log.jsonl", 0)
    for record in records:
        log.write(record)
    log.close()
    native.save(learner, run.path)
    save_samples(run, samples, learner.encoder.config)
    write_page(run, learner)
    return time.monotonic() - start


def most_memory(setting: PretrainPlan, channels: int, counts: Counts, kept: int, share: float) -> int | None:
    """The most that the process held, or will hold: images that were not read, and raw pixels in float32 when it judges them."""
    device = setting.world.device
    seen, now = peak_memory(device), process_bytes("VmRSS")
    if seen is None or now is None or device.type != "cpu":
        return seen
    height, width = setting.sizes[0]
    judging = 4 * (channels * height * width * (counts.bank + counts.queries) + 1024 * counts.bank)  # pixels, and cosines
    return int(max(seen, now + judging) + kept * (1 / share - 1))
