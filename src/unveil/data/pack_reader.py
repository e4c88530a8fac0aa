"""Reads a pack: images that are already decoded and shrunk, in a few large files.

    unveil-pack.json     settings, splits, classes, skipped files; size and SHA-256 of every other file, and its own SHA-256
    index.safetensors    one row per image: shard, offset, size, label, checksum, name
    shard-00000.bin      the images, one after the other: JPEG files, or raw pixels
    skipped.txt          the files that could not be packed, for people to read; only if there are any

A pack holds numbers, JSON and JPEG files, so it cannot run code. `unveil.data.pack_writer` writes it. The keys of its JSON file
never change, so that packs of earlier versions stay readable: "pictures" is the number of images, "pixel_limit" is `max_pixels`.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from unveil.data.labels import Labels
from unveil.data.pixels import Pixels, Unreadable
from unveil.data.regular_files import open_regular, read_at
from unveil.errors import UnveilError
from unveil.json_files import parse_json

FORMAT = "unveil pack 1"
FACTS = "unveil-pack.json"
UNFINISHED = "unveil-packing.json"
"""The file in the folder of an incomplete pack, with the settings of the command."""
INDEX = "index.safetensors"
SKIPPED = "skipped.txt"
SHARD_HEAD = b"unveil shard 1\n\0"
"""The first bytes of a shard. Without them, a shard of JPEG files would be taken for an image."""
OPEN_SHARDS = 128
"""Maximum number of open shards. Beyond it, the least recently used shard is closed."""

Facts = dict[str, Any]
Table = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a pack."""

    names: list[str]
    labels: Labels | None
    classes: list[str]
    skipped: dict[str, str]
    fingerprint: str
    read: Callable[[int], bytes | Pixels]
    shrunk_to: int | None
    """The maximum short side of the images, in pixels, if some have reached it; None if none was shrunk."""
    sizes: NDArray[np.int64]
    """Bytes of each image; 0 if it cannot be read."""


