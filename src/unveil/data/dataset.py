"""Images by number: kept in memory where they fit, read again and again where they do not."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.images import Unreadable, read_image
from unveil.data.sources import Source
from unveil.errors import UnveilError

Progress = Callable[[int, int], None]  # images read, of how many


MEMORY = 2 * 2**30
"""Bytes of images that are kept in memory: a fixed number, so that the same run takes the same way on every machine."""


class ImageDataset:
    """The readable images of a source, shrunk to what training needs; those that are not are in `skipped`.

    Args:
        source: Where they come from.
        side: Images are shrunk, never enlarged, until their short side is this many pixels.
        channels: How many channels each gets; by default what most images have, and 3 where some are in colour.
        dtype: uint8 or uint16; by default uint16 where most images are.
        pixel_limit: No file is decoded beyond this many pixels.
        memory: Keep all in memory where they take up to this many bytes.
        progress: Called with (images read, of how many).

    Raises:
        UnveilError: When no image can be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        side: int,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        pixel_limit: int = 64_000_000,
        memory: int = MEMORY,
        progress: Progress = lambda done, of: None,
    ) -> None:
        self.source, self.side, self.pixel_limit = source, side, pixel_limit
        self.classes = source.classes
        self.skipped: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stand_ins: dict[int, int] = {}  # shown in place of one that cannot be read
        self._kept: Tensor | list[np.ndarray] | None = None
        self._size = torch.zeros(2, dtype=torch.int64)  # of all images, where they are one tensor
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="images")
        sample = sample_images(source, 64, shrink_to=side, pixel_limit=pixel_limit)
        self.channels = channels or common_channels(sample)
        deep = sum(x.dtype == np.uint16 for x in sample) * 2 > len(sample)
        self.dtype = dtype or (torch.uint16 if deep else torch.uint8)
        self.numbers = np.arange(len(source.names))  # readable images, as numbers of the source
        each = max(np.mean([x.shape[0] * x.shape[1] for x in sample]) * self.channels * self.dtype.itemsize, 1.0)
        if each * len(source.names) <= memory:
            self._keep_all(progress)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return [self.source.names[i] for i in self.numbers.tolist()]

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each image, -1 where it has none."""
        return self.labels_of(torch.arange(len(self)))

    def labels_of(self, places: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The classes of what `batch` gave for these places: an image that stood in for an unreadable one brings its own."""
        if self.source.labels is None:
            return torch.full((len(places),), -1)
        numbers = self.numbers[places.numpy()]
        if self._stand_ins:
            numbers = np.array([self._stand_ins.get(i, i) for i in numbers.tolist()], dtype=np.int64)
        return torch.from_numpy(self.source.labels[numbers])

    @property
    def in_memory(self) -> bool:
        """Whether all images were read once and are kept."""
        return self._kept is not None

    def read(self, number: int) -> np.ndarray:
        """One image of the source (H, W, C), as it will be batched. Raises `Unreadable`."""
        name = self.source.names[number]
        image = read_image(
            self.source.read(number), channels=self.channels, shrink_to=self.side, pixel_limit=self.pixel_limit, name=name
        )
        if self.dtype == torch.uint16 and image.dtype == np.uint8:
            return image.astype(np.uint16) * 257
        if self.dtype == torch.uint8 and image.dtype == np.uint16:
            return (image >> 8).astype(np.uint8)
        return image

    def batch(self, places: Int[Tensor, " B"], among: Int[Tensor, " n"] | None = None) -> tuple[Tensor, Int[Tensor, "B 2"]]:
        """The images at these places, each in the upper left corner of a canvas (B, C, H, W), and their heights and widths.

        Read on demand, one that proves unreadable gives its turn to the next readable one `among` these places (all by
        default): what is kept aside must not slip into training.
        """
        if isinstance(self._kept, Tensor):
            kept = self._kept
            places = places.pin_memory().to(kept.device, non_blocking=True) if kept.is_cuda else places
            images = kept[places] if self.dtype == torch.uint8 else kept.view(torch.int16)[places].view(torch.uint16)
            return images, self._size.expand(len(places), 2)
        if self._kept is not None:
            stacked = [self._kept[i] for i in places.tolist()]
        else:
            ring = self.numbers if among is None else self.numbers[among.numpy()]
            wanted = self.numbers[places.numpy()].tolist()
            once = list(dict.fromkeys(wanted))  # what comes several times is read once
            read = dict(zip(once, self._pool.map(partial(self._read_or_next, ring=ring), once), strict=True))
            stacked = [read[i] for i in wanted]
        sizes = torch.tensor([x.shape[:2] for x in stacked])
        height, width = sizes.amax(dim=0).tolist()
        new = np.zeros if len(sizes.unique(dim=0)) > 1 else np.empty
        canvas = new((len(stacked), height, width, self.channels), numpy_type(self.dtype))
        for row, x in zip(canvas, stacked, strict=True):
            row[: x.shape[0], : x.shape[1]] = x  # in the order of files: turning it would take longer
        return torch.from_numpy(canvas).permute(0, 3, 1, 2), sizes

    def reside(self, device: torch.device) -> bool:
        """Moves all images to a GPU, where they are of one size and take less than a fifth of its memory; says whether it did."""
        if device.type != "cuda" or not isinstance(self._kept, Tensor):
            return False
        if self._kept.nbytes > 0.2 * torch.cuda.get_device_properties(device).total_memory:
            return False
        self._kept, self._size = self._kept.to(device), self._size.to(device)
        return True

    def _keep_all(self, progress: Progress) -> None:
        """Reads every image once; those of one size become one tensor (N, C, H, W)."""
        kept: list[np.ndarray] = []
        good: list[int] = []
        self.skipped.clear()
        total = len(self.source.names)
        for i, x in enumerate(self._pool.map(self._read_or_reason, range(total), chunksize=64)):
            if isinstance(x, str):
                self.skipped[self.source.names[i]] = x
            else:
                kept.append(x)
                good.append(i)
            if i % 256 == 255 or i + 1 == total:
                progress(i + 1, total)
        self.numbers = np.array(good, dtype=np.int64)
        if not kept:
            raise UnveilError(f"no image of {self.source.name} has {self.channels} channels: {next(iter(self.skipped.values()))}")
        self._kept = kept
        if all(x.shape == kept[0].shape for x in kept):
            height, width, channels = kept[0].shape
            images = np.empty((len(kept), channels, height, width), kept[0].dtype)
            for i, row in enumerate(images):
                row[:], kept[i] = kept[i].transpose(2, 0, 1), kept[0][:0]  # let go of each, so that memory does not double
            self._kept, self._size = torch.from_numpy(images), torch.tensor([height, width])

    def _read_or_reason(self, number: int) -> np.ndarray | str:
        try:
            return self.read(number)
        except Unreadable as error:
            return error.reason

    def _read_or_next(self, number: int, ring: np.ndarray) -> np.ndarray:
        """The image, or in place of one that cannot be read, the next in the ring that can: always the same one."""
        start, i = int(np.searchsorted(ring, number)), number
        for turn in range(1, len(ring) + 1):
            image = self._read_or_reason(i)
            with self._lock:
                if not isinstance(image, str):
                    if i != number:
                        self._stand_ins[number] = i
                    return image
                self.skipped[self.source.names[i]] = image
            i = int(ring[(start + turn) % len(ring)])
        raise UnveilError(f"no image of {self.source.name} can be read any more: was it moved?")


