"""Opens files that others may have replaced, and reads no more than their size.

DATA can change while a run trains on it: an image may become a pipe, whose opening waits for a writer, or a link to /dev/zero,
which never ends.
"""

import io
import os
import stat
import time
import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from unveil.data.pixels import Unreadable

FILE_LIMIT = 1 << 30
"""Maximum size of an image file, in bytes."""
TOO_LARGE = f"larger than {FILE_LIMIT:,} bytes"
RATIO, SMALL = 100, 64 * 2**20
"""Files of more than `SMALL` bytes that take less than a hundredth of that in their archive, or on the disk, are not read. Images
are compressed already, so such files are made to exhaust the memory."""
OPEN_ARCHIVES = 64
"""Maximum number of archives that are open at a time. On some systems a process may open 256, and ImageNet has 1,282 shards."""


def open_regular(path: str | Path) -> int:
    """Opens a file for reading and returns its descriptor.

    Raises:
        Unreadable: If it is a folder, a device or a pipe. Opening a pipe would wait for its writer, and a device may never end.
        OSError: If it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    kind = special_kind(os.fstat(handle).st_mode)
    if kind:
        os.close(handle)
        raise Unreadable(f"not a file, but {kind}", lost=True)
    return handle


def special_kind(mode: int) -> str:
    """What a path with this mode is, or "" for a regular file."""
    kinds = {
        stat.S_IFREG: "",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def read_file(path: str | Path, limit: int = FILE_LIMIT) -> bytes:
    """The first `limit` bytes of a regular file of at most `FILE_LIMIT` bytes. Never reads more than the size of the file.

    Raises:
        Unreadable: If it is no regular file, too large, or mostly a hole that takes no space on the disk.
        OSError: If it cannot be read.
    """
    handle = open_regular(path)
    try:
        status = os.fstat(handle)
        if status.st_size > FILE_LIMIT:
            raise Unreadable(TOO_LARGE)
        on_disk = 512 * status.st_blocks
        is_hole = on_disk > 0 or not os.pread(handle, 512, 0).strip(b"\0")  # some network file systems report 0 blocks for any file
        if limit > SMALL and is_inflated(status.st_size, on_disk) and is_hole:
            raise Unreadable(f"a sparse file: {status.st_size:,} bytes, of which {on_disk:,} are on the disk")
        return read_at(handle, min(limit, status.st_size), 0, "the file has become shorter")
    finally:
        os.close(handle)


def is_inflated(size: int, packed: int) -> bool:
    """Whether a file is far larger than what is stored of it."""
    return size > SMALL and size > RATIO * packed


def read_at(handle: int, size: int, offset: int, cut_short: str = "the archive ends before this file does") -> bytes:
    """Reads `size` bytes without moving the position of a file. If there are fewer, raises `Unreadable` with `cut_short`."""
    raw = os.pread(handle, size, offset)
    if len(raw) == size:
        return raw
    stream = io.BytesIO()  # one call reads up to 2 GiB, or less if a signal interrupts it
    while raw:
        stream.write(raw)
        raw = os.pread(handle, size - stream.tell(), offset + stream.tell())
    if stream.tell() < size:
        raise Unreadable(cut_short, lost=True)
    return stream.getvalue()


class ReopenedFile:
    """An archive on the disk that is opened again when it is needed, so that thousands of shards need few descriptors.

    Args:
        path: The file.
        handle: Its descriptor, which this object closes.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self.status, self.opened = os.fstat(handle), time.time()
        self._facts = _facts(self.status)
        self.size = self._facts[2]
        _recent.put(self._path, _Handle(handle, self._facts))

    def read(self, size: int, offset: int) -> bytes:
        """Reads from any thread. Raises `Unreadable` if the file has changed since it was listed, or ends too early."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Unreadable("the archive ends before this file does", lost=True)
        held = _recent.get(self._path)
        if held is None or held.facts != self._facts:
            held = _Handle(open_regular(self._path))
            _recent.put(self._path, held)
            if held.facts != self._facts:
                raise Unreadable("the archive has changed since it was listed", lost=True)
        try:
            return read_at(held.number, size, offset)
        except OSError:
            _recent.drop(self._path)  # the next try opens the file again, which helps if a network share was mounted again
            raise


def _facts(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Handle:
    """A descriptor that is closed when the last thread that reads from it has finished."""

    def __init__(self, number: int, facts: tuple[int, int, int, int] | None = None) -> None:
        self.number, self.facts = number, facts or _facts(os.fstat(number))
        weakref.finalize(self, os.close, number)


class _Recent:
    """The archives that were read last. A dictionary's single operations are safe between threads."""

    def __init__(self) -> None:
        self._handles: OrderedDict[Path, _Handle] = OrderedDict()

    def get(self, path: Path) -> _Handle | None:
        held = self._handles.get(path)
        if held is not None:
            with suppress(KeyError):  # another thread has dropped it; it stays open as long as it is held here
                self._handles.move_to_end(path)
        return held

    def drop(self, path: Path) -> None:
        self._handles.pop(path, None)

    def put(self, path: Path, handle: _Handle) -> None:
        self._handles[path] = handle
        while len(self._handles) > OPEN_ARCHIVES:
            with suppress(KeyError):
                self._handles.popitem(last=False)


_recent = _Recent()
