"""What the loop watches for: signals to stop, time to save, a loss that is not finite. And where its chance comes from."""

import math
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import numpy as np
import torch
from torch import nn

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch, Samples
from unveil.errors import UnveilError
from unveil.train.log import Record


class Interrupted(Exception):  # noqa: N818 - no error: somebody asked
    """The run was asked to stop, and saved first where it has a folder."""

    def __init__(self, step: int, total: int, saved: bool) -> None:
        told = "and saved after step {} of {}: the same command goes on from there" if saved else "after step {} of {}"
        super().__init__(f"stopped {told.format(step, total)}")


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; the second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
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


class Pace:
    """When to save: every so many seconds, or more rarely so that saving takes less than one fiftieth of the time."""

    def __init__(self, seconds: float, share: float = 0.02) -> None:
        self._seconds, self._share, self._cost, self._last = seconds, share, 0.0, time.monotonic()

    def due(self) -> bool:
        """Whether it is time again."""
        return time.monotonic() - self._last > max(self._seconds, self._cost / self._share)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measures what a save costs."""
        start = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - start


def seed_all(seed: int, step: int, rank: int) -> None:
    """Seeds every generator as a function of the step, so that none has to be saved."""
    key = int(sample_keys(seed, step, 1)[0] ^ (rank * 0x9E3779B9)) & (2**63 - 1)
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


def check_finite(learner: nn.Module, record: Record, parts: Sequence[Samples]) -> None:
    """Raises `UnveilError` with the likely cause when the loss or the gradient is not finite."""
    if math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"]):
        return
    broken = [name for name, p in learner.named_parameters() if not torch.isfinite(p.detach()).all()]
    stacked = [part.images for part in parts if isinstance(part, Batch)]
    if any(not torch.isfinite(images).all() for images in stacked if images.is_floating_point()):
        cause = "the images themselves hold values that are not finite"
    elif broken:
        cause = f"{len(broken)} parameters are not finite any more, {broken[0]} first: the steps were too large"
    else:
        cause = "all parameters are finite: a value overflowed in the forward or the backward pass"
    raise UnveilError(
        f"the loss is {record['loss']} and the gradient's norm {record['gradient_norm']} near step {record['step']} (learning rate "
        f"{record['learning_rate']:.2e}); {cause}. The last good checkpoint is untouched. Try a smaller --base-lr, --clip 1, or "
        f"--precision float32, in a new --out"
    )