def sample_images(source: Source, count: int, *, shrink_to: int, pixel_limit: int) -> list[np.ndarray]:
    """Up to `count` readable images from all over a source. Raises `UnveilError` when none can be read."""
    found, total, reason = [], len(source.names), ""
    for i in dict.fromkeys([*np.linspace(0, total - 1, min(count, total)).astype(int).tolist(), *range(total)]):
        try:
            found.append(read_image(source.read(i), shrink_to=shrink_to, pixel_limit=pixel_limit))
        except Unreadable as error:
            reason = reason or f"{source.names[i]}: {error.reason}"
        if len(found) == min(count, total):
            break
    if not found:
        raise UnveilError(f"none of the {total} files of {source.name} can be read as an image; the first is {reason}")
    return found


def common_channels(stacked: Iterable[np.ndarray]) -> int:
    """What most images have; 3 where grey and colour are mixed."""
    counts = Counter(x.shape[2] for x in stacked)
    return 3 if 3 in counts and set(counts) <= {1, 3, 4} else counts.most_common(1)[0][0]


def numpy_type(dtype: torch.dtype) -> type[np.uint8] | type[np.uint16]:
    """The same type in numpy."""
    return np.uint16 if dtype == torch.uint16 else np.uint8


def channel_moments(stacked: ImageDataset, count: int = 512) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on a scale of 0 to 1, over up to `count` images from all over the set."""
    places = torch.linspace(0, len(stacked) - 1, min(count, len(stacked))).long()
    total = square = torch.zeros(stacked.channels, dtype=torch.float64)
    pixels = 0
    for place in places:
        image, _ = stacked.batch(place[None])
        x = image[0].double().flatten(1) / (65535 if stacked.dtype == torch.uint16 else 255)
        total, square, pixels = total + x.sum(1), square + x.square().sum(1), pixels + x.shape[1]
    mean = total / pixels
    deviation = (square / pixels - mean**2).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(max(round(v, 4), 1e-4) for v in deviation.tolist())
