"""Signals that stop a command: Ctrl-C, SIGTERM (kill, schedulers) and SIGHUP (the terminal was closed). Needs no torch.

The command line runs in `raise_on_signals`: a signal ends a command at once. Inside, the training loop runs in `note_signals`: a
signal is noted, and the loop saves a checkpoint first. Both restore the handlers of the host program at their end. They leave a
signal alone that the host program ignores (`nohup` ignores SIGHUP), and do nothing outside of the main thread, where Python cannot
set handlers.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN_SECONDS = 3.0
"""Under torchrun, a second Ctrl-C counts only after this time, since a terminal sends the first one, and torchrun repeats it."""

Handler = Callable[[int, FrameType | None], Any]


class Stopped(KeyboardInterrupt):
    """Raised by a signal. `number` is the signal."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """A context with another handler for the signals of this file. Its end restores the handlers that it replaced."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in NUMBERS}
    before = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}  # None: set by C code
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """A context in which a signal raises `Stopped` in the main thread.

    Python discards an exception that is raised in a destructor or in a callback of a weak reference. Then the signal is sent again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    def send_again(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)
            return
        timer = threading.Timer(0.02, os.kill, (os.getpid(), unraisable.exc_value.number))
        timer.daemon = True
        timer.start()

    hook = sys.unraisablehook
    with handled(stop):
        sys.unraisablehook = send_again
        try:
            yield
        except RuntimeError as error:
            if isinstance(error.__cause__, Stopped):  # Python 3.11 wraps what is raised while a class is being created
                raise error.__cause__ from None
            raise
        finally:
            sys.unraisablehook = hook


class StopFlag:
    """Whether a signal has arrived: `number` is the signal, or None."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._when = 0.0
        self._raises = False

    def is_set(self) -> bool:
        return self.number is not None

    def set(self, number: int = signal.SIGTERM) -> None:
        """Notes a signal. Raises `Stopped` within `raising`, and for a second Ctrl-C."""
        now = time.monotonic()
        if self.number is None:
            self.number, self._when = number, now
        elif number == signal.SIGINT and now - self._when >= (AGAIN_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0):
            raise Stopped(number)
        if self._raises:
            self._raises = False
            raise Stopped(self.number)

    @contextmanager
    def raising(self, enabled: bool = True) -> Iterator[None]:
        """A context, for work that can be abandoned, in which a signal raises `Stopped`; also one that has already arrived."""
        self._raises = enabled
        try:
            if enabled and self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self._raises = False


@contextmanager
def note_signals() -> Iterator[StopFlag]:
    """A context in which a signal sets a flag. A second Ctrl-C raises `Stopped` at once."""
    flag = StopFlag()
    with handled(lambda number, frame: flag.set(number)):
        yield flag