class Pack:
    """An opened pack. Opening verifies the checksums of its facts and its index, and the sizes of its shards.

    Attributes:
        folder: The folder of the pack.
        facts: The content of `unveil-pack.json`.
        table: The columns of the index.

    Raises:
        UnveilError: If the folder is not a pack, or the pack is incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / FACTS).is_file():
            if (folder / UNFINISHED).is_file():
                raise UnveilError(f"{folder} is an incomplete pack: run the same `unveil pack` command again to finish it")
            raise UnveilError(f"{folder} is not a pack: it has no {FACTS}")
        try:
            self.facts = unseal(folder / FACTS)
            if self.facts["format"] != FORMAT:
                raise UnveilError(
                    f"{folder} has the format {self.facts['format']!r}, but this version reads {FORMAT!r}: pack the images again"
                )
            for name, expected in self.files().items():
                found = (folder / name).stat().st_size
                if found != expected["bytes"]:
                    raise ValueError(f"{name} has {found:,} bytes instead of {expected['bytes']:,}")
            raw = (folder / INDEX).read_bytes()
            if hashlib.sha256(raw).hexdigest() != self.facts["index"]["sha256"]:
                raise ValueError(f"the checksum of {INDEX} does not match")
            self.table: Table = load(raw)
            self._check_bounds()
        except OSError as error:
            raise _damaged(folder, f"{error.filename or FACTS}: {error.strerror or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, UnveilError):
                raise
            raise _damaged(folder, " ".join(str(error).split()) or type(error).__name__) from None
        self._raw = self.facts["settings"]["store"] == "raw"
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(partial(_open_shard, folder))

    def files(self) -> dict[str, Facts]:
        """Size and SHA-256 of every file except `unveil-pack.json`, which contains its own checksum."""
        shards = {shard_name(number): facts for number, facts in enumerate(self.facts["shards"])}
        others = {INDEX: self.facts["index"], SKIPPED: self.facts["skipped"]}
        return {name: facts for name, facts in (shards | others).items() if facts}

    def split(self, name: str) -> Split:
        """The images of a split, by its name.

        Images that could not be packed keep their place, so that a run on the pack uses the same train and test images, in the same
        order, as one on the original. Packs of earlier versions do not record their places.
        """
        facts = self.facts["splits"][name]
        rows = np.flatnonzero(self.table["split"] == list(self.facts["splits"]).index(name))
        first, last = int(rows[0]), int(rows[-1]) + 1  # the rows of a split are consecutive
        ends = [int(self.table["name_end"][first - 1]) if first else 0, *self.table["name_end"][first:last].tolist()]
        text = self.table["names"].tobytes()
        unreadable = {index: (missing, label) for index, missing, label in facts.get("unreadable", ())}
        row_of = np.full(last - first + len(unreadable), -1)
        row_of[[index for index in range(len(row_of)) if index not in unreadable]] = np.arange(first, last)
        names, labels = [""] * len(row_of), np.full(len(row_of), -1, dtype=np.int64)
        for index, (start, end) in zip(np.flatnonzero(row_of >= 0).tolist(), pairwise(ends), strict=True):
            names[index] = text[start:end].decode("utf-8", "surrogateescape")
        labels[row_of >= 0] = self.table["label"][first:last]
        for index, (missing, label) in unreadable.items():
            names[index], labels[index] = missing, label

        sizes = np.zeros(len(row_of), dtype=np.int64)
        sizes[row_of >= 0] = self.table["bytes"][first:last]
        side = int(self.facts["settings"]["side"])
        shrunk = bool((np.minimum(self.table["height"], self.table["width"])[first:last] == side).any())

        def read(index: int) -> bytes | Pixels:
            if index in unreadable:
                raise Unreadable(facts["skipped"][names[index]])
            return self.read(int(row_of[index]))

        return Split(
            names,
            labels if facts["labelled"] else None,
            list(facts["classes"]),
            dict(facts["skipped"]),
            hashlib.sha256(f"{self.facts['sha256']} {name}".encode()).hexdigest(),
            read,
            side if shrunk else None,
            sizes,
        )

    def read(self, row: int) -> bytes | Pixels:
        """An image: the bytes of a JPEG file, or the raw pixels (H, W, C); safe to call from several threads.

        A shard is not mapped into memory: if a mapped file becomes shorter, or its network share fails, the process is killed.

        Raises:
            Unreadable: If its bytes have changed since it was packed.
            OSError: If the shard cannot be opened or read.
        """
        shard, start, size = (int(self.table[name][row]) for name in ("shard", "offset", "bytes"))
        try:
            file = self._shard(shard)  # held here, so that no other thread closes it
            stored = read_at(file.fileno(), size, start, "the pack has become shorter")
        except OSError:
            self._shard.cache_clear()  # the next try opens the shard again
            raise
        if zlib.crc32(stored) != self.table["crc"][row]:  # releases the GIL while it reads from the disk
            raise Unreadable("damaged in the pack: its checksum does not match")
        if not self._raw:
            return stored
        shape = [int(self.table[side][row]) for side in ("height", "width", "channels")]
        pixels: Pixels = np.frombuffer(stored, "<u2" if self.table["bits"][row] == 16 else np.uint8).reshape(shape)
        return pixels

    def _check_bounds(self) -> None:
        table = {name: column.astype(np.int64) for name, column in self.table.items() if name != "names"}
        length = np.array([shard["bytes"] for shard in self.facts["shards"]])
        size = table["height"] * table["width"] * table["channels"] * (table["bits"] // 8)
        fits = (table["offset"] > 0) & (table["shard"] >= 0) & (table["offset"] + table["bytes"] <= length[table["shard"]])
        if self.facts["settings"]["store"] == "raw":
            fits &= size == table["bytes"]
        if not fits.all():
            raise ValueError(f"{INDEX} does not fit the shards")


def is_pack(folder: Path) -> bool:
    """Whether a folder is a pack, complete or not."""
    return any((folder / name).is_file() for name in (FACTS, UNFINISHED))


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.bin"


def seal(facts: Facts) -> bytes:
    """Facts as JSON. The last entry is the SHA-256 of everything before it."""
    body = json.dumps(facts, indent=1).removesuffix("\n}")
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'.encode()


def unseal(path: Path) -> Facts:
    """Reads a file written with `seal`. Raises `ValueError` if any byte has changed."""
    sealed = path.read_bytes()
    try:
        facts: Facts = parse_json(sealed, path.name)
    except ValueError:
        raise ValueError(f"{path.name} is not JSON") from None
    if seal({key: value for key, value in facts.items() if key != "sha256"}) != sealed:
        raise ValueError(f"the checksum of {path.name} does not match")
    return facts


def _open_shard(folder: Path, number: int) -> FileIO:
    """An open shard. It is closed when it is in use no more."""
    return FileIO(open_regular(folder / shard_name(number)))


def _damaged(folder: Path, fault: str) -> UnveilError:
    return UnveilError(f"the pack {folder} is damaged ({fault}): copy it again, or pack again into another folder")
