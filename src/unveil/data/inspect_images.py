"""Looks at every image of a source once: whether it can be read, its size and depth, digests, and a thumbnail to compare it by."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.images import read_image
from unveil.data.pixels import Pixels, Unreadable
from unveil.data.quiet_decoders import quiet_decoders
from unveil.data.source import Source

SIDE = 64
"""The side of a thumbnail. Every image is squeezed to a square, so that its proportions do not matter."""
FLAT = 0.99, 4 / 255
"""An image is blank if this share of its thumbnail lies within this range of brightness."""
FLAT_16 = 64 / 65535
"""The range for 16 bits, of which many images use only a part."""


@dataclass
class Inspection:
    """What is known of the images of a source, one row for each. Rows of unreadable images are zero."""

    source: Source
    size: NDArray[np.int32]
    """(N, 2): height and width in pixels, upright."""
    channels: NDArray[np.int16]
    bits: NDArray[np.int8]
    """8 or 16 in a channel."""
    blank: NDArray[np.bool_]
    small: NDArray[np.uint8]
    """(N, 32, 32): the thumbnail at half its side. It is what a search for near duplicates keeps in memory: 1 KB an image."""
    file_digest: list[bytes]
    """Of the bytes of the file; b"" for images that are no files."""
    pixel_digest: list[bytes]
    """Of the decoded pixels; b"" for unreadable images."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """The images that cannot be read, with the reason."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        return self.size[:, 0] > 0


def inspect(source: Source, *, max_pixels: int, progress: Callable[[int, int], None] = lambda done, of: None) -> Inspection:
    """Reads every image of a source, in full, by all threads. Memory grows by about 1.2 KB an image."""
    count = len(source)
    found = Inspection(
        source,
        np.zeros((count, 2), np.int32),
        np.zeros(count, np.int16),
        np.zeros(count, np.int8),
        np.zeros(count, bool),
        np.zeros((count, SIDE // 2, SIDE // 2), np.uint8),
        [b""] * count,
        [b""] * count,
    )

    def look(index: int) -> None:
        try:
            raw = source.read(index)
            found.file_digest[index] = digest(raw) if isinstance(raw, bytes) else b""
            pixels = read_image(raw, max_pixels=max_pixels)
        except Unreadable as error:
            found.unreadable[index] = error.reason
            return
        found.pixel_digest[index] = digest(str((pixels.shape, pixels.dtype)).encode(), np.ascontiguousarray(pixels).data)
        grey = brightness(pixels)
        found.size[index], found.channels[index], found.bits[index] = pixels.shape[:2], pixels.shape[2], 8 * pixels.itemsize
        found.blank[index] = is_flat(grey, FLAT_16 if pixels.dtype == np.uint16 else FLAT[1])
        found.small[index] = stretched(halved(grey), pixels.dtype == np.uint16)

    def block(first: int) -> int:
        with quiet_decoders():  # once for all of them, because it takes as long as decoding a tiny image
            for index in range(first, min(first + step, count)):
                look(index)
        return min(first + step, count)

    step = max(1, min(64, count // (8 * (os.cpu_count() or 1))))
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="inspect") as pool:
        for done in pool.map(block, range(0, count, step)):
            progress(done, count)
    return found


def thumbnails(source: Source, indices: list[int], *, max_pixels: int) -> Iterator[NDArray[np.float32]]:
    """The thumbnails (64, 64) of some images, from 0 to 255; an image that cannot be read any more is black."""

    def read(index: int) -> NDArray[np.float32]:
        try:
            pixels = read_image(source.read(index), max_pixels=max_pixels)
        except Unreadable:
            return np.zeros((SIDE, SIDE), np.float32)
        return 255 * (brightness(pixels) if pixels.dtype == np.uint8 else unit_range(brightness(pixels)))

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="thumbnails") as pool, quiet_decoders():
        yield from chain.from_iterable(pool.map(read, indices[i : i + 1024]) for i in range(0, len(indices), 1024))


def digest(*parts: bytes | memoryview) -> bytes:
    """A digest of 16 bytes."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(part)
    return whole.digest()


def brightness(pixels: Pixels) -> NDArray[np.float32]:
    """The brightness of an image (H, W, C), squeezed to (64, 64): 0 is black, and 1 is white."""
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])).convert("L")
    else:
        image = Image.fromarray(pixels[:, :, :3].mean(axis=2, dtype=np.float32))
    white = 255 if pixels.dtype == np.uint8 else 65535
    # A box averages all pixels; on enlarging, it would repeat them.
    filter_ = Image.Resampling.BOX if min(image.size) >= SIDE else Image.Resampling.BICUBIC
    return np.asarray(image.resize((SIDE, SIDE), filter_), np.float32) / white


def is_flat(grey: NDArray[np.float32], limit: float) -> bool:
    """Whether nearly all of a thumbnail has one brightness."""
    values = np.sort(grey, axis=None)
    kept = int(np.ceil(FLAT[0] * len(values)))
    return bool((values[kept - 1 :] - values[: len(values) - kept + 1]).min() <= limit)


def halved(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of each 2 x 2 pixels."""
    half = SIDE // 2
    return grey.reshape(half, 2, half, 2).mean(axis=(1, 3))


def stretched(grey: NDArray[np.float32], whole_range: bool) -> NDArray[np.uint8]:
    """A thumbnail as bytes. With `whole_range`, its darkest pixel becomes 0 and its brightest 255: few images fill 16 bits."""
    values = unit_range(grey) if whole_range else np.clip(grey, 0, 1)
    return np.rint(255 * values).astype(np.uint8)


def unit_range(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values scaled to 0 to 1."""
    low, high = grey.min(), grey.max()
    return (grey - low) / max(high - low, 1e-9)
