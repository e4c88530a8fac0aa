"""A process that has imported unveil and forks a child for each command, so that a command costs no start-up time.

It reads requests, one JSON object a line, from the socket whose number is its only argument, and answers on the same socket:
`{"id": 1, "pid": 2}` when a child has started, `{"id": 1, "paused": true}` when it has stopped itself, and `{"id": 1, "status": 0,
"seconds": ..., "cpu": ..., "peak": ...}` when it has ended. `peak` is the child's largest resident memory in bytes.

No parallel region runs before a fork (OMP_NUM_THREADS is 1, and the parent only imports), so children are ordinary processes.
"""

import atexit
import contextlib
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

from tests.faults import triggers

MODULES = (  # what commands import when they run
    "torch._dynamo torch.distributed.rendezvous torch.nn.parallel.distributed torch.testing torch.utils.flop_counter "
    "matplotlib.backends.backend_agg matplotlib.backends.backend_svg matplotlib.figure "
    "pyarrow.parquet sklearn.datasets timm.optim tifffile tokenizers tyro.extras zoneinfo"
)


def warm_up() -> None:
    """Imports all of unveil, and what it imports later on."""
    import unveil

    for module in pkgutil.walk_packages(unveil.__path__, "unveil."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in MODULES.split():
        with contextlib.suppress(ImportError):  # of an extra
            importlib.import_module(name)
    import matplotlib.figure

    matplotlib.figure.Figure().savefig(io.BytesIO(), format="svg")  # reads the fonts


def serve(channel: socket.socket) -> None:
    children: dict[int, tuple[int, float]] = {}
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    waiting = b""

    def answer(number: int, **facts: Any) -> None:
        channel.sendall(json.dumps({"id": number, **facts}).encode() + b"\n")

    answer(0, pid=os.getpid())
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        while children:
            pid, status, used = os.wait4(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                break
            number, start = children[pid]
            if os.WIFSTOPPED(status):
                answer(number, paused=True)
                continue
            del children[pid]
            cpu, code = used.ru_utime + used.ru_stime, os.waitstatus_to_exitcode(status)
            answer(number, status=code, seconds=time.monotonic() - start, cpu=cpu, peak=used.ru_maxrss * 1024)
        if channel in ready:
            received = channel.recv(1 << 20)
            if not received:
                return
            *lines, waiting = (waiting + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    for end in (woken, wakes):
                        os.close(end)
                    channel.close()
                    child(request)
                children[pid] = request["id"], time.monotonic()
                answer(request["id"], pid=pid)


def child(request: dict[str, Any]) -> None:
    """Becomes the process of a command. Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for handle, path in ((0, request["stdin"]), (1, request["stdout"]), (2, request["stderr"])):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, handle)
            os.close(opened)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = ["unveil", *request["argv"]]
        for name, value in request["limits"].items():
            limit = getattr(resource, f"RLIMIT_{name}")
            if name == "DATA":  # of what this process may take on top of what the imports took
                value += int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # noqa: SIM115
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        triggers.install(request["triggers"], request["prepare"])
        code = run(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(argv: list[str]) -> int:
    """What the interpreter does with a script: runs it, shows what it raises, joins its threads, and calls what waits for that."""
    from unveil.cli import main

    code = 0
    try:
        if argv != ["idle"]:
            main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    return code


if __name__ == "__main__":
    warm_up()
    serve(socket.socket(fileno=int(sys.argv[1])))
