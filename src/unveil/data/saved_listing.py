"""Saves where the files of a tar lie, so that the next process need not read all of its headers again.

A listing is saved outside of DATA, in `$UNVEIL_CACHE` or `~/.cache/unveil`. It is only a shortcut: without it, the tar is read once
more. It is used if the size and the times of the tar are the same as before, and so is a sample of its headers. A listing that is
damaged, or of another tar or another version of unveil, is ignored, and so is a folder that cannot be written.
"""

import hashlib
import json
import os
import tarfile
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from unveil.atomic_files import WriteError, replacing

VERSION = 1
"""To be increased when the same tar is listed in another way, or a listing is saved in another way."""
WORTH_SAVING = 1000
"""A tar with fewer files is listed faster than its listing is found."""
SETTLED_SECONDS = 3
"""The listing of a tar that was changed less than this time before it was opened is not saved: file systems count time in steps,
so another change might not show."""
SAMPLED_HEADERS = 16
DIGEST = 32
"""Bytes of SHA-256, with which a saved listing begins."""


class Listing(NamedTuple):
    """The files of a tar, sorted by the code points of their names."""

    names: list[str]
    offsets: "array[int]"
    """Where the data of each file begins."""
    sizes: "array[int]"
    refused: dict[str, str]
    """Excluded files, with the reason."""


class OpenFile(Protocol):
    """A tar that is read from any thread."""

    status: os.stat_result
    opened: float
    """The time of `status`."""

    def read(self, size: int, offset: int) -> bytes: ...


def cache_folder() -> Path:
    """The folder for what can be computed again. Raises `RuntimeError` if there is no home."""
    chosen = os.environ.get("UNVEIL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "unveil"


def load_listing(path: Path, file: OpenFile) -> Listing | None:
    """The saved listing of a tar; None if there is none that is surely right.

    Args:
        path: The tar.
        file: The same, open.
    """
    try:
        raw = _place(path).read_bytes()
        if hashlib.sha256(memoryview(raw)[DIGEST:]).digest() != raw[:DIGEST]:
            return None
        end = raw.index(b"\n", DIGEST)
        facts = json.loads(raw[DIGEST:end])
        if facts["tar"] != _identity(file.status):
            return None
        start, parts = end + 1, list[bytes]()
        for length in facts["lengths"]:
            parts.append(raw[start : start + length])
            start += length
        offsets, sizes = array("q", parts[1]), array("q", parts[2])
        if _sample(file, offsets) != facts["sample"]:
            return None
        names = parts[0].decode("utf-8", "surrogateescape").split("\0") if len(offsets) else []
        return Listing(names, offsets, sizes, facts["refused"]) if len(names) == len(offsets) == len(sizes) else None
    except Exception:  # whatever is wrong with it, the tar itself tells the same
        return None


def save_listing(path: Path, file: OpenFile, listing: Listing) -> None:
    """Saves the listing of a tar, if that is worth it and possible."""
    names, offsets, sizes, refused = listing
    newest = max(file.status.st_mtime, file.status.st_ctime)
    if len(names) < WORTH_SAVING or newest > file.opened - SETTLED_SECONDS:
        return
    with suppress(WriteError, OSError, RuntimeError, UnicodeError):
        parts = ["\0".join(names).encode("utf-8", "surrogateescape"), offsets.tobytes(), sizes.tobytes()]
        facts = {
            "tar": _identity(file.status),
            "sample": _sample(file, offsets),
            "refused": refused,
            "lengths": [len(part) for part in parts],
        }
        content = b"".join([json.dumps(facts).encode(), b"\n", *parts])
        with replacing(_place(path), DIGEST + len(content)) as fresh:
            fresh.write_bytes(hashlib.sha256(content).digest() + content)


def _place(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return cache_folder() / "listings" / key[:2] / key[2:]  # in many folders: a dataset may have thousands of shards


def _identity(status: os.stat_result) -> list[object]:
    """What differs if a tar is another one, or is read in another way."""
    return [VERSION, tarfile.ENCODING, array("q").itemsize, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sample(file: OpenFile, offsets: Sequence[int]) -> str:
    """The SHA-256 of the headers before some files, evenly spaced, and of the end of the tar."""
    digest = hashlib.sha256()
    places = np.linspace(0, len(offsets) - 1, min(SAMPLED_HEADERS, len(offsets))).astype(int).tolist()
    for offset in [offsets[place] - tarfile.BLOCKSIZE for place in places] + [max(0, file.status.st_size - tarfile.BLOCKSIZE)]:
        digest.update(file.read(min(tarfile.BLOCKSIZE, file.status.st_size - offset), offset))
    return digest.hexdigest()
