"""Writes a checkpoint in a thread, from a copy of the state, while training goes on.

On a GPU the copy is cheap: the GPU makes it between two steps, in page-locked memory of the host. On a CPU it would double the
memory of the weights and moments, and the thread would take its time from the step. So there the loop writes by itself.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor


class Snapshot:
    """A copy of tensors on the host. A GPU makes it while the host goes on; `read` waits for it.

    Args:
        files: Tensors by file and by name.
        device: Where training runs. Tensors on another kind of device are copies already, and are kept.
    """

    def __init__(self, files: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        self._files = {
            name: {key: copy_of(value) if value.device.type == device.type else value for key, value in tensors.items()}
            for name, tensors in files.items()
        }
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> dict[str, dict[str, Tensor]]:
        """The copies."""
        if self._event is not None:
            self._event.synchronize()
        return self._files


def copy_of(tensor: Tensor) -> Tensor:
    """A copy in the memory of the host, that a GPU may still be making."""
    if not tensor.is_cuda:
        return tensor.detach().clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor.detach(), non_blocking=True)


class Writer:
    """Writes in a thread, one checkpoint at a time. As a context, it ends when the last one is written."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with suppress(*([] if kind is None else [Exception])):  # the first error is the one to tell
                self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=False)

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._job is not None and not self._job.done()

    def start(self, write: Callable[[], object]) -> None:
        """Starts to write, when what was started before is written."""
        self.wait()

        def timed() -> float:
            start = time.monotonic()
            write()
            return time.monotonic() - start

        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._job = self._pool.submit(timed)

    def wait(self) -> float:
        """Waits until everything is written. Returns the seconds that it took, or 0. Raises what the thread has raised."""
        job, self._job = self._job, None
        return 0.0 if job is None else job.result()
