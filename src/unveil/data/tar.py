"""Tar files, plain or compressed. They are listed once, and any thread can then read their files."""

import bz2
import gzip
import lzma
import operator
import os
import shutil
import tarfile
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from unveil.data.archive import Archive, clean_name, damaged
from unveil.data.pixels import Unreadable
from unveil.data.regular_files import FILE_LIMIT, RATIO, SMALL, TOO_LARGE, ReopenedFile, open_regular, read_at
from unveil.data.saved_listing import Listing, load_listing, save_listing
from unveil.data.tar_headers import Bytes, Window, plain_files
from unveil.errors import UnveilError

HEADER_LIMIT = 2**20
"""Maximum number of bytes of the headers of one file in a tar. Long names and extended headers take less than a hundredth of it."""
CHUNK = 2**20
"""Compressed tar files are unpacked in pieces of this many bytes."""
RESERVE = 256 * 2**20
"""Bytes of the disk that unpacking leaves free."""
XZ_MEMORY = 256 * 2**20
"""Maximum memory for unpacking a .tar.xz; `xz -9` needs 65 MiB."""


class Spool:
    """An unnamed temporary file for unpacked tar files, one after the other. It vanishes with the process, however that ends."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._length = 0

    def unpack(self, pieces: Iterator[bytes], path: Path, packed: int) -> "Unpacked":
        """Appends what was compressed in `path`, a file of `packed` bytes.

        Raises:
            UnveilError: If it is suspiciously large, or the disk has no space for it.
        """
        folder, start, most = tempfile.gettempdir(), self._length, max(SMALL, RATIO * packed)
        advice = "unpack it yourself, and give the folder as DATA"
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as the archives exist)
            for number, piece in enumerate(pieces):
                if number % 16 == 0 and shutil.disk_usage(folder).free < RESERVE + 16 * CHUNK:
                    raise UnveilError(
                        f"{str(path)!r} does not fit into {folder}, which has less than {(RESERVE + 16 * CHUNK) >> 20} MiB left: "
                        f"set TMPDIR to a folder on a larger disk, or {advice}"
                    )
                self._file.write(piece)
                self._length += len(piece)
                if self._length - start > most:
                    raise UnveilError(
                        f"{str(path)!r} unpacks to more than {RATIO} times its {packed:,} bytes, as no images do: "
                        f"if it is not made to fill the disk, {advice}"
                    )
            self._file.flush()
        except BaseException:
            self._shrink(start)
            raise
        return Unpacked(self._file, start, self._length - start)

    def _shrink(self, length: int) -> None:
        if self._file is not None:
            self._file.seek(length)
            self._file.truncate()
        self._length = length


class Unpacked:
    """A part of a spool."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self.size = file, start, size

    def read(self, size: int, offset: int) -> bytes:
        return read_at(self._file.fileno(), size, self._start + offset)


class Tar(Archive):
    """A tar file. If it is compressed, it is decompressed once into a temporary file.

    Args:
        path: The file.
        spool: Where to decompress it; by default a new temporary file.
    """

    def __init__(self, path: Path, spool: Spool | None = None):
        try:
            self._bytes, is_checked = _opened(path, spool or Spool())
            known = load_listing(path, self._bytes) if isinstance(self._bytes, ReopenedFile) else None
            listing = known or self._list(is_checked)
        except UnveilError:
            raise
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, RecursionError) as error:
            raise damaged(path, error) from None
        except Unreadable as error:
            raise UnveilError(f"cannot read {str(path)!r}: {error.reason}") from None
        self.names, self._offsets, self.sizes, self.refused = listing
        if known is None and isinstance(self._bytes, ReopenedFile):
            save_listing(path, self._bytes, listing)

    def _list(self, is_checked: bool) -> Listing:
        names, offsets, sizes, refused = list[str](), array("q"), array("q"), dict[str, str]()
        headers, window = _Headers(self._bytes), Window(self._bytes)
        position = 0
        with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]  # it needs no more than these methods
            while True:
                if set(tar.pax_headers) <= {"comment"}:  # else all headers that follow may mean something else
                    plain = plain_files(window, position, self._bytes.size, FILE_LIMIT)
                    for name, offset, size in zip(plain.names, plain.offsets, plain.sizes, strict=True):
                        if name := clean_name(name):
                            names.append(name)
                            offsets.append(offset)
                            sizes.append(size)
                    if plain.next_header > position:
                        headers.go_to(tar, plain.next_header)
                member = headers.next_of(tar)
                if member is None:
                    break
                position = tar.offset
                tar.members = []  # else a million of them would stay in memory
                name = clean_name(member.name)
                if member.isdir() or not name:
                    continue
                if not member.isreg():
                    refused[name] = "a link in a tar" if member.issym() or member.islnk() else "a device or pipe in a tar"
                    continue
                if member.offset_data + member.size > self._bytes.size:
                    raise tarfile.ReadError(f"the data of {name!r} is cut short")
                if member.issparse() or member.size > FILE_LIMIT:
                    refused[name] = "sparse file in a tar" if member.issparse() else TOO_LARGE
                else:
                    names.append(name)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
            end = headers.block(tar.offset, tarfile.BLOCKSIZE)
        if end.strip(b"\0"):  # tarfile takes a broken header for the end
            raise tarfile.ReadError(f"broken header at byte {tar.offset:,}")
        if not end and not is_checked:  # a truncated download may happen to end between two files
            raise tarfile.ReadError("it has no end mark")
        return _sorted(names, offsets, sizes, refused)

    def _read(self, index: int, limit: int) -> bytes:
        return self._bytes.read(min(limit, self.sizes[index]), self._offsets[index])


