"""The log of a run: JSON lines, a progress bar or plain lines, and optionally TensorBoard and W&B."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, TypeVar

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from unveil.atomic_files import set_aside, telling, write_text
from unveil.errors import UnveilError
from unveil.json_files import CHECKSUM, is_unchanged, json_line, read_regular
from unveil.plain_text import count_of, printable
from unveil.train.host_copy import HostCopy
from unveil.train.notebook import NotebookBar
from unveil.train.parallel import World, gather, mean_over_processes
from unveil.train.run_schema import fits
from unveil.train.terminal import console, has_bars, new_bar, print_to_stderr, say

LARGEST_LOG = 2**31
"""Maximum number of bytes of a log file."""
Record = dict[str, Any]
T = TypeVar("T")


class Sink(Protocol):
    """Receives the records of a run, one at a time."""

    def start(self, first: int) -> None:
        """Called before the first step; `first` is the number of steps that are already done."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A file with one JSON object per line. A resumed run removes the lines of steps that it repeats, then appends to the file."""

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._say = path, say
        self._file: TextIO | None = None

    def start(self, first: int) -> None:
        try:
            lines, damaged = read_log(self._path)
            fault = f"{self._path} has {count_of(damaged, 'damaged line')}" if damaged else ""
        except UnveilError as error:
            lines, fault = [], str(error)
        if fault:
            self._say(f"{fault}: the file is set aside as {set_aside(self._path).name}, and the run goes on")
        kept = [line for line in lines if line["step"] <= first]
        write_text(self._path, "".join(json_line(line) for line in kept))

    def write(self, record: Record) -> None:
        with telling(self._path):
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json_line(record))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # on a full disk, which `write` has told
                self._file.close()


def read_log(path: Path) -> tuple[list[Record], int]:
    """The records of a log file, and the number of its damaged lines.

    A last line without an end, of a run that was killed, is left out and is no damage. So are values that are not finite.

    Raises:
        UnveilError: If the file cannot be read.
    """
    if not path.exists():
        return [], 0
    try:
        lines = read_regular(path, LARGEST_LOG).split(b"\n")
    except OSError as error:
        raise UnveilError(f"{path} cannot be read: {error.strerror or error}") from None
    found = [parse_line(line) for line in lines if line.strip()]
    if any(record and CHECKSUM in record for record in found):  # not in a log of an earlier version
        found = [record if record and CHECKSUM in record and is_unchanged(record) else None for record in found]
    is_cut = lines[-1].startswith(b"{") and b"}" not in lines[-1]  # by a kill
    whole = found[:-1] if is_cut else found
    records = [
        {key: value for key, value in record.items() if isinstance(value, str) or fits(value, float)} for record in whole if record
    ]
    return records, len(whole) - len(records)


def parse_line(line: bytes) -> Record | None:
    """A line of the log; None if it is damaged."""
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and fits(found.get("step"), int) else None


class TensorBoard:
    """Writes scalars as TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UnveilError("TensorBoard is not installed: pip install 'unveil[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder))

    def start(self, first: int) -> None: ...

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Sends scalars to Weights & Biases, under the name of the run folder. A resumed run continues its W&B run."""

    def __init__(self, folder: Path, config: Record) -> None:
        try:
            import wandb
        except ImportError:
            raise UnveilError("Weights & Biases is not installed: pip install 'unveil[wandb]'") from None
        self._run = wandb.init(project="unveil", name=folder.name, id=folder.name, dir=folder, config=config, resume="allow")

    def start(self, first: int) -> None: ...

    def write(self, record: Record) -> None:
        self._run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        self._run.finish()


def trackers(kind: Literal["none", "tensorboard", "wandb"], folder: Path, config: Record) -> list[Sink]:
    """The sinks for the option `tracker`."""
    if kind == "tensorboard":
        return [TensorBoard(folder / "tensorboard")]
    return [WeightsAndBiases(folder, config)] if kind == "wandb" else []


