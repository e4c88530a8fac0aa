"""Other processes for tests. They are forked from one that has imported unveil, so each saves seconds of start-up."""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "unveil.cli",
        "unveil.commands",
        "unveil.recipes.pretrain",
        "unveil.reports.page",
        "matplotlib.figure",
        "scipy.optimize",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.rendezvous",
        "torch.nn.parallel.distributed",
        "torch.utils.flop_counter",
        "tyro.extras",
    ]
)


class Command:
    """`unveil ARGUMENTS` on one or several processes, with the environment that torchrun would give them.

    Args:
        arguments: The words after `unveil`.
        processes: Their number.
        env: More environment variables.
        prepare: A function of a module, to be called in each process before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        processes: int = 1,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="unveil-test-")
        self._outputs = [Path(self._folder.name) / str(rank) for rank in range(processes)]
        self.processes = [
            FORKS.Process(target=run, args=(list(arguments), str(output), dict(env or {}) | more, prepare), daemon=True)
            for output, more in zip(self._outputs, ranks(processes), strict=True)
        ]
        for process in self.processes:
            process.start()

    @property
    def returncode(self) -> int | None:
        """The first exit code that is not 0, -n after signal n; None while a process runs."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Sends a signal to every process."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Waits for the end. Returns what the processes have printed, in the order of their ranks."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        said = "\n".join(output.read_text(errors="replace") for output in self._outputs if output.exists())
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"the command did not end: {said[-3000:]}")
        return said, None


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each of several processes on this machine."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def run(arguments: list[str], output: str, env: Mapping[str, str], prepare: Callable[[], None] | None) -> None:
    """The body of a process."""
    import torch

    from unveil.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(env)
    torch.set_num_threads(1)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for handle in (1, 2):
        os.dup2(file, handle)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["unveil", *arguments]
    if prepare:
        prepare()
    main(arguments)