def _sorted(names: list[str], offsets: "array[int]", sizes: "array[int]", refused: dict[str, str]) -> Listing:
    """Sorts files by their names. If there are several of the same name, the last one counts, as in a tar that was appended to."""
    if all(map(operator.lt, names, islice(names, 1, None))):
        return Listing(names, offsets, sizes, refused)
    last = {name: place for place, name in enumerate(names)}
    order = sorted(last)
    places = [last[name] for name in order]
    return Listing(order, array("q", [offsets[i] for i in places]), array("q", [sizes[i] for i in places]), refused)


class _Headers:
    """The headers of a tar as a file, with a limit on the bytes for one member: a name could be gigabytes long."""

    def __init__(self, source: Bytes) -> None:
        self._source = source
        self._position, self._left = 0, HEADER_LIMIT  # tarfile reads the first header on opening
        self._cached, self._start = b"", 0

    def next_of(self, tar: Any) -> tarfile.TarInfo | None:
        """The next member of a tar that reads from this file."""
        self._left = HEADER_LIMIT
        member: tarfile.TarInfo | None = tar.next()
        return member

    def go_to(self, tar: Any, offset: int) -> None:
        """Lets the tar go on at a header."""
        tar.firstmember, tar.offset = None, offset  # it reads the first member when it is opened

    def block(self, offset: int, size: int) -> bytes:
        """Bytes of the tar, fewer at its end."""
        size = max(0, min(size, self._source.size - offset))
        if not self._start <= offset <= offset + size <= self._start + len(self._cached):
            ahead = max(size, min(8192, self._source.size - offset))
            self._cached, self._start = self._source.read(ahead, offset), offset
        return self._cached[offset - self._start : offset - self._start + size]

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"a header of more than {HEADER_LIMIT:,} bytes")
        found = self.block(self._position, size)
        self._position += len(found)
        return found

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self._position = position + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position


def _opened(path: Path, spool: Spool) -> tuple[Bytes, bool]:
    """Returns the tar, and whether it was compressed. If so, a checksum was verified, so the tar is complete."""
    handle = open_regular(path)
    file = ReopenedFile(path, handle)
    head = file.read(min(6, file.size), 0)
    unpackers: tuple[tuple[bytes, Callable[[IO[bytes]], Iterator[bytes]]], ...] = (
        (b"\x1f\x8b", lambda packed: _pieces(gzip.GzipFile(fileobj=packed))),
        (b"BZh", lambda packed: _pieces(bz2.BZ2File(packed))),
        (b"\xfd7zXZ\0", _xz_pieces),
    )
    for magic, unpacker in unpackers:
        if head.startswith(magic):
            with os.fdopen(open_regular(path), "rb") as packed:
                return spool.unpack(unpacker(packed), path, file.size), True
    return file, False


def _pieces(stream: Any) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(CHUNK):
            yield piece


def _xz_pieces(packed: IO[bytes]) -> Iterator[bytes]:
    """Unpacks one stream or several, as `lzma.open` does, but with a limit on the memory, which the header of a stream chooses."""
    rest = packed.read(CHUNK)
    while rest:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
        while not unpacker.eof:
            if unpacker.needs_input and not rest:
                rest = packed.read(CHUNK)
                if not rest:
                    raise EOFError("it ends before its end mark")
            yield unpacker.decompress(rest, CHUNK)
            rest = b""
        rest = (unpacker.unused_data or packed.read(CHUNK)).lstrip(b"\0")  # streams may be padded with zeros
