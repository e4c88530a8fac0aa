"""Computes a table over many samples: in constant memory, on one or several processes, and resumed where it stopped."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from unveil.errors import UnveilError
from unveil.evaluate.features import NothingReadableError
from unveil.folder_lock import locked
from unveil.learner import Learner
from unveil.models.weights import digest
from unveil.plain_text import count_of, printable
from unveil.predictions import Columns
from unveil.runs.parts_on_disk import PartsOnDisk, unfinished
from unveil.runs.sample_stream import SampleStream, Span
from unveil.train.parallel import HardwareConfig, World, first_over_processes, shutdown
from unveil.train.terminal import console, has_bars, new_bar

PART_ROWS, PART_BYTES = 1024, 2**26
"""Largest number of rows, and of bytes, of a part, unless a single batch has more."""
SAY_SECONDS = 60.0
"""Without a terminal, progress is said as often as this."""
SHOWN = 10
"""Number of files that could not be read to name in the terminal; all are in the list beside the table."""


class OnDisk(Protocol):
    """Where an unfinished result is."""

    @property
    def folder(self) -> Path: ...
    def open(self) -> object: ...
    def clear_if_empty(self) -> None: ...


class Part(NamedTuple):
    """A part of the table."""

    number: int
    span: Span


class Outcome(NamedTuple):
    """What a finished table holds."""

    rows: Mapping[str, int]
    """The number of rows of each split."""
    skipped: Mapping[str, str]
    """What could not be read, by name, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to compute for many samples.

    Attributes:
        stream: The samples.
        batch_size: Samples in a batch.
        hardware: Precision.
        world: The device and the processes.
        say: Prints a message for the user.
        doing: The title of the progress bar, such as "predicting".
    """

    stream: SampleStream
    batch_size: int
    hardware: HardwareConfig
    world: World
    say: Callable[[str], None]
    doing: str

    def facts(self, verb: str, learner: Learner, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the bytes of the result follow from; parts of other facts are not joined."""
        config = {"encoder": repr(learner.encoder.config), "classes": json.dumps(list(getattr(learner, "classes", ())))}
        return {
            "verb": verb,
            "model": digest(learner.state_dict(), config),
            "data": list(self.stream.fingerprints),
            "counts": dict(self.stream.counts),
            "options": {
                **options,
                "batch_size": self.batch_size,
                "device": self.world.device.type,
                "precision": self.hardware.precision,
            },
        }

    @contextmanager
    def alone_in(self, disk: OnDisk) -> Iterator[None]:
        """A context in which no other command writes into the folder of the parts. Its end removes a folder without parts."""
        folder = disk.folder
        try:
            with locked(folder, f"{self.doing} into"):
                try:
                    yield
                finally:
                    disk.clear_if_empty()
        finally:
            with suppress(OSError):
                folder.rmdir()

    def open(self, disk: OnDisk) -> None:
        """The main process opens the parts; if it refuses to, so do all."""
        sentence = None
        if self.world.is_main:
            try:
                disk.open()
            except UnveilError as error:
                sentence = str(error)
        if sentence := first_over_processes(sentence, self.world):
            raise UnveilError(sentence)

    def refuse_nothing(self, rows: int, skipped: Mapping[str, str]) -> None:
        """Raises `NothingReadableError` if there is no row."""
        if not rows:
            reason = ": ".join(next(iter(skipped.items()), ("", "there are none")))
            raise NothingReadableError(f"none of {count_of(self.stream.total, self.stream.noun)} can be read; the first: {reason}")

    def wait_for_all(self) -> None:
        """Returns in the main process when every process has computed its parts. No limit of time: shares may differ by hours."""
        world = self.world
        if world.size == 1:
            return
        if world.store is None:  # the caller's process group
            dist.barrier()
            return
        world.store.set(f"parts-{world.rank}", "done")
        if world.is_main:
            for rank in range(1, world.size):
                while not world.store.check([f"parts-{rank}"]):
                    time.sleep(0.05)

    @contextmanager
    def progress(self, done: int) -> Iterator[Callable[[int], None]]:
        """A progress bar or, without a terminal, a line from time to time; called with the number of further samples."""
        target, total = console(stderr=True), self.stream.total
        if not (has_bars(target) and self.world.is_main):
            clock = Clock(done, total, self.stream.noun, self.say)
            yield clock.advance
            return
        with new_bar(target, MofNCompleteColumn(), TimeRemainingColumn(), width=24, transient=True) as bar:
            task = bar.add_task(self.doing, total=total, completed=done)
            yield lambda count: bar.advance(task, count)

    def say_skipped(self, skipped: Mapping[str, str], listed: Path | None, lack: str = "row") -> None:
        """Names the first samples that could not be read, and says in which file all of them are listed, and what they lack."""
        for name, reason in sorted(skipped.items())[:SHOWN]:
            self.say(f"skipped {printable(name)}\t{printable(reason)}")
        if skipped:
            verb, where = "has" if len(skipped) == 1 else "have", f": see {listed}" if listed is not None else ""
            self.say(f"{count_of(len(skipped), 'file')} could not be read and {verb} no {lack}{where}")


