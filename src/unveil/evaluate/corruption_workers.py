"""Processes that corrupt images.

Threads would not do: the corruptions draw from the global generator of NumPy, which all threads of a process share. The processes
are started by a command of their own, not by `multiprocessing`, which would run the script of the caller again in each of them.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from unveil.data.read_ahead import read_ahead
from unveil.errors import UnveilError
from unveil.evaluate.corruptions import Pixels, corrupted_versions

COMMAND = ("-m", "unveil.evaluate.corruption_workers")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")


class Corrupted(NamedTuple):
    """An image, and its corrupted versions."""

    key: int
    """The index of the image in its dataset."""
    image: Pixels
    """(H, W, C)."""
    versions: NDArray[np.uint8]
    """(15, 5, H, W, C): see `corrupted_versions`."""


class CorruptionWorkers:
    """Processes that corrupt images, until the end of a `with` statement.

    Args:
        count: The number of processes.
        seed: The seed of the evaluation.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._processes: list[subprocess.Popen[bytes]] = []
        self._free = SimpleQueue[subprocess.Popen[bytes]]()

    def __enter__(self) -> Self:
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, *COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # else Ctrl-C would reach it too, and it would print a traceback
            )
            self._processes.append(process)
            self._free.put(process)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()  # an idle one waits for images, and what a busy one does is not needed any more
        for process in self._processes:
            with suppress(OSError), process:  # closes the pipes and waits
                pass

    def corrupted(self, images: Iterable[tuple[int, Pixels]]) -> Iterator[Corrupted]:
        """The corrupted versions of images (H, W, C), in order.

        Args:
            images: The index of each image in its dataset, and the image.
        """
        return read_ahead(self._corrupted, images, depth=self.count + 1, threads=self.count)

    def _corrupted(self, item: tuple[int, Pixels]) -> Corrupted:
        """Hands an image to a free process, and waits for what it returns. Called by as many threads as there are processes."""
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((self.seed, *item), process.stdin)
            process.stdin.flush()
            found: NDArray[np.uint8] | str = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UnveilError(
                f"a process that corrupts images has ended (exit status {process.poll()}, {type(error).__name__}): perhaps the "
                "machine has too little memory"
            ) from None
        finally:
            self._free.put(process)
        if isinstance(found, str):
            raise UnveilError(f"image {item[0]} could not be corrupted: {found}")
        return Corrupted(*item, found)


def main() -> None:
    """Reads images from standard input until it is closed, and writes their corrupted versions to standard output."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the package prints must not be among the replies
    while True:
        try:
            seed, index, image = pickle.load(requests)
        except EOFError:
            return
        reply: Any
        try:
            reply = corrupted_versions(image, seed, index)
        except Exception as error:
            reply = f"{type(error).__name__}: {error}"
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    main()
