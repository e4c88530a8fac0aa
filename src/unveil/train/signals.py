"""Decides in each step whether to apply it, whether to stop and whether to save, with the same answer on every process."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.errors import Interrupted
from unveil.stop_signals import StopFlag
from unveil.train.parallel import World, max_over_processes

SAVE_SHARE = 0.02
"""Maximum share of the time for saving checkpoints."""


class Decision(NamedTuple):
    """What all processes do in a step."""

    finite: bool
    """Whether the loss and the gradient are finite on every process, so that the step can be applied."""
    stop: int
    """The signal after which to stop when this step is done; 0 if there was none."""
    save: bool
    """Whether to save a checkpoint when this step is done."""
    failed: bool
    """Whether a process could not read its samples, so that the step has to be dropped."""


class Agreement:
    """Decides once per step, with the same answer on every process.

    A process cannot act on its own signal, clock or loss, since a step and a checkpoint are collective operations. So in each step,
    before it is applied, the processes take the maximum of four numbers. This costs one small all-reduce, and one wait for the GPU:
    see LAB.md. A signal is noticed within one step.

    Args:
        stop: Set when this process should stop.
        save_seconds: Seconds between two checkpoints; longer if saving would otherwise take more than `SAVE_SHARE` of the time.
        world: The processes.
    """

    def __init__(self, stop: StopFlag, save_seconds: float, world: World) -> None:
        self._stop, self._save_seconds, self._world = stop, save_seconds, world
        self._saved, self._save_cost = time.monotonic(), 0.0

    def decide(self, finite: Tensor, failed: bool = False) -> Decision:
        """Every process must call it once per step.

        Args:
            finite: Whether the loss and the gradient of this process are finite, as a tensor on its device.
            failed: Whether this process could not read its samples.
        """
        stop, save = self._stop.number or 0, self._world.is_main and self._save_due()
        if self._world.size == 1:
            return Decision(bool(finite), stop, save, failed)
        box = torch.tensor([0, stop, save, failed], device=self._world.device)
        box[0] = ~finite
        broken, stop, save, failed = max_over_processes(box, self._world)
        return Decision(not broken, stop, bool(save), bool(failed))

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A context that measures how long saving takes, and restarts the clock."""
        start = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._save_cost = self._saved - start

    def _save_due(self) -> bool:
        return time.monotonic() - self._saved > max(self._save_seconds, self._save_cost / SAVE_SHARE)


def interruption(done: int, total: int, number: int | None) -> Interrupted:
    """The exception for a stop after `done` steps, when all of them are saved."""
    if not done:
        message = "stopped before the first step: run the same command to start again"
    elif done < total:
        message = f"stopped after step {done} of {total}, and saved a checkpoint: run the same command to resume"
    else:
        message = "stopped after the last step: the trained model is saved, and the same command evaluates it"
    return Interrupted(message, number or signal.SIGTERM)
