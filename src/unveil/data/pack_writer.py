"""Packing, image by image: many threads decode, one writes in order, and a finished shard is never made again.

    .shard-00002.bin.part   synced to the disk
    .rows-00002.json        what is in it, where it began and ended; written whole
    shard-00002.bin         the first one renamed: this makes a shard count

A shard ends before the image that would not fit. So its bytes depend on the images and the settings alone, and neither on
the number of threads nor on where an earlier run was killed.
"""

import hashlib
import io
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from safetensors.numpy import save

from unveil.data.dataset import Progress
from unveil.data.images import Pixels, Unreadable, image_format, read_image
from unveil.data.pack_reader import FACTS, INDEX, SHARD_HEAD, SKIPPED, UNFINISHED, Facts, Table, seal, shard_name, unseal
from unveil.data.sources import Source
from unveil.errors import UnveilError
from unveil.train.checkpoint import sync

T = TypeVar("T")

COLUMNS = {
    "item": np.int64,
    "offset": np.int64,
    "bytes": np.int64,
    "height": np.int32,
    "width": np.int32,
    "channels": np.int32,
    "bits": np.uint8,
    "crc": np.uint32,
}
"""What is known of an image when its shard is written; `item` counts the candidates of all splits."""
JPEG_SIDE = 65_500
"""Pixels of the longest side that libjpeg writes."""
OURS = re.compile(r"\.(shard-\d+\.bin|index\.safetensors|skipped\.txt|unveil-\w+\.json|\.rows-\d+\.json)\.part|\.rows-\d+\.json")
"""What a killed run may leave beside the files of a pack."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What is kept of each image, and how."""

    side: int = 256
    """Images are shrunk, never enlarged, until their short side is this many pixels; 256 suits training at 224."""
    store: Literal["jpeg", "raw"] = "jpeg"
    """JPEG files (8-bit grey or RGB), or bare pixels: 8 or 16 bit, any channels, several times the space, nothing to decode."""
    quality: int = 90
    """JPEG quality, 1 to 100. A JPEG file that needs no shrinking stays as it is where that is at most a tenth larger."""
    channels: int = 0
    """Channels of the images, as for training; 0 keeps what each image has."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""
    shard_bytes: int = 268_435_456
    """A shard ends before the image that would make it larger than this."""
    workers: int = 0
    """Threads that decode; 0 takes one for each core. The files are the same for any number."""


class Stored(NamedTuple):
    """An image as it goes into a shard."""

    data: bytes
    height: int
    width: int
    channels: int
    bits: int


@dataclass(frozen=True)
class Shard:
    """A finished shard: its size and checksum, the candidate that comes after it, and what became of those in it."""

    bytes: int
    sha256: str
    stop: int
    rows: Table
    skipped: dict[int, str]


class Draft:
    """The shard that is being written, under a temporary name."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.rows: list[tuple[int, ...]] = []
        self.skipped: dict[int, str] = {}
        self.size = len(SHARD_HEAD)
        self._digest = hashlib.sha256(SHARD_HEAD)
        self._path = temporary(folder / shard_name(number))
        self._file = self._path.open("wb")
        self._file.write(SHARD_HEAD)

    def add(self, item: int, image: Stored) -> None:
        """Writes an image behind the others."""
        self._file.write(image.data)
        self._digest.update(image.data)
        data, *facts = image
        self.rows.append((item, self.size, len(data), *facts, zlib.crc32(data)))
        self.size += len(data)

    def finish(self, stop: int) -> Shard:
        """Makes it a shard, which ends before the candidate `stop`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        columns = list(zip(*self.rows, strict=True)) or [()] * len(COLUMNS)
        rows: Table = {name: np.array(column, kind) for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)}
        shard = Shard(self.size, self._digest.hexdigest(), stop, rows, self.skipped)
        write(
            rows_path(self.folder, self.number),
            seal(
                {
                    "bytes": shard.bytes,
                    "sha": shard.sha256,
                    "stop": stop,
                    "rows": {name: column.tolist() for name, column in rows.items()},
                    "skipped": {str(item): reason for item, reason in self.skipped.items()},
                }
            ),
        )
        os.replace(self._path, self.folder / shard_name(self.number))
        sync(self.folder)
        return shard

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def pack_shards(splits: Mapping[str, Source], folder: Path, how: PackConfig, progress: Progress) -> list[Shard]:
    """Writes the shards that are not there yet; gives all of them."""
    total = sum(map(len, splits.values()))
    shards = finished_shards(folder)
    first = shards[-1].stop if shards else 0
    progress(first, total)
    if first == total:
        return shards
    draft = Draft(folder, len(shards))
    work = partial(stored_or_reason, tuple(splits.values()), how=how)
    try:
        with closing(in_order(work, range(first, total), how.workers or cores())) as results:
            for item, result in enumerate(results, first):
                if isinstance(result, str):
                    draft.skipped[item] = result
                else:
                    if draft.rows and draft.size + len(result.data) > how.shard_bytes:
                        shards.append(draft.finish(item))
                        draft = Draft(folder, len(shards))
                    draft.add(item, result)
                progress(item + 1, total)
        if not (shards or draft.rows):
            sweep(folder)
            raise UnveilError(f"none of the {total:,} files of {splits['train'].name} can be packed; the first {draft.skipped[0]}")
        shards.append(draft.finish(total))
    finally:
        draft.close()
    return shards


def finished_shards(folder: Path) -> list[Shard]:
    """The shards that an earlier run finished, up to the first that is missing or not as it was written."""
    shards: list[Shard] = []
    with suppress(OSError, ValueError, LookupError):
        while (path := folder / shard_name(len(shards))).is_file():
            facts = unseal(rows_path(folder, len(shards)))
            if path.stat().st_size != facts["bytes"]:
                break
            rows: Table = {name: np.array(facts["rows"][name], kind) for name, kind in COLUMNS.items()}
            skipped = {int(item): reason for item, reason in facts["skipped"].items()}
            shards.append(Shard(facts["bytes"], facts["sha"], facts["stop"], rows, skipped))
    return shards


def finish_pack(splits: Mapping[str, Source], folder: Path, facts: Facts, shards: Sequence[Shard]) -> None:
    """Writes the index, then the file that makes the folder a pack, and removes what was there for resuming only."""
    sources = list(splits.values())
    starts = np.cumsum([0, *map(len, sources)])
    rows = {name: np.concatenate([shard.rows[name] for shard in shards]) for name in COLUMNS}
    items = rows.pop("item")
    split = np.searchsorted(starts, items, side="right") - 1
    known = [(int(part), int(item - starts[part])) for item, part in zip(items, split, strict=True)]
    names = [sources[part].names[number].encode("utf-8", "surrogateescape") for part, number in known]
    labels = [-1 if (own := sources[part].labels) is None else int(own[number]) for part, number in known]
    index = save(
        rows
        | {
            "shard": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.rows["item"]) for shard in shards]),
            "split": split.astype(np.uint8),
            "label": np.array(labels, np.int64),
            "name_end": np.cumsum([len(name) for name in names], dtype=np.int64),
            "names": np.frombuffer(b"".join(names), np.uint8),
        }
    )
    skipped = [dict(source.skipped) for source in sources]
    for item, reason in (entry for shard in shards for entry in shard.skipped.items()):
        part = int(np.searchsorted(starts, item, side="right")) - 1
        skipped[part][sources[part].names[item - int(starts[part])]] = reason
    told = {
        name: {
            "images": int((split == part).sum()),
            "labelled": source.labels is not None,
            "classes": list(source.classes),
            "skipped": dict(sorted(skipped[part].items())),
        }
        for part, (name, source) in enumerate(splits.items())
    }
    for name, part_facts in told.items():
        if not part_facts["images"]:
            raise UnveilError(f"no image of the {name} split can be read: pack a set without it")
    lines = skipped_text(told)
    write(folder / INDEX, index)
    if lines:
        write(folder / SKIPPED, lines)
    write(
        folder / FACTS,
        seal(
            facts
            | {
                "splits": told,
                "shards": [{"bytes": shard.bytes, "sha256": shard.sha256, "images": len(shard.rows["item"])} for shard in shards],
                "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
                "skipped": {"bytes": len(lines), "sha256": hashlib.sha256(lines).hexdigest()} if lines else None,
            }
        ),
    )
    sweep(folder)


def sweep(folder: Path) -> None:
    """Removes what was needed for resuming only, once the pack is whole."""
    for path in folder.iterdir():
        if path.name == UNFINISHED or OURS.fullmatch(path.name):
            path.unlink()
    sync(folder)


def stored_or_reason(sources: Sequence[Source], item: int, *, how: PackConfig) -> Stored | str:
    """A candidate of the splits, counted through, as it will be stored; or why it cannot be."""
    for source in sources:
        if item < len(source):
            break
        item -= len(source)
    try:
        return stored(source, item, how)
    except Unreadable as error:
        return error.reason


def stored(source: Source, number: int, how: PackConfig) -> Stored:
    """An image as `Images` would read it, encoded. Raises `Unreadable`."""
    raw = source.read(number)
    pixels = read_image(raw, channels=how.channels or None, shrink_to=how.side, pixel_limit=how.pixel_limit)
    height, width, channels = pixels.shape
    if how.store == "raw":
        data = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
        return Stored(data, height, width, channels, 8 * pixels.dtype.itemsize)
    if channels not in (1, 3):
        raise Unreadable(f"has {channels} channels, and JPEG holds 1 or 3: `--store raw` keeps them")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # as it is batched among images of 8 bits
    if max(height, width) > JPEG_SIDE:
        raise Unreadable(f"{width} x {height} pixels, and JPEG holds sides up to {JPEG_SIDE:,}: `--store raw` keeps it")
    data = jpeg(pixels, how.quality)
    if isinstance(raw, bytes) and len(raw) <= 1.1 * len(data) and says_the_same(raw, pixels, how.pixel_limit):
        data = raw  # nothing is lost a second time
    return Stored(data, height, width, channels, 8)


def says_the_same(raw: bytes, pixels: Pixels, pixel_limit: int) -> bool:
    """Whether a file is a JPEG of these very pixels."""
    with suppress(Unreadable):
        return image_format(raw[:32]) == "JPEG" and np.array_equal(read_image(raw, pixel_limit=pixel_limit), pixels)
    return False


def jpeg(pixels: Pixels, quality: int) -> bytes:
    """Grey or RGB (H, W, C) as a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return stream.getvalue()


def in_order(work: Callable[[int], T], items: range, workers: int) -> Generator[T, None, None]:
    """The results in order; so few are made ahead of their time that they need little memory."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; what a kill leaves has one fixed name, so that nothing piles up."""
    with temporary(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary(path), path)
    sync(path.parent)


def temporary(path: Path) -> Path:
    """The name of a file while it is written."""
    return path.with_name(f".{path.name}.part")


def rows_path(folder: Path, number: int) -> Path:
    """Where the rows of a shard stand until the index is written; hidden, for people have no use for it."""
    return folder / f".rows-{number:05d}.json"


def skipped_text(told: Mapping[str, Facts]) -> bytes:
    """A line "name<TAB>reason" for each file that could not be used."""
    found = {name: reason for facts in told.values() for name, reason in facts["skipped"].items()}
    clean = str.maketrans("\t\r\n", "   ")
    lines = (f"{name.translate(clean)}\t{reason.translate(clean)}\n" for name, reason in sorted(found.items()))
    return "".join(lines).encode("utf-8", "surrogateescape")
