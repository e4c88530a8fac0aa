"""Folders and archives (tar, zip, or shards of them) behind one interface. They are listed once; any thread can then read files.

Nothing is extracted to the disk, so a member called `../../etc/passwd` is only a name. Files are read with `os.pread`, which uses
no file position, so threads and forked workers do not disturb each other.
"""

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from unveil.data.images import FILE_LIMIT
from unveil.data.pixels import Unreadable
from unveil.errors import UnveilError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
_TOO_LARGE = f"larger than {FILE_LIMIT:,} bytes"


class Archive(ABC):
    """Named files with their sizes, sorted by the code points of their names. `refused` maps excluded files to the reason."""

    names: list[str]
    sizes: list[int]
    refused: dict[str, str]

    @abstractmethod
    def read(self, index: int, limit: int = FILE_LIMIT) -> bytes:
        """The first `limit` bytes of a file; safe to call from several threads.

        Raises:
            OSError: If the file cannot be read.
            Unreadable: If the archive is damaged at this file.
        """


class Folder(Archive):
    """A folder of any depth. Hidden files are ignored. Each linked folder is followed only once, so cycles end."""

    def __init__(self, path: Path):
        self.refused = {}
        self._root = os.fspath(path)
        sizes: dict[str, int] = {}
        if path.is_dir():
            self._scan(sizes)
        else:  # one image
            self._root = os.fspath(path.parent)
            sizes[path.name] = path.stat().st_size
        self.names = sorted(sizes)
        self.sizes = [sizes[name] for name in self.names]

    def _scan(self, sizes: dict[str, int]) -> None:
        visited: set[tuple[int, int]] = set()
        folders, links = [""], list[str]()
        while folders or links:  # linked folders last, so that a folder is listed under its own name
            prefix = folders.pop() if folders else links.pop()
            try:
                status = os.stat(os.path.join(self._root, prefix))
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
                with os.scandir(os.path.join(self._root, prefix)) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                if not prefix:
                    raise UnveilError(f"cannot list the folder {self._root!r}: {error.strerror}") from None
                self.refused[prefix.rstrip("/")] = f"folder cannot be listed: {error.strerror}"
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                try:
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(name + "/")
                    elif entry.is_file():
                        sizes[name] = entry.stat().st_size
                except OSError as error:
                    self.refused[name] = f"its size cannot be read: {error.strerror}"

    def read(self, index: int, limit: int = FILE_LIMIT) -> bytes:
        if self.sizes[index] > FILE_LIMIT:
            raise Unreadable(_TOO_LARGE)
        with open(os.path.join(self._root, self.names[index]), "rb", buffering=0) as file:
            return file.read() if limit >= self.sizes[index] else file.read(limit)


class Tar(Archive):
    """A tar file. If it is compressed, it is decompressed once into an unnamed temporary file."""

    def __init__(self, path: Path):
        self.refused = {}
        try:
            self._file, self._checked = _decompressed(path)
            members = self._list()
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            raise _damaged(path, error) from None
        self.names = sorted(members)
        self._offsets = [members[name][0] for name in self.names]
        self.sizes = [members[name][1] for name in self.names]

    def _list(self) -> dict[str, tuple[int, int]]:
        members: dict[str, tuple[int, int]] = {}
        length = os.fstat(self._file.fileno()).st_size
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                name = _clean(member.name)
                tar.members = []  # type: ignore[attr-defined]  # not in the stubs; else a million of them would stay in memory
                if not member.isreg() or not name:
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"the data of {name!r} is cut short")
                if member.issparse() or member.size > FILE_LIMIT:
                    self.refused[name] = "sparse file in a tar" if member.issparse() else _TOO_LARGE
                else:
                    members[name] = (member.offset_data, member.size)
            end = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, tar.offset)
        if end.strip(b"\0"):  # tarfile takes a broken header for the end
            raise tarfile.ReadError(f"broken header at byte {tar.offset:,}")
        if not end and not self._checked:  # a truncated download may happen to end between two files
            raise tarfile.ReadError("it has no end mark")
        return members

    def read(self, index: int, limit: int = FILE_LIMIT) -> bytes:
        return _read_at(self._file.fileno(), min(limit, self.sizes[index]), self._offsets[index])


