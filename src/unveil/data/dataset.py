"""A dataset of images. They are kept in memory if they fit, and otherwise read again each time."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.batch import Batch
from unveil.data.images import read_class_map, read_image
from unveil.data.pixels import IGNORE, ClassMap, Pixels, Unreadable, shrink_class_map
from unveil.data.sources import Source
from unveil.data.targets import ClassTargets, PixelTargets, Targets
from unveil.errors import UnveilError

Progress = Callable[[int, int], None]
"""Called with the number of images read so far, and the number of all images."""
MEMORY = 2 * 2**30
"""Maximum bytes of images to keep in memory. The limit is fixed, so that a run behaves the same on every machine."""


class Sample(NamedTuple):
    """An image (H, W, C) and, if the source has them, the class of each of its pixels (H, W)."""

    image: Pixels
    classes: ClassMap | None


class ImageDataset:
    """The images of a source that can be read, shrunk to the size that training needs.

    Args:
        source: The images.
        side: Length of the short side to which images are shrunk, in pixels. Images are never enlarged.
        channels: Number of channels of all images. By default that of most images, or 3 if grey and colour are mixed.
        dtype: uint8 or uint16; by default uint16 if most images have 16 bits.
        max_pixels: Files with more pixels than this are not decoded.
        memory: Images are kept in memory if all of them take at most this many bytes.
        progress: Reports how many images have been read.

    Attributes:
        skipped: Names of images that cannot be read, with the reason. If images are read on demand, it grows during training.

    Raises:
        UnveilError: If no image can be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        side: int,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        max_pixels: int = 64_000_000,
        memory: int = MEMORY,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.source, self.side, self.max_pixels = source, side, max_pixels
        self.classes = source.classes
        self.skipped: dict[str, str] = {}
        self._lock = threading.Lock()
        self._replacements: dict[int, int] = {}  # of unreadable images
        self._images: Tensor | list[Pixels] | None = None  # one tensor if all have the same size; None if read on demand
        self._maps: list[ClassMap] = []
        self._size = torch.zeros(2, dtype=torch.int64)  # height and width, if all have one size
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="images")
        sample = sample_images(source, 64, shrink_to=side, max_pixels=max_pixels)
        self.channels = channels or common_channels(sample)
        deep = sum(x.dtype == np.uint16 for x in sample) * 2 > len(sample)
        self.dtype = dtype or (torch.uint16 if deep else torch.uint8)
        self.numbers = np.arange(len(source.names))  # readable images, as indices into the source
        bytes_each = max(np.mean([x.shape[0] * x.shape[1] for x in sample]) * self.channels * self.dtype.itemsize, 1.0)
        if bytes_each * len(source.names) <= memory:
            self._read_all(progress)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def names(self) -> list[str]:
        return [self.source.names[i] for i in self.numbers.tolist()]

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each image; -1 if it has none."""
        return self.labels_of(torch.arange(len(self)))

    def labels_of(self, indices: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The classes of the images that `batch` returned for these indices. A replaced image has the class of its replacement."""
        if self.source.labels is None:
            return torch.full((len(indices),), -1)
        return torch.from_numpy(self.source.labels[self._numbers_of(indices)])

    def targets_of(self, indices: Int[Tensor, " B"]) -> Targets | None:
        """The targets of the images that `batch` returned for these indices; None if the data has none.

        Maps that are not in memory are read again; `samples` reads them together with the images.
        """
        if self.source.map_reader is None:
            return None if self.source.labels is None else ClassTargets(self.labels_of(indices))
        if self._images is not None:
            return pixel_targets([self._maps[i] for i in indices.tolist()])
        maps = [self.read_sample(number).classes for number in self._numbers_of(indices).tolist()]
        return pixel_targets([classes for classes in maps if classes is not None])

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory, on the CPU or the GPU."""
        return self._images is not None

    def read(self, number: int) -> Pixels:
        """Reads an image (H, W, C) by its index in the source. Raises `Unreadable`."""
        return self.read_sample(number).image

    def read_sample(self, number: int) -> Sample:
        """Reads an image, and its class map if the source has maps. Raises `Unreadable`."""
        image, name = self.source.read(number), self.source.names[number]
        pixels = read_image(image, channels=self.channels, shrink_to=self.side, max_pixels=self.max_pixels, name=name)
        if self.dtype == torch.uint16 and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.uint16) * 257
        if self.dtype == torch.uint8 and pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if self.source.map_reader is None:
            return Sample(pixels, None)
        classes = read_class_map(self.source.read_map(number), max_pixels=self.max_pixels, name=name)
        height, width = classes.shape
        classes = shrink_class_map(classes, self.side)
        if classes.shape != pixels.shape[:2]:
            raise Unreadable(f"mask of {width} x {height} pixels, which is not the size of its image", name)
        largest = int(classes.max(initial=0, where=classes != IGNORE))
        if largest >= len(self.classes):
            raise Unreadable(f"mask with class {largest}, but there are {len(self.classes)} classes", name)
        return Sample(pixels, classes)

    def batch(self, indices: Int[Tensor, " B"], among: Int[Tensor, " n"] | None = None) -> tuple[Tensor, Int[Tensor, "B 2"]]:
        """The images at these indices (B, C, H, W), each in the upper left corner of a canvas, and their heights and widths.

        If images are read on demand, an image that cannot be read is replaced by the next readable one in `among` (by default all
        images). So a held-out image never gets into training.
        """
        images, sizes, _ = self._load(indices, among)
        return images, sizes

    def samples(self, indices: Int[Tensor, " B"], keys: Int[Tensor, " B"], among: Int[Tensor, " n"] | None = None) -> Batch:
        """The images at these indices with their targets; see `batch`."""
        images, sizes, maps = self._load(indices, among)
        return Batch(images, sizes, keys, self.targets_of(indices) if maps is None else pixel_targets(maps))

    def to_gpu(self, device: torch.device) -> bool:
        """Moves all images to a GPU if they have the same size and take less than a fifth of its memory. Returns whether it did."""
        if device.type != "cuda" or not isinstance(self._images, Tensor):
            return False
        if self._images.nbytes > 0.2 * torch.cuda.get_device_properties(device).total_memory:
            return False
        self._images, self._size = self._images.to(device), self._size.to(device)
        return True

    def _load(
        self, indices: Int[Tensor, " B"], among: Int[Tensor, " n"] | None
    ) -> tuple[Tensor, Int[Tensor, "B 2"], list[ClassMap] | None]:
        """Images, sizes, and class maps if these had to be read."""
        if isinstance(self._images, Tensor):
            table = self._images
            indices = indices.pin_memory().to(table.device, non_blocking=True) if table.is_cuda else indices
            images = table[indices] if self.dtype == torch.uint8 else table.view(torch.int16)[indices].view(torch.uint16)
            return images, self._size.expand(len(indices), 2), None
        if self._images is not None:
            return *self._stack([self._images[i] for i in indices.tolist()]), None
        ring = self.numbers if among is None else self.numbers[among.numpy()]
        numbers = self.numbers[indices.numpy()].tolist()
        once = list(dict.fromkeys(numbers))  # an image that occurs several times is read once
        read = dict(zip(once, self._pool.map(partial(self._read_or_replace, ring=ring), once), strict=True))
        samples = [read[number] for number in numbers]
        maps = [sample.classes for sample in samples if sample.classes is not None]
        return *self._stack([sample.image for sample in samples]), maps or None

    def _stack(self, images: Sequence[Pixels]) -> tuple[Tensor, Int[Tensor, "B 2"]]:
        sizes = torch.tensor([x.shape[:2] for x in images])
        height, width = sizes.amax(dim=0).tolist()
        new = np.zeros if len(sizes.unique(dim=0)) > 1 else np.empty
        canvas = new((len(images), height, width, self.channels), numpy_type(self.dtype))
        for row, x in zip(canvas, images, strict=True):
            row[: x.shape[0], : x.shape[1]] = x  # channels last, as in files: transposing here would take longer
        return torch.from_numpy(canvas).permute(0, 3, 1, 2), sizes

    def _numbers_of(self, indices: Int[Tensor, " B"]) -> np.ndarray:
        numbers: np.ndarray = self.numbers[indices.numpy()]
        if self._replacements:
            numbers = np.array([self._replacements.get(i, i) for i in numbers.tolist()], dtype=np.int64)
        return numbers

    def _read_all(self, progress: Progress) -> None:
        """Reads every image once. Images of the same size become one tensor (N, C, H, W)."""
        images: list[Pixels] = []
        readable: list[int] = []
        self.skipped.clear()
        total = len(self.source.names)
        size = max(1, min(64, total // (8 * (os.cpu_count() or 1))))  # a task of the pool costs more than reading a tiny image
        blocks = [range(first, min(first + size, total)) for first in range(0, total, size)]
        samples = chain.from_iterable(self._pool.map(lambda block: [self._read_or_reason(i) for i in block], blocks))
        for i, x in enumerate(samples):
            if isinstance(x, str):
                self.skipped[self.source.names[i]] = x
            else:
                images.append(x.image)
                readable.append(i)
                if x.classes is not None:
                    self._maps.append(x.classes)
            if i % 256 == 255 or i + 1 == total:
                progress(i + 1, total)
        self.numbers = np.array(readable, dtype=np.int64)
        if not images:
            reason = next(iter(self.skipped.values()))
            raise UnveilError(f"no image of {self.source.name} can be used with {self.channels} channels; the first: {reason}")
        self._images = images
        if all(x.shape == images[0].shape for x in images):
            height, width, channels = images[0].shape
            table = np.empty((len(images), channels, height, width), images[0].dtype)
            for i, row in enumerate(table):
                row[:], images[i] = images[i].transpose(2, 0, 1), images[0][:0]  # frees each image, so that memory does not double
            self._images, self._size = torch.from_numpy(table), torch.tensor([height, width])

    def _read_or_reason(self, number: int) -> Sample | str:
        try:
            return self.read_sample(number)
        except Unreadable as error:
            return error.reason

    def _read_or_replace(self, number: int, ring: np.ndarray) -> Sample:
        """Reads a sample. If it cannot be read, returns the next readable one of `ring`, which is always the same one."""
        start, i = int(np.searchsorted(ring, number)), number
        for step in range(1, len(ring) + 1):
            sample = self._read_or_reason(i)
            with self._lock:
                if not isinstance(sample, str):
                    if i != number:
                        self._replacements[number] = i
                    return sample
                self.skipped[self.source.names[i]] = sample
            i = int(ring[(start + step) % len(ring)])
        raise UnveilError(f"no image of {self.source.name} can be read any more: check whether the data was moved")


def pixel_targets(maps: Sequence[ClassMap]) -> PixelTargets:
    """Stacks class maps, each in the upper left corner. The rest is `IGNORE`."""
    height, width = (max(x.shape[axis] for x in maps) for axis in range(2))
    canvas = np.full((len(maps), height, width), IGNORE, np.int64)
    for row, x in zip(canvas, maps, strict=True):
        row[: x.shape[0], : x.shape[1]] = x
    return PixelTargets(torch.from_numpy(canvas))


def sample_images(source: Source, count: int, *, shrink_to: int, max_pixels: int) -> list[Pixels]:
    """Up to `count` readable images, evenly spaced in a source. Raises `UnveilError` if none can be read."""
    images: list[Pixels] = []
    total, reason = len(source.names), ""
    for i in dict.fromkeys([*np.linspace(0, total - 1, min(count, total)).astype(int).tolist(), *range(total)]):
        try:
            images.append(read_image(source.read(i), shrink_to=shrink_to, max_pixels=max_pixels))
        except Unreadable as error:
            reason = reason or f"{source.names[i]}: {error.reason}"
        if len(images) == min(count, total):
            break
    if not images:
        raise UnveilError(f"none of the {total} files of {source.name} can be read as an image; the first: {reason}")
    return images


def common_channels(images: Iterable[Pixels]) -> int:
    """The number of channels of most images; 3 if grey and colour are mixed."""
    counts = Counter(x.shape[2] for x in images)
    return 3 if 3 in counts and set(counts) <= {1, 3, 4} else counts.most_common(1)[0][0]


def numpy_type(dtype: torch.dtype) -> type[np.uint8] | type[np.uint16]:
    """The numpy type of uint8 or uint16."""
    return np.uint16 if dtype == torch.uint16 else np.uint8


def channel_moments(dataset: ImageDataset, count: int = 512) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on a scale of 0 to 1, over up to `count` images, evenly spaced."""
    total = square = torch.zeros(dataset.channels, dtype=torch.float64)
    pixels = 0
    for index in torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long():
        image, _ = dataset.batch(index[None])
        x = image[0].double().flatten(1) / (65535 if dataset.dtype == torch.uint16 else 255)
        total, square, pixels = total + x.sum(1), square + x.square().sum(1), pixels + x.shape[1]
    mean = total / pixels
    deviation = (square / pixels - mean**2).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(max(round(v, 4), 1e-4) for v in deviation.tolist())
