"""Runs commands in processes of their own, and judges what came out.

`Server` forks a child for each command. `Lab` is the workplace of one case: a folder, and the commands it has run. What holds for
every command is checked here: no traceback, an exit code from the documented set, a sentence with exit code 1, and no code from
files executed.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXIT_CODES = frozenset({0, 1, 2, 129, 130, 137, 143})
MIB = 1 << 20
MEMORY_LIMIT = 300 * MIB
"""What a hostile file may take on top of the idle process."""
TIME_LIMIT = 10.0
"""Seconds of CPU time that a hostile file may take."""
BROKEN = re.compile(r"Traceback \(most recent|Fatal Python error|Exception ignored in|Exception in thread|^Segmentation", re.M)


@dataclass(frozen=True)
class Trigger:
    """Something that happens to a command at a certain moment: see `tests.faults.triggers`."""

    event: str
    """"read" or "write" of a path, "step" of an optimiser, or "call" of a function."""
    match: str = ""
    """A regular expression for what is read, written or called."""
    count: int = 1
    """At which of these events; 0 means at each."""
    action: str = "SIGKILL"
    """A signal that the process sends to itself, SIGSTOP to pause it; or "log FILE"."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    argv: Sequence[str]
    code: int
    """Exit code as a shell sees it: 128 + n after signal n."""
    stdout: str
    stderr: str
    seconds: float
    cpu: float
    peak: int
    """Peak of resident memory in bytes, above the idle process."""
    hung: bool = False

    @property
    def said(self) -> str:
        """The last line on stderr."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""

    def __str__(self) -> str:
        return f"exit {self.code}: {self.said[-300:]!r}"


@dataclass(frozen=True)
class Problem:
    """Something that went wrong. `sort` is "traceback", "silent", "code", "memory", "time" or "other"."""

    sort: str
    text: str


class Process:
    """A command that runs."""

    def __init__(self, server: "Server", number: int, argv: Sequence[str], files: tuple[Path, Path]) -> None:
        self._server, self._number, self.argv, self._files = server, number, argv, files
        self._start = time.monotonic()

    @property
    def pid(self) -> int:
        return int(self._server.answer(self._number, "pid", 60)["pid"])

    def signal(self, number: int) -> None:
        """Sends a signal, if the process is still there."""
        if "status" not in self._server.facts[self._number]:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def cpu(self) -> float:
        """Seconds of CPU time so far."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("inf")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_until(self, condition: Callable[[], bool], timeout: float = 120) -> bool:
        """Waits for a condition. Returns False if the process ended or the time is over first."""
        end = time.monotonic() + timeout
        while not condition():
            if "status" in self._server.facts[self._number] or time.monotonic() > end:
                return condition()
            time.sleep(0.002)
        return True

    def paused(self, timeout: float = 120) -> bool:
        """Waits for SIGSTOP. Returns False if the process ended first."""
        return "paused" in self._server.answer(self._number, ("paused", "status"), timeout)

    def resume(self) -> None:
        self._server.facts[self._number].pop("paused", None)
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float = 180) -> Result:
        """Waits for the end. A process that takes longer is killed, and called hung."""
        facts = self._server.answer(self._number, "status", timeout)
        hung = "status" not in facts
        if hung:
            self.signal(signal.SIGKILL)
            facts = self._server.answer(self._number, "status", 60)
        stdout, stderr = (path.read_text(errors="replace") for path in self._files)
        code = facts["status"] if facts["status"] >= 0 else 128 - facts["status"]
        peak = max(0, facts["peak"] - self._server.idle)
        return Result(self.argv, code, stdout, stderr, facts["seconds"], facts["cpu"], peak, hung)


