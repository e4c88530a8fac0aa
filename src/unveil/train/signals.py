"""Decides when to save and when to stop, from signals and the clock, in agreement with all processes."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unveil.train.parallel import World, max_over_processes

SAVE_SHARE = 0.02
"""Maximum share of the time for saving checkpoints."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user stopped the run
    """Raised when a signal stops a run. If the run has a folder, a checkpoint was saved first."""

    def __init__(self, step: int, total: int, saved: bool) -> None:
        if saved:
            message = f"stopped after step {step} of {total}, and saved a checkpoint: run the same command to resume"
        else:
            message = f"stopped after step {step} of {total}"
        super().__init__(message)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that is set by SIGTERM or Ctrl-C. A second Ctrl-C raises `KeyboardInterrupt` at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """Decides after each step whether to stop and whether to save, with the same answer on every process.

    A process cannot act on its own signal or clock alone, since saving is a collective operation. But communicating after every
    step would make each process wait for its GPU. So processes communicate about every `seconds`. Rank 0 estimates how many steps
    that is and broadcasts the estimate, so that all processes communicate again after the same step.

    Args:
        stop: Set when this process should stop.
        save_seconds: Seconds between two checkpoints; longer if saving would otherwise take more than `SAVE_SHARE` of the time.
        world: The processes.
        seconds: Approximate seconds between two rounds of communication.
    """

    def __init__(self, stop: threading.Event, save_seconds: float, world: World, seconds: float = 1.0) -> None:
        self._stop, self._save_seconds, self._world, self._seconds = stop, save_seconds, world, seconds
        self._saved, self._save_cost = time.monotonic(), 0.0
        self._next, self._asked = 0, (0, time.monotonic())

    def after(self, done: int) -> tuple[bool, bool]:
        """Returns whether to stop and whether to save after `done` steps. Every process must call it after every step."""
        if self._world.size == 1:
            return self._stop.is_set(), self._save_due()
        if done < self._next:
            return False, False
        main = self._world.is_main
        stop, save, wait = max_over_processes(
            [int(self._stop.is_set()), int(main and self._save_due()), self._steps_to_wait(done) if main else 0], self._world
        )
        self._next = done + wait
        return bool(stop), bool(save)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A context that measures how long saving takes, and restarts the clock."""
        start = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._save_cost = self._saved - start

    def _save_due(self) -> bool:
        return time.monotonic() - self._saved > max(self._save_seconds, self._save_cost / SAVE_SHARE)

    def _steps_to_wait(self, done: int) -> int:
        (before, since), now = self._asked, time.monotonic()
        self._asked = done, now
        if before == 0:  # the first steps are not representative of the speed
            return 1
        return max(1, int((done - before) * self._seconds / max(now - since, 1e-9)))
