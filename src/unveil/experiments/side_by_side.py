"""Runs side by side on this machine: each in a process of its own, with its share of the cores and one of the GPUs.

A process is started by a command, not by `multiprocessing`, which would run the script of the caller again in each of them. It
gets its call through standard input, which stays open: when it is closed, because the runs are stopped or because this process has
been killed, the run saves a checkpoint and ends.
"""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Protocol, Self

import torch

from unveil.experiments.calls import Call, Outcome, outcome_of, wait_until_free
from unveil.plugins import trust, trusted
from unveil.stop_signals import raise_on_signals

COMMAND = ("-m", "unveil.experiments.side_by_side")
PAUSE = 0.1


class Launched(Protocol):
    """A run that has been started."""

    def outcome(self) -> Outcome | None:
        """What has become of it; None as long as it goes on."""
        ...


class Launcher(Protocol):
    """Where runs can be started."""

    pause: float
    """Seconds between two looks at the runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stops the runs that go on, and waits until they have saved."""
        ...

    def start(self, calls: Sequence[tuple[str, Call]]) -> Sequence[Launched]:
        """Starts runs, each with its name."""
        ...


class WorkerProcesses:
    """Processes of this machine.

    Args:
        folder: The folder for what the runs print, a file for each: `<name>.log`.
        count: How many run at a time.
    """

    pause = PAUSE

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.gpus = visible_gpus()
        self._running = dict[int, WorkerProcess]()
        """By place, from 0 to `count` - 1."""

    def __enter__(self) -> Self:
        self._replies, self._numbers = TemporaryDirectory(prefix="unveil-"), itertools.count()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for worker in self._running.values():
                worker.stop()
            for worker in self._running.values():
                worker.process.wait()
        finally:  # on a second Ctrl-C
            for worker in self._running.values():
                worker.process.kill()
            self._replies.cleanup()

    def start(self, calls: Sequence[tuple[str, Call]]) -> "list[WorkerProcess]":
        """Starts runs in places that are free."""
        found = []
        self._running = {place: worker for place, worker in self._running.items() if worker.process.poll() is None}
        for name, call in calls:
            place = next(place for place in range(self.count) if place not in self._running)
            reply = Path(self._replies.name, str(next(self._numbers)))
            worker = WorkerProcess(self.folder / f"{name}.log", reply, call, self.environment(place))
            self._running[place] = worker
            found.append(worker)
        return found

    def environment(self, place: int) -> dict[str, str]:
        """The environment of a process: its share of the cores, unless the user has set a number, and one of the GPUs."""
        own = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // self.count))} | os.environ | own


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return named[: torch.cuda.device_count()] or [str(number) for number in range(torch.cuda.device_count())]


class WorkerProcess:
    """A run in a process of its own.

    Args:
        log: The file for what it prints.
        reply: The file for what has become of it.
        call: What it does.
        environment: Its environment.
    """

    def __init__(self, log: Path, reply: Path, call: Call, environment: dict[str, str]) -> None:
        self.log, self.reply = log, reply
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *COMMAND, os.fspath(reply)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # else Ctrl-C would reach it as well, and stop it a second time
            )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            pickle.dump((call, trusted(), sys.argv), self.process.stdin)
            self.process.stdin.flush()

    def stop(self) -> None:
        """Lets it save a checkpoint and end."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def outcome(self) -> Outcome | None:
        """What has become of it; None as long as it goes on."""
        code = self.process.poll()
        if code is None:
            return None
        self.stop()
        if not self.reply.is_file():
            reason = f"by {signal.Signals(-code).name}, perhaps for want of memory" if code < 0 else f"with exit code {code}"
            return Outcome("failed", f"its process ended {reason}; what it printed is in {self.log}")
        found: Outcome = pickle.loads(self.reply.read_bytes())
        if found.kind == "interrupted":  # by somebody else: this process would have been stopped first
            return Outcome("failed", found.text)
        return found


def perform(call: Call, plugins: Sequence[str], argv: Sequence[str]) -> Outcome:
    """Does what a call says, in a process that was started for it.

    Args:
        call: The call.
        plugins: What the user has trusted.
        argv: The `sys.argv` of the process that started it, which the run records as its command.
    """
    sys.argv = list(argv)
    try:
        for each in plugins:
            trust(each)
        if out := call.options.get("out"):
            wait_until_free(Path(out))
    except Exception as error:
        return outcome_of(error)
    return call()


def main() -> None:
    """Reads a call from standard input, and writes what becomes of it to a file. Ends when standard input is closed."""
    reply = Path(sys.argv[1])
    call, plugins, argv = pickle.load(sys.stdin.buffer)
    threading.Thread(target=end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        with raise_on_signals():
            outcome = perform(call, plugins, argv)
    except KeyboardInterrupt:
        outcome = Outcome("interrupted", "stopped by a signal: the same command resumes it")
    partial = reply.with_name(f"{reply.name}.part")
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(reply)


def end_with(handle: int) -> None:
    """Waits until standard input is closed, and stops this process as a scheduler would.

    It reads from the handle: a thread inside of a file object of Python would make the end of the process fail.
    """
    while os.read(handle, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
