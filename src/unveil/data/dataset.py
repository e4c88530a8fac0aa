"""A dataset of images. They are kept in memory if they fit, and otherwise read again each time.

An image is addressed by its index in the source, whether or not it can be read. So splits, labels and the order of training do not
depend on which files are damaged, nor on when that is noticed: a run gives the same results with images in memory and on demand.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.batch import Batch, Cropped
from unveil.data.collate import arrays_at, box_targets, cut_crops, images_at, label_targets, numpy_type, pixel_targets, stacked
from unveil.data.eval_transform import EvalTransform
from unveil.data.faults import Fault, UnreadableImages
from unveil.data.image_list import for_model, with_bits
from unveil.data.image_samples import common_channels, sample_images
from unveil.data.images import image_frame, read_image
from unveil.data.map_reading import read_map_of
from unveil.data.objects import Frame, ImageObjects
from unveil.data.pixels import LONGEST, ClassMap, CropSide, Pixels, ShrinkTo, Unreadable
from unveil.data.quiet_decoders import quiet_decoders
from unveil.data.scale import refuse_unclear_scale
from unveil.data.source import Raw
from unveil.data.sources import Source
from unveil.data.targets import Draw, Targets
from unveil.errors import UnveilError

Progress = Callable[[int, int], None]
"""Called with the number of images read so far, and the number of all images."""
Candidates = Callable[[int], Iterator[int]]
"""Yields the images that may replace a row of a batch that cannot be read, one after the other."""
MEMORY = 2 * 2**30
"""Maximum bytes of images to keep in memory. The limit is fixed, so that a run behaves the same on every machine."""

Found = TypeVar("Found")
Item = TypeVar("Item")


class ImagesLostError(UnveilError):
    """Images of the train set that could be used when the run began cannot be read any more."""


class Sample(NamedTuple):
    """An image (H, W, C) and, if the source has them, the class of each of its pixels (H, W), or its objects."""

    image: Pixels
    classes: ClassMap | None = None
    frame: Frame | None = None
    """The size of the file, from which that of the objects follows; None if the source has no objects."""
    objects: ImageObjects | None = None


class ImageDataset(UnreadableImages):
    """The images of a source, shrunk to the size that training needs.

    Args:
        source: The images.
        side: How far images are shrunk, in pixels: see `unveil.data.images.read_image`. Images are never enlarged. None keeps their
            size.
        channels: Number of channels of all images. By default that of most images, or 3 if grey and colour are mixed.
        dtype: uint8 or uint16; by default uint16 if most images have 16 bits.
        max_pixels: Files with more pixels than this are not decoded.
        memory: Images are kept in memory if all of them take at most this many bytes.
        progress: Reports how many images have been read.
        transform: The preprocessing of an evaluation, in place of shrinking to `side`. Files are decoded at their full size, and
            class maps are not read.

    Attributes:
        sample_sizes: The sizes (height, width) of up to 64 images after shrinking to `side`.

    Raises:
        UnveilError: If no image can be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        side: ShrinkTo | None,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        max_pixels: int = 64_000_000,
        memory: int = MEMORY,
        progress: Progress = lambda done, total: None,
        transform: EvalTransform | None = None,
    ) -> None:
        source = source if transform is None else replace(source, map_reader=None, objects=None)
        super().__init__(source.names)
        self.source, self.side, self.max_pixels, self.transform = source, side, max_pixels, transform
        self.classes = source.classes
        self._was_read = np.zeros(len(source), dtype=bool)
        self._images: Tensor | list[Pixels] | None = None  # one tensor if all have the same size; None if read on demand
        self._maps: list[ClassMap] = []
        self._frames: list[Frame | None] = []
        self._rows = np.arange(len(source))  # in `_images`; -1 for images that cannot be read
        self._size = torch.zeros(2, dtype=torch.int64)  # height and width, if all have one size
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="images")
        faults: dict[int, Fault] = {}
        sample = sample_images(source, 64, shrink_to=side, max_pixels=max_pixels, faults=faults)
        self.add_faults(faults.items())
        refuse_unclear_scale(source, sample)
        self.sample_sizes = [(x.shape[0], x.shape[1]) for x in sample]
        self.channels = channels or common_channels(sample)
        deep = sum(x.dtype == np.uint16 for x in sample) * 2 > len(sample)
        self.dtype = dtype or (torch.uint16 if deep else torch.uint8)
        bytes_each = max(np.mean([x.shape[0] * x.shape[1] for x in sample]) * self.channels * self.dtype.itemsize, 1.0)
        if bytes_each * len(source) <= memory:
            self._read_all(progress)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each image; -1 if it has none."""
        if self.source.labels is None:
            return torch.full((len(self),), -1)
        return torch.from_numpy(self.source.labels)

    @property
    def has_label(self) -> Bool[Tensor, " n"]:
        """Whether each image has a label."""
        return torch.from_numpy(self.source.has_label)

    @property
    def cut(self) -> int:
        """The number of images so long that their ends are cut, see `without_ends`; of those in memory, else of a sample."""
        sizes = self.sample_sizes
        if self.side is None:
            return 0
        if isinstance(self._images, list):
            sizes = [(x.shape[0], x.shape[1]) for x in self._images]
        elif self._images is not None:
            sizes = [(self._images.shape[2], self._images.shape[3])] * int((self._rows >= 0).sum())
        limit = LONGEST * (self.side if isinstance(self.side, int) else max(self.side))
        return sum(max(size) >= limit - 1 for size in sizes)

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory, on the CPU or the GPU."""
        return self._images is not None

    def read(self, index: int) -> Pixels:
        """Reads an image (H, W, C) from its file. Raises `Unreadable`."""
        return self.read_sample(index).image

    def read_sample(self, index: int, *, retry: bool = True) -> Sample:
        """Reads an image, and its class map if the source has maps. Raises `Unreadable`."""
        image, name = self.source.read(index, retry=retry), self.source.names[index]
        deep = self.dtype == torch.uint16
        if self.transform:
            pixels = for_model(image, self.transform, self.channels, deep=deep, max_pixels=self.max_pixels, name=name)
        else:
            pixels = read_image(image, channels=self.channels, shrink_to=self.side, max_pixels=self.max_pixels, name=name)
            pixels = with_bits(pixels, deep)
        if self.source.objects is not None:
            return self._with_objects(index, image, pixels)
        if self.source.map_reader is None:
            return Sample(pixels)
        classes = read_map_of(self.source, index, image, pixels.shape, self.side, max_pixels=self.max_pixels, retry=retry)
        return Sample(pixels, classes)

    def _with_objects(self, index: int, raw: Raw, pixels: Pixels) -> Sample:
        assert self.source.objects is not None
        name = self.source.names[index]
        frame = image_frame(raw, max_pixels=self.max_pixels, name=name)
        try:
            return Sample(pixels, frame=frame, objects=self.source.objects.of_image(index, frame, self.side))
        except Unreadable as error:
            raise Unreadable(error.reason, name) from None

    def _objects_at(self, indices: Int[Tensor, " B"], rows: Int[Tensor, " B"]) -> list[ImageObjects]:
        """The objects of images in memory; their masks are decoded again."""
        objects = self.source.objects
        assert objects is not None
        places = list(zip(indices.tolist(), [self._frames[row] for row in rows.tolist()], strict=True))
        return self._by_all_threads(lambda place: objects.of_image(place[0], checked(place[1]), self.side), places)

    def readable(self, indices: Int[Tensor, " B"], keys: Int[Tensor, " B"] | None = None, draw: Draw | None = None) -> Batch | None:
        """The images at these indices that can be read, with their targets; None if none can.

        Args:
            indices: The images.
            keys: Their keys; by default their indices, so the keys of the batch show which images could be read.
            draw: As for `samples`; only used if images are kept for crops, and so are large.

        Returns:
            A batch whose images (B, C, H, W) are in the upper left corner of a canvas, in the order of `indices`.
        """
        if self._images is None:
            found = self._by_all_threads(self._find, indices.tolist())
        else:
            found = [None if row < 0 else row for row in self._rows[indices.numpy()].tolist()]
        kept = torch.tensor([each is not None for each in found], dtype=torch.bool)
        if not kept.any():
            return None
        keys = indices if keys is None else keys
        draw = draw if isinstance(self.side, CropSide) else None
        return self._batch(indices[kept], keys[kept], [each for each in found if each is not None], draw)

    def samples(
        self, indices: Int[Tensor, " B"], keys: Int[Tensor, " B"], candidates: Candidates, draw: Draw | None = None
    ) -> Batch:
        """The images at these indices for training, with their targets; see `readable`.

        Args:
            indices: The images.
            keys: Their keys.
            candidates: An image that cannot be read is replaced by the first readable one of `candidates(row)`, where `row` is its
                position in `indices`. Its targets are replaced as well.
            draw: Draws a crop of each image. The batch is then `Cropped`, by all threads, unless images have 16 bits, or are on
                a GPU, which crops faster, and without rounding to bytes: a difference of half a step.

        Raises:
            ImagesLostError: If no candidate can be read.
        """
        if self._images is None:
            once = list(dict.fromkeys(indices.tolist()))  # an image that occurs several times is read once
            read = dict(zip(once, self._by_all_threads(self._find, once), strict=True))
            found: list[Sample | int | None] = [read[i] for i in indices.tolist()]
        elif self.unreadable:
            found = [None if row < 0 else row for row in self._rows[indices.numpy()].tolist()]
        else:
            return self._batch(indices, keys, indices, draw)
        broken = [row for row, each in enumerate(found) if each is None]
        indices = indices.clone()
        for row, (index, replacement) in zip(broken, self._pool.map(lambda row: self._first(candidates(row)), broken), strict=True):
            indices[row], found[row] = index, replacement
        return self._batch(indices, keys, [each for each in found if each is not None], draw)

    def to_gpu(self, device: torch.device) -> bool:
        """Moves all images to a GPU if they have the same size and take less than a fifth of its memory. Returns whether it did."""
        if device.type != "cuda" or not isinstance(self._images, Tensor):
            return False
        if self._images.nbytes > 0.2 * torch.cuda.get_device_properties(device).total_memory:
            return False
        self._images, self._size = self._images.to(device), self._size.to(device)
        return True

    def preprocessed(self, transform: EvalTransform) -> "ImageDataset":
        """The same images, preprocessed for an evaluation from the file on, and read on demand. What is unreadable is shared."""
        view = copy.copy(self)
        view.source, view.transform = replace(self.source, map_reader=None, objects=None), transform
        view._images, view._maps, view._frames = None, [], []
        return view

    def whole(self) -> "ImageDataset":
        """The same images at their original size: from memory if none was shrunk, else read on demand. Faults are shared."""
        if self.side is None and self.transform is None:
            return self
        limit = self.side if isinstance(self.side, int) and self.transform is None else 0
        images = [] if self._images is None else self._images
        sizes = [tuple(self._size.tolist())] if isinstance(images, Tensor) else [x.shape[:2] for x in images if x.size]
        if sizes and all(min(size) < limit and max(size) < LONGEST * limit for size in sizes):
            return self
        view = copy.copy(self)
        view.side, view.transform, view._images, view._maps, view._frames = None, None, None, [], []
        return view

    def _find(self, index: int) -> Sample | None:
        """Reads a sample; None if it cannot be read. After an I/O error, it is tried again whenever it is needed, but only once."""
        known = self.unreadable.get(index)
        if known and not known.may_pass:
            return None
        try:
            sample = self.read_sample(index, retry=known is None)
        except Unreadable as error:
            lost = error.lost or bool(self._was_read[index])
            self.add_faults([(index, Fault(error.reason, lost, may_pass=lost))])
            if known is None:
                self.on_fault(self.source.names[index], error.reason)
            return None
        self._was_read[index] = True
        if known:
            self.can_be_read(index)
        return sample

    def _by_all_threads(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """The function of each item. A thread is given several at once: handing over takes a twentieth of reading an image."""
        size = max(1, min(8, len(items) // (2 * (os.cpu_count() or 1))))
        blocks = [items[first : first + size] for first in range(0, len(items), size)]
        with quiet_decoders():  # once, not by each reader
            return list(chain.from_iterable(self._pool.map(lambda block: [function(item) for item in block], blocks)))

    def _first(self, candidates: Iterator[int]) -> tuple[int, Sample | int]:
        """The first candidate that can be read: its index, and its sample or its row in memory."""
        for index in candidates:
            if self._images is not None:
                if self._rows[index] >= 0:
                    return index, int(self._rows[index])
            elif (sample := self._find(index)) is not None:
                return index, sample
        raise ImagesLostError(self._nothing_left())

    def _nothing_left(self) -> str:
        first = next(iter(self.skipped.items()), ("", ""))
        return f"no image of {self.source.name} can be read any more; the first: {first[0]}: {first[1]}"

    def _batch(
        self, indices: Int[Tensor, " B"], keys: Int[Tensor, " B"], found: Tensor | list[Sample | int], draw: Draw | None = None
    ) -> Batch:
        """A batch of samples, or of rows in memory; for `draw`, see `samples`."""
        samples = [each for each in found if isinstance(each, Sample)] if isinstance(found, list) else []
        rows = torch.as_tensor([] if samples else found, dtype=torch.int64)
        maps = [sample.classes for sample in samples if sample.classes is not None]
        if self._maps:
            maps = [self._maps[row] for row in rows.tolist()]
        targets: Targets | None = pixel_targets(maps) if maps else label_targets(self.source, indices)
        objects = None
        if self.source.objects is not None:
            objects = [sample.objects for sample in samples if sample.objects is not None] or self._objects_at(indices, rows)
        on_gpu = isinstance(self._images, Tensor) and self._images.is_cuda
        if draw is not None and self.dtype == torch.uint8 and not on_gpu:
            arrays = [sample.image for sample in samples] or arrays_at(() if self._images is None else self._images, rows)
            if objects is not None:
                targets = box_targets(objects, [x.shape[:2] for x in arrays])
            geometry = draw(torch.tensor([x.shape[:2] for x in arrays]), keys)
            targets = None if targets is None else targets.transformed(geometry)
            sizes = torch.tensor(geometry.size).expand(len(keys), 2)
            return Cropped(cut_crops(arrays, geometry, self._by_all_threads), sizes, keys, targets)
        if samples:
            images, sizes = stacked([sample.image for sample in samples])
        else:
            assert self._images is not None
            images, sizes = images_at(self._images, rows, self._size)
        if objects is not None:
            targets = box_targets(objects, sizes.tolist())
        return Batch(images, sizes, keys, targets)

    def _read_all(self, progress: Progress) -> None:
        """Reads every image once. Images of the same size become one tensor (N, C, H, W).

        If the sample has one size, threads write each image into its place, so that no image is in memory twice. If other sizes
        follow, all images stay arrays of their own. There is an empty image in the place of one that cannot be read.
        """
        self.forget_faults()
        total = len(self.source)
        sizes = {self.transform.image_size} if self.transform else set(self.sample_sizes)
        shape = (*next(iter(sizes)), self.channels)
        table: Any = np.empty((total if len(sizes) == 1 else 0, shape[2], *shape[:2]), numpy_type(self.dtype))
        nothing = Sample(table[:0].reshape(0, 0, shape[2]), np.empty((0, 0), np.uint8))
        self._frames = []

        def read_block(block: range) -> list[Sample | str]:
            with quiet_decoders():  # once for all of them, because it takes as long as decoding a tiny image
                return [self._read_into(table, i) for i in block]

        samples: list[Sample] = []
        size = max(1, min(64, total // (8 * (os.cpu_count() or 1))))  # a task of the pool costs more than reading a tiny image
        blocks = [range(first, min(first + size, total)) for first in range(0, total, size)]
        for i, x in enumerate(chain.from_iterable(self._pool.map(read_block, blocks))):
            if isinstance(x, str):
                self.add_faults([(i, Fault(x))])
                self._rows[i] = -1
            samples.append(nothing if isinstance(x, str) else x)
            self._frames.append(samples[-1].frame)
            if i % 256 == 255 or i + 1 == total:
                progress(i + 1, total)
        if (self._rows < 0).all():
            reason = next(iter(self.skipped.values()))
            raise UnveilError(f"no image of {self.source.name} can be used with {self.channels} channels; the first: {reason}")
        self._images = [x.image for x in samples]
        self._maps = [x.classes for x in samples if x.classes is not None] if self.source.map_reader else []
        if len(table) and all(x.image.shape == shape for x in samples if x is not nothing):
            self._images, self._size = torch.from_numpy(table), torch.tensor(shape[:2])

    def _read_into(self, table: NDArray[Any], index: int) -> Sample | str:
        """Reads a sample into its row of a table (N, C, H, W), if it has the size of that, or says why it cannot be read."""
        x = self._read_or_reason(index)
        if isinstance(x, str) or not len(table):
            return x
        row: Pixels = table[index].transpose(1, 2, 0)
        if x.image.shape != row.shape:
            return x
        row[:] = x.image
        return x._replace(image=row)

    def _read_or_reason(self, index: int) -> Sample | str:
        try:
            return self.read_sample(index)._replace(objects=None)  # whose masks take more memory than the image
        except Unreadable as error:
            return error.reason


def checked(frame: Frame | None) -> Frame:
    """The frame of an image in memory."""
    assert frame is not None
    return frame