class Zip(Archive):
    """A zip file. Python's zipfile reads only the table of contents, because threads cannot share its file position."""

    def __init__(self, path: Path):
        self.refused = {}
        try:
            with zipfile.ZipFile(path) as table:
                entries = table.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise _damaged(path, error) from None
        members: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = _clean(entry.filename.replace("\\", "/"))
            if not name or entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16):
                continue
            if entry.flag_bits & 1:
                self.refused[name] = "encrypted"
            elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self.refused[name] = f"compressed by zip method {entry.compress_type}, expected stored or deflated"
            elif max(entry.file_size, entry.compress_size) > FILE_LIMIT:
                self.refused[name] = _TOO_LARGE
            else:
                members[name] = entry
        self.names = sorted(members)
        self._entries = [members[name] for name in self.names]
        self.sizes = [entry.file_size for entry in self._entries]
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, index: int, limit: int = FILE_LIMIT) -> bytes:
        entry = self._entries[index]
        header = _read_at(self._handle, 30, entry.header_offset)
        if header[:4] != b"PK\3\4":
            raise Unreadable("damaged zip: no file at the offset in its table")
        skip = 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        whole = limit >= entry.file_size
        packed = entry.compress_size if whole else min(entry.compress_size, limit + 1024)
        raw = _read_at(self._handle, packed, entry.header_offset + skip)
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            try:
                raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(1, min(limit, entry.file_size)))
            except zlib.error as error:
                raise Unreadable(f"damaged zip: {error}") from None
        if whole and (len(raw) != entry.file_size or zlib.crc32(raw) != entry.CRC):
            raise Unreadable("damaged zip: the checksum does not match")
        return raw[:limit]


class Shards(Archive):
    """Several archives as one. The name of a file begins with the stem of its shard."""

    def __init__(self, paths: Sequence[Path]):
        self._archives = [open_archive(path) for path in paths]
        self.stems = stems = [_stem(path) for path in paths]
        rows = []
        for number, (stem, archive) in enumerate(zip(stems, self._archives, strict=True)):
            rows += [(f"{stem}/{name}", archive.sizes[i], number, i) for i, name in enumerate(archive.names)]
        rows.sort()
        self.refused = {
            f"{stem}/{name}": reason
            for stem, archive in zip(stems, self._archives, strict=True)
            for name, reason in archive.refused.items()
        }
        self.names = [row[0] for row in rows]
        self.sizes = [row[1] for row in rows]
        self._locations = [row[2:] for row in rows]

    def read(self, index: int, limit: int = FILE_LIMIT) -> bytes:
        shard, inner_index = self._locations[index]
        return self._archives[shard].read(inner_index, limit)


def open_archive(path: Path) -> Archive:
    """Lists a tar (plain or compressed) or a zip, by its first bytes. Raises `UnveilError` if it is neither, or damaged."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UnveilError(f"cannot open {str(path)!r}: {error.strerror}") from None
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        raise UnveilError(f"{str(path)!r} is compressed with zstd, which is not supported: decompress it with `zstd -d` first")
    return Zip(path) if head.startswith((b"PK\3\4", b"PK\5\6")) else Tar(path)


def is_archive(path: Path) -> bool:
    """Whether a file has the suffix of a tar or zip."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _clean(name: str) -> str:
    """The name of a member as a relative path without `.` and `..`, or "" if it is hidden."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "" if any(part.startswith(".") or part == "__MACOSX" for part in parts) else "/".join(parts)


def _decompressed(path: Path) -> tuple[IO[bytes], bool]:
    """Returns the tar, and whether it was compressed. If so, a checksum was verified, so the tar is complete."""
    file: IO[bytes] = open(path, "rb")  # noqa: SIM115 (it is open as long as the archive exists)
    head = file.read(6)
    file.seek(0)
    unpackers: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
    for magic, unpacker in unpackers:
        if head.startswith(magic):
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115
            with file, unpacker(file) as stream:
                shutil.copyfileobj(stream, unpacked, 1 << 20)
            unpacked.flush()
            unpacked.seek(0)
            return unpacked, True
    return file, False


def _read_at(handle: int, size: int, offset: int) -> bytes:
    raw = os.pread(handle, size, offset)
    if len(raw) == size:
        return raw
    stream = io.BytesIO()  # one call reads up to 2 GiB, or less if a signal interrupts it
    while raw:
        stream.write(raw)
        raw = os.pread(handle, size - stream.tell(), offset + stream.tell())
    if stream.tell() < size:
        raise Unreadable("the archive ends before this file does")
    return stream.getvalue()


def _damaged(path: Path, error: Exception) -> UnveilError:
    if isinstance(error, OSError) and error.errno is not None:
        return UnveilError(f"cannot read {str(path)!r}: {error.strerror}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnveilError(f"{str(path)!r} is not a complete tar or zip ({reason}): if it was downloaded, download it again")
