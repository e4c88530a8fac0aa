"""What a run writes down: JSON lines for programs, a bar or plain lines for people, TensorBoard and W&B where asked."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from unveil.errors import UnveilError
from unveil.train.checkpoint import write_whole
from unveil.train.parallel import World, mean_over_processes

Record = dict[str, Any]
T = TypeVar("T")


class Sink(Protocol):
    """Takes records, one at a time."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line. A resumed run continues the file: lines after its step are dropped, for they come again."""

    def __init__(self, path: Path, first_step: int) -> None:
        kept = [line for line in read_lines(path) if line.get("step", 0) <= first_step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[Record]:
    """The records of a log; a last line that was cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class TensorBoard:
    """Scalars in TensorBoard's files."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UnveilError("TensorBoard is not installed: pip install 'unveil[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars to Weights & Biases, under the name of the run folder; a resumed run continues its page."""

    def __init__(self, folder: Path, config: Record) -> None:
        try:
            import wandb
        except ImportError:
            raise UnveilError("Weights & Biases is not installed: pip install 'unveil[wandb]'") from None
        self._run = wandb.init(project="unveil", name=folder.name, id=folder.name, dir=folder, config=config, resume="allow")

    def write(self, record: Record) -> None:
        self._run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        self._run.finish()


def tracker(kind: Literal["none", "tensorboard", "wandb"], folder: Path, config: Record) -> list[Sink]:
    """The sink of a kind, if any."""
    if kind == "tensorboard":
        return [TensorBoard(folder / "tensorboard")]
    return [WeightsAndBiases(folder, config)] if kind == "wandb" else []


class Meter:
    """Sums of scalars between two log lines, kept on the device: reading them is the only time that the host waits."""

    def __init__(self, world: World, effort: float = 0.0) -> None:
        self.world, self.effort = world, effort  # seconds that a sample would take at the matrix peak
        self.restart()

    def restart(self) -> None:
        """Forgets the sums, and starts the clock again."""
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._samples, self._start, self._waited = 0, time.monotonic(), 0.0

    def waits(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, noting how long each was waited for."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds a value to each sum."""
        for key, value in values.items():
            total, count = self._sums.get(key, (torch.zeros((), device=self.world.device), 0))
            self._sums[key] = (total + value.detach().float(), count + 1)

    def step(self, values: dict[str, Tensor], samples: int) -> None:
        """Counts a step."""
        self.add(values)
        self._samples += samples

    def read(self) -> Record:
        """The means, over time and over processes, and the speed; every process must call it."""
        means = torch.stack([total / count for total, count in self._sums.values()])
        values = mean_over_processes(means, self.world.size).tolist()
        seconds = time.monotonic() - self._start
        speed = self._samples / seconds
        return dict(zip(self._sums, values, strict=True)) | {
            "samples_per_second": speed,
            "peak_share": speed / self.world.size * self.effort,
            "waiting": self._waited / seconds,
            "seconds": seconds,
        }


class Screen:
    """A progress bar in a terminal; elsewhere a plain line every few seconds.

    Args:
        title: What is going on.
        total: Steps of the whole run.
        first: Steps done before.
        seconds: Between two plain lines.
        reads: Whether images are read from files meanwhile, so that waiting for them is worth a word.
    """

    def __init__(self, title: str, total: int, first: int = 0, seconds: float = 5.0, *, reads: bool = False) -> None:
        self.reads = reads
        self.title, self.total, self.first, self.seconds = title, total, first, seconds
        self._last = self._start = time.monotonic()
        self._waited = 0.0
        self._bar: Progress | None = None
        self.console = Console(stderr=True)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TextColumn("{task.fields[news]}"),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(title, total=total, completed=first, news="")
            self._bar.start()

    def advance(self, done: int) -> None:
        """Shows that `done` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def show(self, done: int, record: Record) -> None:
        """Shows the newest log line."""
        self._waited += record["waiting"] * record["seconds"]
        news = f"loss {record['loss']:.4f}  {record['samples_per_second']:,.0f}/s"
        news += "".join(f"  {key} {value:.3f}" for key, value in record.items() if key in SHOWN)
        if self._bar is not None:
            self._bar.update(self._task, news=news)
        elif time.monotonic() - self._last > self.seconds or done == self.total:
            self._last = time.monotonic()
            left = (self._last - self._start) / max(done - self.first, 1) * (self.total - done)
            news += f"  {record['peak_share']:.0%} of peak  {left:,.0f} s left"
            print(f"{self.title}  {done}/{self.total}  {news}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar as it is, and says what to do where images came too slowly."""
        waited = self._waited / max(time.monotonic() - self._start, 1e-9)
        if self.reads and waited > WAITING:
            self.say(f"{waited:.0%} of the time went by waiting for images: `unveil pack DATA OUT` shrinks and stores them once")
        if self._bar is not None:
            self._bar.stop()


SHOWN = ("knn", "accuracy", "bleu")
WAITING = 0.05
