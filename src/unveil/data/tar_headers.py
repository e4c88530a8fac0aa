"""Reads the headers of many plain files in a tar at once; Python's tarfile takes 50 µs for each.

A tar is a chain: a header of 512 bytes says how many bytes of data follow, and so where the next header lies. The walk along the
chain looks at little else. Afterwards all headers of a batch are checked together, as arrays. What is unusual in any way (a link, a
sparse file, a number in another notation, a wrong checksum) is left to tarfile, so the result is the same.
"""

import tarfile
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK = tarfile.BLOCKSIZE
BATCH = 4096
"""Maximum number of headers that are checked together."""
NEAR, FAR = 2**13, 2**20
"""Bytes to read at once: from `NEAR`, if files are large, up to `FAR`, if thousands of headers lie that close to each other."""
FILES, FOLDER, PAX, GNU_NAME = b"0\0", ord("5"), ord("x"), ord("L")
HARMLESS = {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}
"""Records of a pax header that change neither the name nor the data of a file."""
NUMBERS = (slice(100, 108), slice(108, 116), slice(116, 124), slice(124, 136), slice(136, 148), slice(329, 337), slice(337, 345))
CHECKSUM = slice(148, 156)


class Bytes(Protocol):
    """Reads from any thread."""

    size: int

    def read(self, size: int, offset: int) -> bytes: ...


class PlainFiles(NamedTuple):
    """Consecutive files of a tar, in their order, and where the walk has ended."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    next_header: int
    """The offset of the first header that is not among them."""


class Window:
    """Reads a file from the beginning to the end, in pieces that are larger where more of it is used."""

    def __init__(self, source: Bytes) -> None:
        self._source = source
        self._bytes, self._start, self._ahead, self._uses = b"", 0, NEAR, 0

    def read(self, size: int, offset: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        if offset >= self._source.size:
            return b""
        at = offset - self._start
        if at < 0 or at + size > len(self._bytes):
            self._ahead = min(self._ahead * 2, FAR) if self._uses > self._ahead // 4096 else max(self._ahead // 2, NEAR)
            length = min(max(size, self._ahead), self._source.size - offset)
            self._bytes, self._start, self._uses, at = self._source.read(length, offset), offset, 0, 0
        self._uses += 1
        return self._bytes[at : at + size]


def plain_files(window: Window, start: int, end: int, most: int) -> PlainFiles:
    """Reads up to `BATCH` headers.

    Args:
        window: The tar.
        start: The offset of a header.
        end: The size of the tar in bytes.
        most: The maximum size of a file.
    """
    headers, firsts = list[bytes](), list[int]()  # each header, and where those of its file begin: a pax header may come before it
    rows, names, offsets, sizes = list[int](), list[str](), list[int](), list[int]()
    offset = first = start
    long_name: str | None = None
    while len(headers) < BATCH:
        header = window.read(BLOCK, offset)
        if len(header) < BLOCK:
            break
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            break
        kind, data = header[156], offset + BLOCK
        if not 0 <= size <= min(most, end - data):
            break
        if kind in FILES:
            name = _name(header) if long_name is None else long_name
            if name is None or (kind == 0 and header[:100].rstrip(b"\0").endswith(b"/")):  # an old way to write a folder
                break
            rows.append(len(headers))
            names.append(name)
            offsets.append(data)
            sizes.append(size)
        elif kind == FOLDER:
            if size:
                break
        else:
            found = _long_name(kind, window.read(size, data), size) if size <= NEAR and first == offset else None
            if found is None:
                break
            long_name = found or None
        headers.append(header)
        firsts.append(first)
        offset = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in FILES or kind == FOLDER:
            first, long_name = offset, None
    count = _count_sound(headers)
    if count < len(headers):
        first = firsts[count]
    kept = int(np.searchsorted(rows, count))
    return PlainFiles(names[:kept], offsets[:kept], sizes[:kept], first)


def _name(header: bytes) -> str | None:
    """The name of a file by its header; None if the header may be of a variant in which it means something else."""
    name = header[:100].partition(b"\0")[0]
    if header[345]:
        if header[257:263] != b"ustar\0":
            return None
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode(tarfile.ENCODING, "surrogateescape")


def _long_name(kind: int, body: bytes, size: int) -> str | None:
    """The name that a pax header, or one of GNU tar, gives the next file; "" if it gives none; None for all else."""
    if len(body) < size:
        return None
    if kind == GNU_NAME:
        return body.partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape") or None
    if kind != PAX:
        return None
    name, start = "", 0
    while start < size:
        length = body[start : start + 20].partition(b" ")[0]
        end = start + int(length) if length.isdigit() else 0
        if not start < end <= size or body[end - 1 : end] != b"\n":
            return None
        keyword, equals, value = body[start + len(length) + 1 : end - 1].partition(b"=")
        if keyword == b"path" and value:
            try:
                name = value.decode("utf-8").rstrip("/")
            except UnicodeDecodeError:
                return None
            if not name or "\0" in name:
                return None
        elif keyword not in HARMLESS or not equals:
            return None
        start = end
    return name


def _count_sound(headers: Sequence[bytes]) -> int:
    """The number of headers before the first that has a number in an unusual notation, or a wrong checksum."""
    table = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    sound = np.ones(len(table), bool)
    for columns in (*NUMBERS, CHECKSUM):
        sound &= _are_octal(table[:, columns])
    digits = table[:, CHECKSUM][:, :6].astype(np.int64) - ord("0")
    stated = (digits * 8 ** np.arange(5, -1, -1)).sum(axis=1)
    sound &= (digits >= 0).all(axis=1) & (table[:, CHECKSUM][:, 6:] <= ord(" ")).all(axis=1)
    own = table.sum(axis=1, dtype=np.int64) - table[:, CHECKSUM].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    sound &= own == stated
    return len(sound) if sound.all() else int(sound.argmin())


def _are_octal(field: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows are octal digits, and after them only spaces and zero bytes."""
    digit = (field >= ord("0")) & (field <= ord("7"))
    blank = (field == 0) | (field == ord(" "))
    sound: NDArray[np.bool_] = (digit | blank).all(axis=1) & ~(digit[:, 1:] & blank[:, :-1]).any(axis=1)
    return sound