@dataclass(frozen=True, kw_only=True)
class TableJob(Job):
    """A table to compute.

    Attributes:
        function: The columns of a batch on the device, given the split, without those of the stream.
        row_bytes: About how many bytes a row has.
    """

    function: Callable[[str, Any], Columns]
    row_bytes: int

    @property
    def part_rows(self) -> int:
        """Samples in a part: whole batches. It depends neither on the processes nor on the machine."""
        most = max(1, min(PART_ROWS, PART_BYTES // max(self.row_bytes, 1)))
        return self.batch_size * max(1, most // self.batch_size)

    def parts(self) -> list[Part]:
        """All parts, in the order of the table."""
        spans = [
            Span(split, start, min(start + self.part_rows, count))
            for split, count in self.stream.counts.items()
            for start in range(0, count, self.part_rows)
        ]
        return [Part(number, span) for number, span in enumerate(spans)]

    @torch.inference_mode()
    def computed(self, parts: Iterable[Part]) -> Iterator[tuple[Part, Columns, list[tuple[str, str]]]]:
        """The columns of each part, empty if nothing of it can be read, and what could not be read. Reading goes on in between."""

        def batches() -> Iterator[tuple[Part, Span]]:
            for part in parts:
                split, start, stop = part.span
                for first in range(start, stop, self.batch_size):
                    yield part, Span(split, first, min(first + self.batch_size, stop))

        tables, (first, second) = list[Columns](), tee(batches())
        found = self.stream.batches((span for _, span in first), self.hardware, self.world)
        for (part, span), batch in zip(second, found, strict=True):
            if batch is not None:
                columns = self.function(span.split, batch)
                tables.append(self.stream.columns(span.split, batch.keys.cpu()) | columns)
            if span.stop == part.span.stop:
                yield part, stacked(tables), self.stream.unreadable(part.span)
                tables.clear()

    def facts(self, verb: str, learner: Learner, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().facts(verb, learner, options), "part_rows": self.part_rows}

    def in_memory(self) -> tuple[Columns, dict[str, str]]:
        """The whole table, and what could not be read.

        Raises:
            NothingReadableError: If none of the samples can be read.
        """
        tables, skipped = list[Columns](), dict(self.stream.listed)
        with self.progress(0) as advance:
            for part, columns, faults in self.computed(self.parts()):
                tables += [columns] if columns else []
                skipped |= dict(faults)
                advance(part.span.stop - part.span.start)
        self.refuse_nothing(len(tables), skipped)
        return stacked(tables), skipped

    def to_file(self, out: Path, facts: Mapping[str, Any]) -> Outcome:
        """Writes the table, or what an earlier call has left to do. Every process must call it.

        Raises:
            UnveilError: On parts of another table, or if nothing can be read.
        """
        disk, world = PartsOnDisk(out, facts), self.world
        with self.alone_in(disk) if world.is_main else nullcontext():
            self.open(disk)
            parts = self.parts()
            mine = parts[world.rank :: world.size]
            todo = [part for part in mine if not disk.is_done(part.number)]
            rows_of = {part.number: part.span.stop - part.span.start for part in mine}
            done = sum(rows_of.values()) - sum(rows_of[part.number] for part in todo)
            if done:
                self.say(f"going on with {unfinished(out)}: {done * world.size:,} of {self.stream.total:,} are done")
            with self.progress(done * world.size) as advance:
                for part, columns, faults in self.computed(todo):
                    disk.write(part.number, columns, faults)
                    advance(rows_of[part.number] * world.size)
            self.wait_for_all()
            outcome = Outcome({}, {})
            if world.is_main:
                outcome = self.joined(disk, parts)
            shutdown(world)
        return outcome

    def joined(self, disk: PartsOnDisk, parts: Sequence[Part]) -> Outcome:
        """The final file, from all parts."""
        disk.refuse_missing(len(parts))
        rows, skipped = dict.fromkeys(self.stream.counts, 0), dict(self.stream.listed)
        for part in parts:
            facts = disk.facts_of(part.number)
            rows[part.span.split] += facts["rows"]
            skipped |= dict(facts["skipped"])
        self.refuse_nothing(sum(rows.values()), skipped)
        disk.join(len(parts), sum(rows.values()), skipped)
        return Outcome(rows, skipped)


class Clock:
    """Says how far a long computation is, if nobody looks at a bar."""

    def __init__(self, done: int, total: int, noun: str, say: Callable[[str], None]) -> None:
        self.first, self.done, self.total, self.noun, self.say = done, done, total, noun, say
        self.start = self.said = time.monotonic()

    def advance(self, count: int) -> None:
        """Adds samples."""
        self.done = min(self.done + count, self.total)
        now = time.monotonic()
        if now - self.said >= SAY_SECONDS:
            self.said = now
            speed = (self.done - self.first) / (now - self.start)
            self.say(f"{self.done:,} of {count_of(self.total, self.noun)}, {speed:,.0f} per second")


def stacked(tables: Sequence[Columns]) -> Columns:
    """Tables with the same columns, one below the other; nothing if there are none."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]} if tables else {}
