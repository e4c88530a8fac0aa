"""A run in small: its own pictures, learner, loop, checkpoint, judging and report, each for a moment, to say what the whole takes.

What is timed is what `pretrain` calls. Only counts are multiplied: steps, checkpoints, looks, pictures to judge on.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.data.cache import MEMORY, sample_pictures
from unveil.data.feed import Feed, taste
from unveil.data.sources import Source
from unveil.interop import native
from unveil.learner import Method
from unveil.models.vit import ViTConfig
from unveil.recipes.features import LINEAR, LINEAR_EPOCHS, features_of, fit_linear, raw_pixels
from unveil.recipes.fitting import at_hand
from unveil.recipes.pretrain import Setting, held_out, save_samples
from unveil.recipes.reading import Part, stored_side
from unveil.reports.page import write_page
from unveil.tasks.knn import knn_scores
from unveil.train.bill import Clock, memory_now, peak_memory
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import JsonLines, Record
from unveil.train.loop import TrainConfig, judge, train
from unveil.train.parallel import Place, agree, whole_here
from unveil.train.run import open_run
from unveil.train.trial import give_back, try_step

STEPPING, LOOKING = 0.35, 0.15
"""Shares of the trial's seconds that go into steps, and into each thing that is looked at."""
CHUNK = 256
"""Pictures that are judged at a time."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured; times in seconds, memory in bytes, for the whole data even where only a part of it was read."""

    reading: float
    """Until the first step can begin: listing and reading the pictures, building the model, trying it for memory."""
    steps: tuple[float, ...]
    """The first steps, one by one; those of the warm-up are longer."""
    waiting: float
    """Share of that time that the pictures were waited for."""
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
    """Pictures to train on."""
    read: float
    """Share of the pictures that was really read."""
    notes: tuple[str, ...] = ()
    """What could not be measured."""

    @property
    def step(self) -> float:
        """Seconds of a step after the warm-up."""
        return float(np.mean(self.steps[self.warm :]))

    @property
    def warm(self) -> int:
        """Steps that are left out as a warm-up."""
        return min(max(1, len(self.steps) // 5), len(self.steps) - 1)

    def training(self, total: int) -> float:
        """Seconds of so many steps."""
        first = sum(self.steps[: min(self.warm, total)])
        return first + max(0, total - self.warm) * self.step

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


class Enough(Exception):  # noqa: N818 - no error: the time is up
    """Ends the loop of a trial."""


class Stopwatch:
    """Notes what each step took, and ends the loop when the time is up; many processes end it together.

    After the second step it calls `look`, where a monitor would: memory is at its fullest there.
    """

    def __init__(self, place: Place, seconds: float, look: Callable[[], None] = lambda: None, least: int = 4) -> None:
        self.place, self.seconds, self.look, self.least = place, seconds, look, least
        self.records: list[Record] = []
        self._clock = Clock()
        self.began = self._end = float("inf")

    def write(self, record: Record) -> None:
        """Takes a log line."""
        if not self.records:
            self.began = self._clock.seconds - record["seconds"]
        self.records.append(record)
        if len(self.records) == 2:
            self.look()
        if len(self.records) <= 2:
            self._end = self._clock.seconds + self.seconds
        if agree(int(self._clock.seconds > self._end), self.place) and len(self.records) >= self.least:
            raise Enough

    def close(self) -> None: ...


class TimedCheckpoints(Checkpoints):
    """Checkpoints that note how long they took."""

    seconds: tuple[float, ...] = ()

    def save(self, step: int, files: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """See `Checkpoints`."""
        clock = Clock()
        path = super().save(step, files, facts)
        self.seconds = (*self.seconds, clock.seconds)
        return path


def rehearse(setting: Setting, folder: Path, listing: float, seconds: float) -> Trial:
    """Runs each part of a run for a moment.

    Args:
        setting: The run.
        folder: Where the run would write: the trial writes into a folder beside it, and removes that.
        listing: Seconds that it took to list DATA and to settle the knobs.
        seconds: About how long the trial may take.
    """
    place = setting.place
    setting, share = shortened(setting, seconds)
    before, clock = memory_now(), Clock()
    pictures, judged, cut = setting.open_parts()
    opening, kept = clock.seconds, (memory_now() or 0) - (before or 0)
    counts = Counts.of(setting, pictures, judged, cut, share)
    clock = Clock()
    vit = setting.vit(pictures.pictures)
    torch.manual_seed(setting.training.seed)
    learner = setting.build(vit)
    untrained = copy.deepcopy(learner.encoder)                                 # `pretrain` keeps one, too
    feed = setting.feed(pictures)
    at_hand(feed, place)
    building = clock.seconds
    folder.parent.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-trial-", dir=folder.parent) as beside:
        checkpoints = TimedCheckpoints(Path(beside) / "checkpoints")
        eye = Eye(setting, pictures, judged, counts, seconds * LOOKING)
        watch = steps(setting, learner, feed, checkpoints, eye, seconds * STEPPING)
        few = taste(feed)
        parts = try_step(setting.build(vit), few, feed.batch_size, setting.training.accumulate, setting.hardware, place).parts
        look = close = 0.0
        if place.lead:
            give_back()
            learner = setting.build(vit).to(place.device).eval()               # as `pretrain` does: this one is whole
            look, close = judging(setting, learner, pictures, counts, eye)
            close += ending(setting, learner, judged if len(judged) else pictures, Path(beside), watch.records)
        if eye.cut:
            notes.append(f"judging {CHUNK} pictures at a time was too slow to rehearse: the memory of that is not in the figure")
        del untrained
        memory = most_memory(setting, vit.channels, counts, kept, share)
    if memory is None:
        notes.append(f"nobody counts the memory of {place.device.type} here, so it is not known")
    return Trial(
        reading=listing + opening / share + building + watch.began, steps=tuple(r["seconds"] for r in watch.records),
        waiting=sum(r["waiting"] * r["seconds"] for r in watch.records) / sum(r["seconds"] for r in watch.records),
        parts=parts, save=max(checkpoints.seconds, default=0.0), look=look, judging=close, memory=memory, train=counts.train,
        read=share, notes=tuple(notes),
    )  # fmt: skip


def shortened(setting: Setting, seconds: float) -> tuple[Setting, float]:
    """The run on a part of the pictures, where reading all of them into memory would take too long; and what share they are."""
    source, clock = setting.source, Clock()
    sample = sample_pictures(source, 64, shrink_to=stored_side(setting.sizes[0]), pixel_limit=setting.own.pixel_limit)
    each, size = clock.seconds / len(sample), sum(x.nbytes for x in sample) / len(sample)
    total = len(source) + (len(setting.test_source) if setting.test_source else 0)
    if size * len(source) > MEMORY or each * total < seconds / 2 or setting.place.device.type != "cpu":
        return setting, 1.0
    share = seconds / 3 / (each * total)
    test = part_of(setting.test_source, share) if setting.test_source else None
    return replace(setting, source=part_of(source, share), test_source=test), share


def part_of(source: Source, share: float) -> Source:
    """Pictures from all over a source."""
    chosen = np.unique(np.linspace(0, len(source) - 1, max(2, round(share * len(source)))).astype(int))
    numbers = chosen.tolist()
    return replace(
        source, names=[source.names[i] for i in numbers], labels=None if source.labels is None else source.labels[chosen],
        reader=lambda index: source.reader(numbers[index]),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Pictures of the whole run, by what they are for."""

    train: int
    judged: int
    bank: int
    """Labelled pictures that the features are judged on: those that are known ..."""
    queries: int
    """... and those that are asked for."""
    classes: int

    @classmethod
    def of(cls, setting: Setting, pictures: Part, judged: Part, cut: bool, share: float) -> "Counts":
        """Counted, or where only a share was read, extrapolated."""
        if share == 1:
            train, asked = len(pictures), len(judged)
        else:
            good = len(pictures.pictures) / len(setting.source)                # the share of readable ones
            train = round(good * len(setting.source) / share)
            asked = min(setting.own.held_out, int(0.1 * train)) if cut else round(len(judged) / share)
            train -= asked * cut
        known, questions = ((part.labels >= 0).double().mean().item() if len(part) else 0.0 for part in (pictures, judged))
        bank, queries = round(known * train), round(questions * asked)
        judges = bool(bank and queries)
        return cls(
            train=train, judged=asked, bank=min(bank, 20_000) * judges, queries=min(queries, 10_000) * judges,
            classes=len(pictures.pictures.classes),
        )  # fmt: skip


class Eye:
    """Looks at the encoder as the monitors would, for as long as there is time, and notes what it took."""

    def __init__(self, setting: Setting, pictures: Part, judged: Part, counts: Counts, room: float) -> None:
        self.setting, self.pictures, self.judged, self.counts, self.room = setting, pictures, judged, counts, room
        self.hold = self.encode = 0.0
        self.cut = False

    def look(self, learner: Any) -> Record:
        """Seconds of the error on pictures kept aside, and of the features of a picture."""
        vit, hardware, place = learner.encoder.config, self.setting.hardware, self.setting.place
        if len(self.judged):
            hold = partial(held_out, learner, judged=self.judged, vit=vit, hardware=hardware, place=place)
            self.hold = timed(lambda count: hold(most=count), min(CHUNK, self.counts.judged), self.room)
        if self.counts.bank:
            self.encode = self.each(learner.encoder.features, vit)
        self.cut = max(self.hold, self.encode * CHUNK) > self.room
        return {}

    def each(self, function: Callable[[Tensor], Tensor], vit: ViTConfig) -> float:
        """Seconds that a function of normalised pictures takes for one."""
        few, most = partial(Part, self.pictures.pictures), min(2500, len(self.pictures))
        hardware, place, places = self.setting.hardware, self.setting.place, self.pictures.places
        return timed(lambda n: features_of(function, few(places[:n]), vit, hardware, place), most, self.room) / most


def steps(setting: Setting, learner: Method, feed: Feed, checkpoints: Checkpoints, eye: Eye, seconds: float) -> Stopwatch:
    """The loop itself, ended when the time is up; it saves a checkpoint after the first step, and looks after the second."""
    place, hardware = setting.place, setting.hardware

    def look() -> None:
        if place.lead and whole_here(hardware, place):
            judge(learner, [eye.look])

    eager = replace(setting.training, log_every=1, save_seconds=0.0, monitor_times=0)
    watch = Stopwatch(place, seconds, look)
    with suppress(Enough):
        train(learner, feed, eager, setting.optim, hardware, place, checkpoints=checkpoints, sinks=[watch])
    typical = float(np.median([record["seconds"] for record in watch.records]))
    if place.device.type == "cuda" and agree(int(typical < 0.2), place):       # a GPU that is not read after each step runs ahead
        longer, again = replace(eager, log_every=setting.training.log_every), Stopwatch(place, seconds / 2)
        with suppress(Enough):
            train(setting.build(learner.encoder.config), feed, longer, setting.optim, hardware, place, sinks=[again])
        each = [record | {"seconds": record["seconds"] / longer.log_every} for record in again.records[1:]]
        watch.records = [watch.records[0], *each]
    return watch


def judging(setting: Setting, learner: Method, pictures: Part, counts: Counts, eye: Eye) -> tuple[float, float]:
    """Seconds of a look, and of the closing evaluation."""
    vit = learner.encoder.config
    looks = whole_here(setting.hardware, setting.place)                        # no monitor looks at a learner that is shared out
    if not (looks and eye.hold + eye.encode):
        eye.look(learner)
    if not counts.bank:
        return eye.hold * looks, eye.hold
    bank, queries = min(counts.bank, 2000), min(counts.queries, 500)
    look = eye.hold + (bank + queries) * eye.encode + neighbours(vit.width, counts, bank, queries)
    close = eye.hold + (counts.bank + counts.queries) * (2 * eye.encode + eye.each(raw_pixels, vit))
    for width in (vit.width, vit.width, vit.channels * vit.image_size[0] * vit.image_size[1]):
        close += neighbours(width, counts, counts.bank, counts.queries) + probing(width, counts)
    return look * looks, close


def timed(run: Callable[[int], object], count: int, room: float) -> float:
    """Seconds that `run(count)` takes: measured, or where that would take longer than `room`, by a part and the rule of three."""
    few = max(1, min(count, 16))
    run(few)                                                                   # a warm-up
    clock = Clock()
    run(few)
    guess = clock.seconds / few
    part = min(count, max(few, int(room / guess)))
    clock = Clock()
    run(part)
    return clock.seconds / part * count


def neighbours(width: int, counts: Counts, bank: int, queries: int) -> float:
    """Seconds of k-NN, by a smaller one."""
    rows, asked = min(bank, 2048), min(queries, 256)
    known, questions, labels = torch.randn(rows, width), torch.randn(asked, width), torch.zeros(rows, dtype=torch.int64)
    return timed(lambda n: knn_scores(questions[:n], known, labels, counts.classes), asked, 1.0) * (queries / asked) * (bank / rows)


def probing(width: int, counts: Counts) -> float:
    """Seconds of the linear probe, by its first steps."""
    size = max(32, min(1024, counts.bank // 20))
    total = round(LINEAR_EPOCHS * counts.bank / size)
    rows = 2 * size
    features, labels = torch.randn(rows, width), torch.arange(rows) % max(counts.classes, 2)

    def run(count: int) -> float:
        clock = Clock()
        fit_linear(features, labels, max(counts.classes, 2), TrainConfig(epochs=count / 2, batch_size=size), LINEAR)
        return clock.seconds

    run(2)
    few, more = run(4), run(24)
    return few + max(0.0, more - few) / 20 * (total - 4)


def ending(setting: Setting, learner: Method, samples: Part, folder: Path, records: list[Record]) -> float:
    """Seconds of writing the model and the report, into a run folder of their own."""
    clock = Clock()
    run = open_run(folder / "run", "pretrain", setting.config, setting.facts, write=True, say=lambda text: None)
    log = JsonLines(run.path / "log.jsonl", 0)
    for record in records:
        log.write(record)
    log.close()
    native.save(learner, run.path)
    save_samples(run, samples, learner.encoder.config)
    write_page(run, learner)
    return clock.seconds


def most_memory(setting: Setting, channels: int, counts: Counts, kept: int, share: float) -> int | None:
    """The most that the process held, or will hold when it judges raw pixels: every one of them twice, in float32."""
    device = setting.place.device
    seen, now = peak_memory(device), memory_now()
    if seen is None or now is None or device.type != "cpu":
        return seen
    (height, width), unread = setting.sizes[0], kept * (1 / share - 1)
    pixels = 2 * 4 * channels * height * width * (counts.bank + counts.queries)
    return int(max(seen, now + pixels) + unread)


