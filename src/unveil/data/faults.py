"""Which images of a dataset cannot be read, and why."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Fault(NamedTuple):
    """Why an image cannot be read."""

    reason: str
    lost: bool = False
    """Whether it became unreadable after the dataset was opened: it was read earlier, or its disk fails."""
    may_pass: bool = False
    """Whether it is worth trying again. A damaged file is not."""


class UnreadableImages:
    """The part of a dataset that knows which of its images cannot be read. Any thread may add to it.

    Attributes:
        names: The names of all images.
        unreadable: The images that cannot be read, by index, with the reason. If images are read on demand, it grows over time, and
            an image is removed when it can be read again.
        on_fault: Called by any thread with the name of a further image that cannot be read, and the reason.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.unreadable: dict[int, Fault] = {}
        self._skipped: dict[int, str] = {}
        self.on_fault: Callable[[str, str], None] = lambda name, reason: None
        self._lock = threading.Lock()

    @property
    def skipped(self) -> dict[str, str]:
        """The names of all images that could not be read at some time, with the reason."""
        with self._lock:
            return {self.names[i]: reason for i, reason in self._skipped.items()}

    @property
    def skipped_count(self) -> int:
        """The number of images in `skipped`."""
        return len(self._skipped)

    def faults(self, known: int = 0) -> list[tuple[int, Fault]]:
        """The unreadable images in the order in which they were noticed, without the first `known` ones."""
        with self._lock:
            return list(self.unreadable.items())[known:]

    def faults_within(self, start: int, stop: int) -> list[tuple[int, Fault]]:
        """The unreadable images among those from `start` on and before `stop`, by index."""
        with self._lock:
            return [(index, self.unreadable[index]) for index in range(start, stop) if index in self.unreadable]

    def add_faults(self, faults: Iterable[tuple[int, Fault]]) -> None:
        """Adds unreadable images that other processes have noticed."""
        with self._lock:
            for index, fault in faults:
                self.unreadable.setdefault(index, fault)
                self._skipped.setdefault(index, fault.reason)

    def lost_among(self, members: NDArray[np.bool_]) -> int:
        """The number of images that became unreadable, among those that are True in `members`."""
        with self._lock:
            return sum(fault.lost and bool(members[index]) for index, fault in self.unreadable.items())

    def can_be_read(self, index: int) -> None:
        """Removes an image that can be read again."""
        with self._lock:
            self.unreadable.pop(index, None)

    def forget_faults(self) -> None:
        """Removes all images, before they are read again."""
        self.unreadable.clear()
        self._skipped.clear()
