"""Decides in each step whether to apply it, whether to stop and whether to save, with the same answer on every process."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.errors import Interrupted
from unveil.stop_signals import StopFlag
from unveil.train.host_copy import HostCopy
from unveil.train.parallel import World, max_over_processes

SAVE_SHARE = 0.02
"""Maximum share of the time for saving checkpoints."""


WRITE_SHARE = 0.1
"""Maximum share of the time for writing checkpoints in a thread."""

SLOW_SECONDS = 1.0
"""A step that takes longer is waited for: then a signal is noticed in the same step."""


OVERFLOW, NOT_FINITE = 1, 2  # the larger one counts where processes differ


class Decision(NamedTuple):
    """What all processes do in a step."""

    finite: bool = True
    """Whether the loss and the gradient are finite on every process, so that the step is applied."""
    stop: int = 0
    """The signal after which to stop when this step is done; 0 if there was none."""
    save: bool = False
    """Whether to save a checkpoint when this step is done."""
    failed: bool = False
    """Whether a process could not read its samples, so that the step is dropped."""
    overflow: bool = False
    """Whether the step is dropped because its gradients were too large for float16; see `LossScale`."""

    @property
    def skipped(self) -> bool:
        """Whether the step counts as one that was skipped."""
        return not (self.finite or self.overflow)


class Answer:
    """The five numbers that all processes share in a step: fault, stop, save, failed, slow. A GPU may still compute them.

    The fault is 0 if the loss and the gradient are finite, `OVERFLOW`, or `NOT_FINITE`.
    """

    def __init__(self, numbers: Int[Tensor, " 5"]) -> None:
        self.numbers, self._copy = numbers, HostCopy(numbers)

    @property
    def dropped(self) -> Float[Tensor, ""]:
        """1 if the step has to be dropped, else 0, on the device."""
        return ((self.numbers[0] | self.numbers[3]) > 0).float()

    def read(self) -> list[int]:
        """The numbers. Waits for the GPU."""
        return self._copy.read()


class Agreement:
    """Decides once per step, with the same answer on every process.

    A process cannot act on its own signal, clock or loss, since a step and a checkpoint are collective operations. So in each step,
    before it is applied, the processes take the maximum of five numbers in one small all-reduce.

    Args:
        stop: Set when this process should stop.
        save_seconds: Seconds between two checkpoints; longer if saving would otherwise take more than `SAVE_SHARE` of the time.
        world: The processes.
    """

    def __init__(self, stop: StopFlag, save_seconds: float, world: World) -> None:
        self._stop, self._save_seconds, self._world = stop, save_seconds, world
        self._saved, self._save_cost, self._write_cost = time.monotonic(), 0.0, 0.0
        self.writing = False
        """Whether a thread writes a checkpoint; then none is due."""
        self._asked = time.monotonic()
        self.slow = True
        """Whether steps take longer than `SLOW_SECONDS`, as all processes have agreed."""

    def ask(self, finite: Bool[Tensor, ""], failed: bool = False, overflow: Bool[Tensor, ""] | None = None) -> Answer:
        """Starts the reduction, without waiting for a GPU. Every process must call it once per step.

        Args:
            finite: Whether the loss and the gradient of this process are finite, on its device.
            failed: Whether this process could not read its samples.
            overflow: Whether only the loss scale was too large.
        """
        main, before, self._asked = self._world.is_main, self._asked, time.monotonic()
        slow = main and self._asked - before > SLOW_SECONDS
        own = [0, self._stop.number or 0, int(main and self._save_due()), int(failed), int(slow)]
        gpu = self._world.device.type == "cuda"
        numbers = torch.tensor(own, pin_memory=gpu).to(self._world.device, non_blocking=True)
        numbers[0] = NOT_FINITE * ~finite if overflow is None else torch.where(overflow, OVERFLOW, NOT_FINITE * ~finite)
        return Answer(max_over_processes(numbers, self._world))

    def decide(self, answer: Answer) -> Decision:
        """Reads an answer. Waits for the GPU."""
        fault, stop, save, failed, slow = answer.read()
        self.slow = bool(slow)
        return Decision(not fault, stop, bool(save), bool(failed), fault == OVERFLOW)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A context that measures how long saving takes, and restarts the clock."""
        start = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._save_cost = self._saved - start

    def wrote(self, seconds: float) -> None:
        """Notes that nothing is being written, and how long a thread took if it did."""
        self.writing, self._write_cost = False, seconds or self._write_cost

    def _save_due(self) -> bool:
        pause = max(self._save_seconds, self._save_cost / SAVE_SHARE, self._write_cost / WRITE_SHARE)
        return not self.writing and time.monotonic() - self._saved > pause


def interruption(done: int, total: int, number: int | None) -> Interrupted:
    """The exception for a stop after `done` steps, when all of them are saved."""
    if not done:
        message = "stopped before the first step: run the same command to start again"
    elif done < total:
        message = f"stopped after step {done} of {total}, and saved a checkpoint: run the same command to resume"
    else:
        message = "stopped after the last step: the trained model is saved, and the same command evaluates it"
    return Interrupted(message, number or signal.SIGTERM)
