"""Folders and archives (tar, zip, or shards of them) behind one interface. They are listed once; any thread can then read files.

No member is extracted under its name, so a member called `../../etc/passwd` is only a name. Files are read with `os.pread`, which
uses no file position, so threads and forked workers do not disturb each other.
"""

import os
import stat
import zipfile
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

from unveil.data.archive import Archive as Archive
from unveil.data.archive import clean_name, damaged
from unveil.data.folder import Folder as Folder
from unveil.data.pixels import Unreadable
from unveil.data.regular_files import FILE_LIMIT, RATIO, TOO_LARGE, ReopenedFile, is_inflated, open_regular
from unveil.data.tar import Spool, Tar
from unveil.errors import UnveilError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")


class Zip(Archive):
    """A zip file. Python's zipfile reads only the table of contents, because threads cannot share its file position."""

    def __init__(self, path: Path):
        self.refused = {}
        try:
            with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as table:
                entries = table.infolist()
            self._bytes = ReopenedFile(path, open_regular(path))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
            # zipfile raises the last two for a version or a compression that it does not know, and for sizes beyond those of files
            raise damaged(path, error) from None
        members: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = clean_name(entry.filename.replace("\\", "/"))
            if not name or entry.is_dir():
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                self.refused[name] = "a link in a zip"
            elif entry.flag_bits & 1:
                self.refused[name] = "encrypted"
            elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self.refused[name] = f"compressed by zip method {entry.compress_type}, expected stored or deflated"
            elif max(entry.file_size, entry.compress_size) > FILE_LIMIT:
                self.refused[name] = TOO_LARGE
            elif is_inflated(entry.file_size, entry.compress_size):
                self.refused[name] = f"unpacks to {entry.file_size:,} bytes, over {RATIO} times its size in the zip"
            else:
                members[name] = entry
        self.names = sorted(members)
        kept = [members[name] for name in self.names]
        self.sizes = array("q", [entry.file_size for entry in kept])
        # A million objects of zipfile would take 700 MB.
        self._packed, self._offsets = array("q", [x.compress_size for x in kept]), array("q", [x.header_offset for x in kept])
        self._checksums, self._methods = array("q", [x.CRC for x in kept]), array("b", [x.compress_type for x in kept])

    def _read(self, index: int, limit: int) -> bytes:
        size, packed, offset = self.sizes[index], self._packed[index], self._offsets[index]
        header = self._bytes.read(30, offset)
        if header[:4] != b"PK\3\4":
            raise Unreadable("damaged zip: no file at the offset in its table")
        skip = 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        whole = limit >= size
        raw = self._bytes.read(packed if whole else min(packed, limit + 1024), offset + skip)
        if self._methods[index] == zipfile.ZIP_DEFLATED:
            try:
                raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(1, min(limit, size)))
            except zlib.error as error:
                raise Unreadable(f"damaged zip: {error}") from None
        if whole and (len(raw) != size or zlib.crc32(raw) != self._checksums[index]):
            raise Unreadable("damaged zip: the checksum does not match")
        return raw[:limit]


class Shards(Archive):
    """Several archives as one. The name of a file begins with the stem of its shard."""

    def __init__(self, paths: Sequence[Path]):
        spool = Spool()  # one for all, because each temporary file stays open
        self._archives = [open_archive(path, spool) for path in paths]
        self.stems = stems = [_stem(path) for path in paths]
        names, sizes, shards, places = list[str](), array("q"), array("q"), array("q")
        for number, (stem, archive) in enumerate(zip(stems, self._archives, strict=True)):
            names += [f"{stem}/{name}" for name in archive.names]
            sizes.extend(archive.sizes)
            shards.extend([number] * len(archive.sizes))
            places.extend(range(len(archive.sizes)))
            archive.names = []  # these are needed no more: a million names take 100 MB
        by_name = names.__getitem__ if len(set(stems)) == len(stems) else lambda i: (names[i], sizes[i])
        order = sorted(range(len(names)), key=by_name)
        self.refused = {
            f"{stem}/{name}": reason
            for stem, archive in zip(stems, self._archives, strict=True)
            for name, reason in archive.refused.items()
        }
        self.names = [names[i] for i in order]
        self.sizes, self._shards, self._places = (array("q", [column[i] for i in order]) for column in (sizes, shards, places))

    def _read(self, index: int, limit: int) -> bytes:
        return self._archives[self._shards[index]]._read(self._places[index], limit)


class Together(Archive):
    """A folder, and the archives that lie in it. The name of a file in an archive begins with the stem of the archive."""

    def __init__(self, folder: Folder, paths: Sequence[Path]):
        shards, packed = Shards(paths), {path.name for path in paths}
        places: list[tuple[str, Archive, int]] = [(name, folder, i) for i, name in enumerate(folder.names) if name not in packed]
        places += [(name, shards, i) for i, name in enumerate(shards.names)]
        places.sort(key=lambda place: place[0])
        self.names = [name for name, _, _ in places]
        self._places = [(archive, index) for _, archive, index in places]
        self.sizes = array("q", [archive.sizes[index] for archive, index in self._places])
        self.refused = {**shards.refused, **folder.refused}

    def _read(self, index: int, limit: int) -> bytes:
        archive, place = self._places[index]
        return archive._read(place, limit)


def open_archive(path: Path, spool: Spool | None = None) -> Archive:
    """Lists a tar (plain or compressed) or a zip, by its first bytes.

    Args:
        path: The file.
        spool: Where to decompress a compressed tar; by default a temporary file of its own.

    Raises:
        UnveilError: If it is neither, or is damaged.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            head = file.read(4)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise UnveilError(f"cannot open {str(path)!r}: {error.strerror}") from None
    except Unreadable as error:
        raise UnveilError(f"cannot open {str(path)!r}: {error.reason}") from None
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        raise UnveilError(f"{str(path)!r} is compressed with zstd, which is not supported: decompress it with `zstd -d` first")
    if status.st_blocks and is_inflated(status.st_size, 512 * status.st_blocks):
        raise UnveilError(f"{str(path)!r} is sparse: most of it is not on the disk; if it was downloaded, download it again")
    return Zip(path) if head.startswith((b"PK\3\4", b"PK\5\6")) else Tar(path, spool)


def is_archive(path: Path) -> bool:
    """Whether a file has the suffix of a tar or zip."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