class Server:
    """The process of `tests.faults.zygote`, and the commands that it has started."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONWARNINGS": "ignore::DeprecationWarning"}
        for name in ("UNVEIL_TRACEBACK", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
            env.pop(name, None)
        command = [sys.executable, "-m", "tests.faults.zygote", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, env=env, pass_fds=[theirs.fileno()])
        theirs.close()
        self._channel, self.facts = ours, dict[int, dict[str, Any]]({0: {}})
        self._changed, self._count, self.idle = threading.Condition(), 0, 0
        threading.Thread(target=self._listen, daemon=True).start()
        if "pid" not in self.answer(0, "pid", 300):
            raise RuntimeError("the zygote did not start")

    def _listen(self) -> None:
        with self._channel.makefile() as lines:
            for line in lines:
                facts = json.loads(line)
                with self._changed:
                    self.facts[facts.pop("id")].update(facts)
                    self._changed.notify_all()

    def answer(self, number: int, keys: str | tuple[str, ...], timeout: float) -> dict[str, Any]:
        """Waits for one of several facts about a process, or for the time to be over. Returns all facts."""
        keys = (keys,) if isinstance(keys, str) else keys
        with self._changed:
            self._changed.wait_for(lambda: any(key in self.facts[number] for key in keys), timeout)
            return dict(self.facts[number])

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        triggers: Iterable[Trigger] = (),
        prepare: Sequence[str] = (),
        limits: Mapping[str, int] | None = None,
        stdin: str = "/dev/null",
        logs: Path | None = None,
    ) -> Process:
        """Starts a command in a folder. `limits` are names of RLIMIT_ constants; DATA is counted on top of the idle process."""
        with self._changed:
            self._count += 1
            number = self._count
            self.facts[number] = {}
        logs = logs or folder
        files = logs / f".stdout-{number}", logs / f".stderr-{number}"
        for file in files:
            file.touch()
        request = {
            "id": number,
            "argv": list(argv),
            "cwd": str(folder),
            "env": dict(env or {}),
            "stdin": stdin,
            "stdout": str(files[0]),
            "stderr": str(files[1]),
            "limits": dict(limits or {}),
            "triggers": [asdict(trigger) for trigger in triggers],
            "prepare": list(prepare),
        }
        self._channel.sendall(json.dumps(request).encode() + b"\n")
        return Process(self, number, argv, files)

    def measure_idle(self, folder: Path) -> None:
        """Measures the memory of a process that does nothing."""
        process = self.start(["idle"], folder)
        self.answer(process._number, "status", 60)
        self.idle = self.facts[process._number]["peak"]

    def close(self) -> None:
        self._channel.shutdown(socket.SHUT_RDWR)
        self._process.wait(30)


@dataclass
class Lab:
    """The workplace of one case."""

    server: Server
    home: Path
    """A folder that is removed when the case ends. Commands run in its folder `work`."""
    limits: Mapping[str, int] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    killed: bool = False
    """Whether the case kills processes, so that exit code 137 is expected."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.home / "logs").mkdir()

    @property
    def folder(self) -> Path:
        return self.home / "work"

    @property
    def canary(self) -> Path:
        """A file that code in a hostile file would create."""
        return self.home / "canary"

    def start(self, *argv: Any, **options: Any) -> Process:
        """Starts a command: see `Server.start`."""
        options.setdefault("limits", self.limits)
        folder = options.pop("folder", self.folder)
        process = self.server.start([str(word) for word in argv], folder, logs=self.home / "logs", **options)
        self.processes.append(process)
        return process

    def run(self, *argv: Any, timeout: float = 180, **options: Any) -> Result:
        """Runs a command to its end."""
        return self.end(self.start(*argv, **options), timeout)

    def end(self, process: Process, timeout: float = 180) -> Result:
        """Waits for the end of a command."""
        result = process.wait(timeout)
        self.results.append(result)
        return result

    def close(self, kept: Path | None = None) -> None:
        """Ends what still runs, and removes the folder, or moves it to `kept`."""
        for process in self.processes:
            process.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        if kept:
            kept.parent.mkdir(exist_ok=True)
            self.home.rename(kept)
        else:
            remove(self.home)

    def general_problems(self) -> Iterator[Problem]:
        """What must hold for every command."""
        if self.canary.exists():
            yield Problem("code", "code from a file was executed")
        for result in self.results:
            shown = f"unveil {' '.join(result.argv)}"
            if result.hung:
                yield Problem("time", f"{shown} did not end within {result.seconds:.0f} s")
                continue
            if BROKEN.search(result.stderr):
                lines = [line for line in result.stderr.splitlines() if line.strip()]
                yield Problem("traceback", f"{shown}: {lines[-1][:300]}")
                continue
            if result.code not in EXIT_CODES or (result.code == 137 and not self.killed):
                yield Problem("other", f"{shown} ended with {result}")
            if result.code == 1 and not re.search(r"^unveil: \S", result.stderr, re.M):
                yield Problem("other", f"{shown} failed without a sentence: {result}")


def remove(folder: Path) -> None:
    """Removes a folder. Python's own `rmtree` fails for folders of any depth."""
    subprocess.run(["rm", "-rf", "--", str(folder)], check=True)


@contextmanager
def paused_at(lab: Lab, event: str, match: str, count: int, *argv: Any, **options: Any) -> Iterator[Process]:
    """A command that is paused at a moment during the context, and goes on afterwards."""
    process = lab.start(*argv, triggers=[Trigger(event, match, count, "SIGSTOP")], **options)
    if not process.paused():
        raise AssertionError(f"the command ended before {event} {match!r} {count}: {lab.end(process)}")
    yield process
    process.resume()


def refused(result: Result, *words: str) -> Iterator[Problem]:
    """Problems unless a command failed with one sentence that contains some words."""
    if result.code != 1:
        yield Problem("silent" if result.code == 0 else "other", f"expected a refusal, but {result}")
    else:
        sentence = result.stderr[result.stderr.rfind("unveil: ") :]
        missing = [word for word in words if word not in sentence]
        if missing:
            yield Problem("other", f"the sentence does not name {' or '.join(map(repr, missing))}: {sentence.strip()[:300]!r}")


def succeeded(result: Result, *words: str) -> Iterator[Problem]:
    """Problems unless a command ended well, and said some words on stderr."""
    if result.code != 0:
        yield Problem("other", f"expected success, but {result}")
    for word in words:
        if word not in result.stderr:
            yield Problem("silent", f"expected a line with {word!r}: {result.stderr[-300:]!r}")
