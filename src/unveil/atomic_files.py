"""Atomic writes: after a kill, a power cut or a full disk, a file is either complete or missing. Needs no torch.

A file is written under a temporary name in the same folder, synced to the disk, and then renamed. A reader gets the old file or the
new one, but never a partial one. What cannot be written is removed, and told in one sentence.
"""

import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unveil.errors import UnveilError

LEFTOVER = re.compile(r"\.(?P<name>.+)-[0-9a-f]{32}")
"""The names that `fresh_name` gives."""
OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""The names of the temporary files of safetensors, which are left when the process is killed."""
ABANDONED_SECONDS = 3600
"""Age after which a temporary file next to its target belongs to a process that was killed, if no lock tells."""


class WriteError(UnveilError):
    """A file that could not be written. `is_full` tells whether the disk is full."""

    def __init__(self, message: str, is_full: bool) -> None:
        super().__init__(message)
        self.is_full = is_full


@contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[Path]:
    """A context with an unused name, to write a file or a folder to. At its end, that takes the place of `path`.

    Args:
        path: The file or folder to write. Folders above it are created. An existing file is replaced.
        size: Bytes of the file, if they are known, for the message about a full disk.

    Raises:
        WriteError: If the disk is full, or the file cannot be written for another reason. Nothing is left behind.
    """
    fresh = fresh_name(path)
    with telling(path, size):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent, path.name, ABANDONED_SECONDS)
            yield fresh
            move_into_place(fresh, path)
        finally:
            remove(fresh)


@contextmanager
def telling(path: Path, size: int | None = None) -> Iterator[None]:
    """A context that writes `path`. It turns the exceptions of all libraries about a failed write into one sentence.

    Raises:
        WriteError: Instead of an `OSError`, also one without the name of the file, and of what safetensors and torch raise.
    """
    try:
        yield
    except Exception as error:
        number = fault_of(error)
        if number is None:
            raise
        raise WriteError(sentence(path, number, size), number == errno.EDQUOT or is_full(path, number, size)) from error


def fault_of(error: BaseException) -> int | None:
    """The number of the operating system for a failed write; None if an exception is about something else."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    if found:
        return int(found[1])
    if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter|inline_container|unexpected pos", str(error)):
        return fault_of(error.__context__) if error.__context__ is not None else errno.EIO
    return None


def sentence(path: Path, number: int, size: int | None) -> str:
    """What could not be written, why, and what to do."""
    path = Path(*(part for part in path.parts if not LEFTOVER.fullmatch(part)))  # an export is written into a hidden folder first
    if is_full(path, number, size):
        return f"the disk of {path.parent} is full: {path.name} is not written{space(path, size)}. Make room, and run it again"
    if number == errno.EDQUOT:
        return f"your disk quota for {path.parent} is used up: {path.name} is not written. Make room, and run it again"
    if number == errno.EFBIG:
        return f"{path} cannot be written: it would be larger than this file system, or ulimit -f, allows"
    return f"{path} cannot be written: {os.strerror(number)}"


def is_full(path: Path, number: int, size: int | None) -> bool:
    """Whether an error means that the disk is full. Some libraries say only that they wrote less than they wanted."""
    return number == errno.ENOSPC or (number == errno.EIO and free_bytes(path) < (size or 2**20))


def space(path: Path, size: int | None) -> str:
    """The space that a file needs, and that there is, in brackets."""
    return f" ({f'it needs {spell_size(size)}, and ' if size else ''}{spell_size(free_bytes(path))} are free)"


def require_space(path: Path, size: int, what: str) -> None:
    """Raises `WriteError` if the disk of `path` has fewer than `size` bytes free. Looks before a long computation, not after it."""
    free = free_bytes(path)
    if free < size:
        raise WriteError(
            f"the disk of {path} has {spell_size(free)} free, but {what} {spell_size(size)}: make room, or choose another --out",
            True,
        )


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is or will be."""
    path = Path(os.path.abspath(path))
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free


def spell_size(count: int) -> str:
    """A number of bytes for people, such as "1.5 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    raw = text.encode("utf-8", "surrogateescape")  # the text may quote file names, which may be any bytes
    with replacing(path, len(raw)) as fresh:
        fresh.write_bytes(raw)


def fresh_name(path: Path) -> Path:
    """An unused hidden name in the folder of `path`, for a file that will be renamed to `path`."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")


def sweep(folder: Path, name: str = "", age: float = 0.0) -> None:
    """Removes temporary files that killed processes have left in a folder.

    Args:
        folder: The folder. Unless it is locked, give an age.
        name: Only those of this file; by default of all.
        age: Only those that are older than this many seconds.
    """
    for each in os.scandir(folder):
        found = LEFTOVER.fullmatch(each.name)
        matches = found["name"] == name if found and name else found or (not name and OF_SAFETENSORS.fullmatch(each.name))
        if matches and each.stat(follow_symlinks=False).st_mtime <= time.time() - age:
            remove(folder / each.name)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it exists and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def move_into_place(fresh: Path, path: Path) -> None:
    """Syncs a file or a folder that was written under a temporary name, and gives it its final name."""
    sync(fresh)
    os.replace(fresh, path)
    sync(path.parent)


def set_aside(path: Path) -> Path:
    """Renames a damaged file, so that a new one can be written and nothing is lost. Returns the new path."""
    for number in range(1, 10_000):
        free = path.with_name(f"{path.stem}.damaged{f'-{number}' * (number > 1)}{path.suffix}")
        if not os.path.lexists(free):
            os.replace(path, free)
            return free
    raise UnveilError(f"{path} is damaged, and 9,999 others are beside it: remove them")


def sync(path: Path) -> None:
    """Forces the content of a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def share_with_folder(path: Path) -> None:
    """Gives a file the read and write permissions of its folder; safetensors creates files that only their owner can read."""
    path.chmod(path.parent.stat().st_mode & 0o666)
