"""One writer per folder: a lock that the operating system releases when its process ends, however it ends. Needs no torch.

The lock is a `flock` on a small file inside the folder. On NFS, Linux turns it into a lock that all machines see, which needs a
file that is open for writing; a lock on the folder itself would fail there. A mount with `nolock` or `local_lock` locks for one
machine only. The file names its owner for messages. It does not decide anything: a file that a killed process has left locks nobody
out.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unveil.errors import UnveilError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module for mypy, which takes the platform to be Linux

LOCK = ".lock"
"""The name of the lock file. It exists while a process writes into the folder, or after one was killed."""


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """A context in which no other process, and no other thread, can lock the same folder.

    Args:
        folder: A folder; it is created if it does not exist.
        doing: What this process does there, such as "training in", for the message that another one gets.

    Raises:
        UnveilError: If the folder is locked. The message names the owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = acquire(folder, doing)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()  # while it is locked, so nobody else can hold it
            os.close(handle)


def acquire(folder: Path, doing: str) -> int | None:
    """Locks a folder, and returns the handle of the locked file; None in a folder or on a file system that cannot be locked."""
    if fcntl is None:
        return None
    path = folder / LOCK
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # nothing can be written here, so nothing is at risk
                return None
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(handle), os.stat(path))  # else its owner has removed it in between
        except OSError as error:
            os.close(handle)
            if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
                continue
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UnveilError(refusal(path)) from None
            return None  # a file system without locks
        if same:
            break
        os.close(handle)
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S"), "doing": doing}
    with suppress(OSError):  # on a full disk, the lock itself still holds
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(facts).encode(), 0)
    return handle


def refusal(path: Path) -> str:
    """The message for a process that finds a folder locked: "another process (pid 123 on host) is training in runs/a"."""
    try:
        with path.open() as file:
            facts = json.loads(file.read(1000))
        owner, since = f"(pid {int(facts['pid'])} on {facts['host']}) is {facts['doing']}", f" since {facts['started']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # its owner has not written it yet
        owner, since = "is writing into", ""
    return f"another process {owner} {path.parent}{since}: wait for it, or stop it first"
