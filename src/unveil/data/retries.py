"""Tries a read again after an error of a disk or a network share, because such an error may pass."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAUSES = (0.1, 0.4, 1.5)
"""Seconds to wait before each further try."""
OUTAGE = 10.0
"""If every read has failed for this many seconds, waiting does not help: reads are then tried once."""


class Retries:
    """Tries reads again that raise `OSError`. Any thread can call it.

    A damaged file raises `Unreadable`, and a file without permission `PermissionError`. Both are raised at once: waiting does not
    help.
    """

    def __init__(self) -> None:
        self._failing_since = math.inf  # over all threads

    def __call__(self, read: Callable[[], T]) -> T:
        """Calls `read` until it succeeds. Raises the error of the last try."""
        for pause in (*PAUSES, None):
            try:
                result = read()
            except PermissionError:
                raise
            except OSError:
                now = time.monotonic()
                self._failing_since = min(self._failing_since, now)
                if pause is None or now - self._failing_since > OUTAGE:
                    raise
                time.sleep(pause)
            else:
                self._failing_since = math.inf
                return result
        raise AssertionError  # the last try returns or raises