class Meter:
    """Means of scalars between two log lines.

    The sums stay on the device, so the host waits for the GPU only when it reads them.

    Args:
        world: The processes to average over.
        effort: Seconds that one sample would take at the peak speed of the hardware, for `peak_share`.
    """

    def __init__(self, world: World, effort: float = 0.0) -> None:
        self.world, self.effort = world, effort
        self._per_step: Iterable[str] = ()
        self.restart()

    def restart(self) -> None:
        """Resets the sums and the clock."""
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._samples, self._start, self._waited = 0, time.monotonic(), 0.0
        self._seconds: float | None = None
        self._means: HostCopy | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the loop waits for a batch."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - start

    @property
    def has_values(self) -> bool:
        """Whether a value was added since the last restart."""
        return bool(self._sums)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the clock is stopped, for work that is not part of a step."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds a value to each sum."""
        for key, value in values.items():
            total, count = self._sums.get(key, (torch.zeros((), device=self.world.device), 0))
            self._sums[key] = (total + value.detach().float(), count + 1)

    def step(self, values: dict[str, Tensor], samples: int) -> None:
        """Adds the values of a whole step, and counts its samples."""
        self._per_step = values.keys()
        self.add(values)
        self._samples += samples

    def drop(self, microbatches: int, samples: int) -> None:
        """Takes back a step whose values were added as zeros, because it was not applied after all.

        Args:
            microbatches: How often `add` was called.
            samples: What `step` was called with; its values were added once.
        """
        counts = {key: count - (1 if key in self._per_step else microbatches) for key, (_, count) in self._sums.items()}
        self._sums = {key: (total, counts[key]) for key, (total, _) in self._sums.items() if counts[key]}
        self._samples -= samples
        self._means = None

    def split(self) -> "Meter":
        """Restarts, and returns a meter with the values so far. Its clock stands, and a GPU sends its means to the host."""
        other = Meter(self.world, self.effort)
        other._per_step, other._sums = self._per_step, self._sums
        other._samples, other._waited, other._seconds = self._samples, self._waited, time.monotonic() - self._start
        other._means = other._copied_means()
        self.restart()
        return other

    def _copied_means(self) -> HostCopy:
        means = torch.stack([total / count for total, count in self._sums.values()])
        return HostCopy(mean_over_processes(means, self.world.size))

    def read(self) -> Record:
        """The means over steps and processes, and the speed. Every process must call it."""
        values = (self._means or self._copied_means()).read()
        seconds = time.monotonic() - self._start if self._seconds is None else self._seconds
        speed = self._samples / seconds
        return dict(zip(self._sums, values, strict=True)) | {
            "samples_per_second": speed,
            "peak_share": speed / self.world.size * self.effort,
            "waiting": self._waited / seconds,
            "seconds": seconds,
        }

    def state(self) -> dict[str, Any]:
        """The sums of each process, and the clock, as JSON values for a checkpoint. Every process must call it."""
        state = {"samples": self._samples, "seconds": time.monotonic() - self._start, "waited": self._waited, "sums": {}}
        if self._sums:
            totals = gather(torch.stack([total for total, _ in self._sums.values()]), self.world.size).T.tolist()
            state["sums"] = {key: (total, count) for total, (key, (_, count)) in zip(totals, self._sums.items(), strict=True)}
        return state

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Loads the result of `state`, so that a resumed run logs the same means as a run that was never stopped."""
        if state is None:  # a checkpoint of an earlier version
            return
        self._samples, self._waited, self._start = state["samples"], state["waited"], time.monotonic() - state["seconds"]
        for key, (totals, count) in state["sums"].items():
            of_each = totals if isinstance(totals, list) else [totals]  # earlier versions saved the mean
            total = of_each[self.world.rank] if len(of_each) == self.world.size else sum(of_each) / len(of_each)
            self._sums[key] = torch.tensor(total, device=self.world.device), count


class Screen:
    """A progress bar in a terminal, or else a plain line every few seconds.

    Args:
        title: The name of the activity.
        total: Steps of the whole run.
        seconds: Minimum time between two plain lines.
        reads: Whether images are read from files during training. If the loop waits for them, `close` recommends `unveil pack`.
    """

    def __init__(self, title: str, total: int, seconds: float = 5.0, *, reads: bool = False) -> None:
        self.reads = reads
        self.title, self.total, self.first, self.seconds = printable(title), total, 0, seconds
        self._last = self._start = time.monotonic()
        self._waited = 0.0
        self._bar: Progress | NotebookBar | None = None
        self.console = console(stderr=True)
        if has_bars(self.console):
            columns = (
                MofNCompleteColumn(),
                TextColumn("{task.fields[news]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
            )
            self._bar = new_bar(self.console, *columns, width=12)
            self._task = self._bar.add_task(self.title, total=total, news="")
            self._bar.start()

    def start(self, first: int) -> None:
        """Called before the first step; `first` is the number of steps that are already done."""
        self.first, self._start = first, time.monotonic()
        if first:
            self.say(f"resuming from step {first:,}")
        self.advance(first)

    def advance(self, done: int) -> None:
        """Moves the bar to `done` steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def write(self, record: Record) -> None:
        """Shows the newest record."""
        done = record["step"]
        self._waited += record["waiting"] * record["seconds"]
        news = f"loss {record['loss']:.4f}  {record['samples_per_second']:,.0f}/s"
        news += "".join(f"  {key} {value:.3f}" for key, value in record.items() if key in SHOWN)
        if self._bar is not None:
            self._bar.update(self._task, news=news)
        elif time.monotonic() - self._last > self.seconds or done == self.total:
            self._last = time.monotonic()
            left = (self._last - self._start) / max(done - self.first, 1) * (self.total - done)
            news += f"  {record['peak_share']:.0%} of peak  {left:,.0f} s left"
            print_to_stderr(f"{self.title}  {done}/{self.total}  {news}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        say(self.console, text)

    def close(self) -> None:
        """Stops the bar. Recommends `unveil pack` if the loop waited for images."""
        waited = self._waited / max(time.monotonic() - self._start, 1e-9)
        if self.reads and waited > WAITING:
            self.say(
                f"{waited:.0%} of the time was spent waiting for images: `unveil pack DATA OUT` resizes and stores them once, "
                f"which makes reading faster"
            )
        if self._bar is not None:
            self._bar.stop()


SHOWN = ("knn", "accuracy", "top1", "mean_iou", "mask_ap", "box_ap", "bleu")
"""Evaluation results to show next to the loss."""
WAITING = 0.05
"""Share of the time spent waiting for images above which `unveil pack` is recommended."""
