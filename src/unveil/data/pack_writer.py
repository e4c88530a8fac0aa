"""Writes packs. Many threads decode, one thread writes in order, and a finished shard is never written again.

    .shard-00002.bin.part   the shard, synced to the disk
    .rows-00002.json        its rows of the index, and the first image of the next shard; written atomically
    shard-00002.bin         the shard, renamed: now it is finished

A shard ends before the first image that would exceed its maximum size. So its bytes depend only on the images and the settings, and
not on the number of threads or on when an earlier run was killed.
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
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from safetensors.numpy import save

from unveil.atomic_files import remove, sync, telling
from unveil.data.dataset import Progress
from unveil.data.images import image_format, read_image
from unveil.data.pack_reader import FACTS, INDEX, SHARD_HEAD, SKIPPED, UNFINISHED, Facts, Table, seal, shard_name, unseal
from unveil.data.pixels import Pixels, Unreadable
from unveil.data.sources import Source
from unveil.errors import UnveilError
from unveil.plain_text import printable
from unveil.ranges import Count, CountOrZero, Range, Side

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
"""The columns of the index that are written with a shard; `item` is the number of the candidate over all splits."""
JPEG_SIDE = 65_500
"""The longest side that libjpeg writes, in pixels."""
LEFTOVERS = re.compile(
    r"\.(shard-\d+\.bin|index\.safetensors|skipped\.txt|unveil-\w+\.json|\.rows-\d+\.json)\.part|\.rows-\d+\.json"
)
"""Names of files that a killed run may leave in the folder."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How images are stored in a pack."""

    HIDDEN = ("max_pixels", "shard_bytes")
    side: Side = 256
    """Shrink images until their short side has this many pixels; images are never enlarged. 256 suits evaluation at 224;
    random crops of 224 px take up to 579."""
    store: Literal["jpeg", "raw"] = "jpeg"
    """Store JPEG files (8-bit grey or RGB), or raw pixels (8 or 16 bits, any channels), which need no decoding but more space."""
    quality: Annotated[int, Range(1, 100)] = 90
    """JPEG quality, 1 to 100. A JPEG file that needs no shrinking is copied, unless it is over a tenth larger than a new one."""
    channels: CountOrZero = 0
    """Number of channels of the images, as for training; 0 keeps the channels of each image."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    shard_bytes: Count = 268_435_456
    """Maximum size of a shard file in bytes."""
    workers: Annotated[int, Range(0, 1024)] = 0
    """Number of decoding threads; 0 means one per core. The files do not depend on it."""


class Stored(NamedTuple):
    """An image as stored in a shard."""

    data: bytes
    height: int
    width: int
    channels: int
    bits: int


@dataclass(frozen=True)
class Shard:
    """A finished shard."""

    bytes: int
    sha256: str
    stop: int
    """The index of the first candidate of the next shard."""
    rows: Table
    """Its rows of the index."""
    skipped: dict[int, str]
    """Candidates that could not be packed, with the reason."""


class ShardWriter:
    """A shard that is being written, under a temporary name."""

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
        """Appends an image."""
        self._file.write(image.data)
        self._digest.update(image.data)
        data, *facts = image
        self.rows.append((item, self.size, len(data), *facts, zlib.crc32(data)))
        self.size += len(data)

    def finish(self, stop: int) -> Shard:
        """Finishes the shard, which ends before the candidate `stop`."""
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
        self._file.close()


def pack_shards(splits: Mapping[str, Source], folder: Path, config: PackConfig, progress: Progress) -> list[Shard]:
    """Writes the shards that are missing, and returns all of them."""
    total = sum(map(len, splits.values()))
    shards = finished_shards(folder)
    first = shards[-1].stop if shards else 0
    progress(first, total)
    if first == total:
        return shards
    writer = ShardWriter(folder, len(shards))
    work = partial(encode_or_reason, tuple(splits.values()), config=config)
    try:
        with closing(in_order(work, range(first, total), config.workers or cores())) as results:
            for item, result in enumerate(results, first):
                if isinstance(result, str):
                    writer.skipped[item] = result
                else:
                    if writer.rows and writer.size + len(result.data) > config.shard_bytes:
                        shards.append(writer.finish(item))
                        writer = ShardWriter(folder, len(shards))
                    writer.add(item, result)
                progress(item + 1, total)
        if not (shards or writer.rows):
            sweep(folder)
            raise UnveilError(
                f"none of the {total:,} files of {splits['train'].name} can be packed; the first: {writer.skipped[0]}"
            )
        shards.append(writer.finish(total))
    finally:
        writer.close()
    return shards


def finished_shards(folder: Path) -> list[Shard]:
    """The shards that an earlier run finished, up to the first one that is missing or damaged."""
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
    """Writes the index and then `unveil-pack.json`, which completes the pack. Removes the files that were needed for resuming."""
    sources = list(splits.values())
    starts = np.cumsum([0, *map(len, sources)])
    rows = {name: np.concatenate([shard.rows[name] for shard in shards]) for name in COLUMNS}
    items = rows.pop("item")
    split = np.searchsorted(starts, items, side="right") - 1
    members = [(sources[i], int(item - starts[i])) for item, i in zip(items, split.tolist(), strict=True)]
    names = [source.names[number].encode("utf-8", "surrogateescape") for source, number in members]
    labels = [-1 if source.labels is None else int(source.labels[number]) for source, number in members]
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
    unreadable: list[list[tuple[int, str, int]]] = [[] for _ in sources]
    for item, reason in (entry for shard in shards for entry in sorted(shard.skipped.items())):
        i = int(np.searchsorted(starts, item, side="right")) - 1
        source, number = sources[i], item - int(starts[i])
        skipped[i][source.names[number]] = reason
        unreadable[i].append((number, source.names[number], -1 if source.labels is None else int(source.labels[number])))
    split_facts = {
        name: {
            "pictures": int((split == i).sum()),  # never renamed: see `unveil.data.pack_reader`
            "labelled": source.labels is not None,
            "classes": list(source.classes),
            "skipped": dict(sorted(skipped[i].items())),
            "unreadable": unreadable[i],
        }
        for i, (name, source) in enumerate(splits.items())
    }
    for name, each in split_facts.items():
        if not each["pictures"]:
            raise UnveilError(f"no image of the {name} split can be read: pack data without this split")
    lines = skipped_text(split_facts)
    write(folder / INDEX, index)
    if lines:
        write(folder / SKIPPED, lines)
    write(
        folder / FACTS,
        seal(
            facts
            | {
                "splits": split_facts,
                "shards": [{"bytes": shard.bytes, "sha256": shard.sha256, "pictures": len(shard.rows["item"])} for shard in shards],
                "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
                "skipped": {"bytes": len(lines), "sha256": hashlib.sha256(lines).hexdigest()} if lines else None,
            }
        ),
    )
    sweep(folder)


def sweep(folder: Path) -> None:
    """Removes the files that were needed for resuming, once the pack is complete."""
    for path in folder.iterdir():
        if path.name == UNFINISHED or LEFTOVERS.fullmatch(path.name):
            path.unlink()
    sync(folder)


def encode_or_reason(sources: Sequence[Source], item: int, *, config: PackConfig) -> Stored | str:
    """Encodes candidate number `item` of all splits, or returns the reason why it cannot be stored."""
    for source in sources:
        if item < len(source):
            break
        item -= len(source)
    try:
        return encode(source, item, config)
    except Unreadable as error:
        return error.reason


def encode(source: Source, number: int, config: PackConfig) -> Stored:
    """Reads an image as `ImageDataset` does, and encodes it. Raises `Unreadable`."""
    raw = source.read(number)
    pixels = read_image(raw, channels=config.channels or None, shrink_to=config.side, max_pixels=config.max_pixels)
    height, width, channels = pixels.shape
    if config.store == "raw":
        data = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
        return Stored(data, height, width, channels, 8 * pixels.dtype.itemsize)
    if channels not in (1, 3):
        raise Unreadable(f"has {channels} channels, but JPEG has 1 or 3: use `--store raw`")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # as `ImageDataset` does if most images have 8 bits
    if max(height, width) > JPEG_SIDE:
        raise Unreadable(f"{width} x {height} pixels, but sides of a JPEG have up to {JPEG_SIDE:,}: use `--store raw`")
    data = encode_jpeg(pixels, config.quality)
    if isinstance(raw, bytes) and len(raw) <= 1.1 * len(data) and is_jpeg_of(raw, pixels, config.max_pixels):
        data = raw  # encoding again would lose quality
    return Stored(data, height, width, channels, 8)


def is_jpeg_of(raw: bytes, pixels: Pixels, max_pixels: int) -> bool:
    """Whether a file is a JPEG that decodes to exactly these pixels."""
    with suppress(Unreadable):
        return image_format(raw[:32]) == "JPEG" and np.array_equal(read_image(raw, max_pixels=max_pixels), pixels)
    return False


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encodes grey or RGB (H, W, C) as a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return stream.getvalue()


def in_order(work: Callable[[int], T], items: range, workers: int) -> Generator[T, None, None]:
    """Yields the results in order. Only a few are computed ahead, to save memory."""
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
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(path: Path, data: bytes) -> None:
    """Writes a file atomically. Its temporary name is fixed, so that killed runs do not leave more and more files."""
    with telling(path, len(data)):
        try:
            with temporary(path).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary(path), path)
            sync(path.parent)
        finally:
            remove(temporary(path))


def temporary(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(f".{path.name}.part")


def rows_path(folder: Path, number: int) -> Path:
    """The hidden file with the rows of a shard, until the index is written."""
    return folder / f".rows-{number:05d}.json"


def skipped_text(splits: Mapping[str, Facts]) -> bytes:
    """One line "name<TAB>reason" for each file that could not be used."""
    reasons = {name: reason for facts in splits.values() for name, reason in facts["skipped"].items()}
    return "".join(f"{printable(name)}\t{printable(reason)}\n" for name, reason in sorted(reasons.items())).encode()
