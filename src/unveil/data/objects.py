"""The objects of images as DATA tells them: boxes, classes, crowds, areas and masks; and how they follow their image.

Masks stay as they are written, as polygons or run lengths, until their image is read: a decoded mask takes a thousand times the
memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.from_pillow import ENDS, upright_size
from unveil.data.pixels import ShrinkTo, Unreadable, cut_ends, fit_size, under_centres
from unveil.data.rle import Patch, Segment, decoded, patch

NO_MASK = Patch(0, 0, np.zeros((0, 0), bool))
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Frame(NamedTuple):
    """The size of an image as its file stores it, and the turn that its EXIF orientation asks for."""

    height: int
    width: int
    turn: Image.Transpose | None = None


class ImageObjects(NamedTuple):
    """The m objects of one image, in pixels of the image as `ImageDataset` gives it."""

    boxes: Floats
    """(m, 4) left, top, right, bottom."""
    labels: Ints
    """(m,) classes."""
    crowd: NDArray[np.bool_]
    """(m,) whether each is a group of objects that are not told apart."""
    area: Floats
    """(m,) pixels of each object."""
    masks: list[Patch] | None
    """A mask of each object, empty for one that has only a box; None if DATA has no masks, or they were not asked for."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of all images of a source, one image after the other."""

    starts: Ints
    """(n + 1,) the first object of each image, and the number of all objects."""
    boxes: Floats
    """(m, 4) left, top, right, bottom: in pixels, or in shares of width and height if they are `relative`."""
    labels: Ints
    """(m,) classes."""
    crowd: NDArray[np.bool_]
    """(m,) whether each is a crowd: skipped in training, and an ignored region in scoring."""
    areas: Floats
    """(m,) pixels of each object, NaN where it is not written."""
    segments: Sequence[Segment | None] | None
    """A mask of each object, None for an object that has only a box; None if there are no masks."""
    sizes: Ints
    """(n, 2) height and width of each image as its annotation tells them; 0 where it does not."""
    image_ids: Sequence[Any]
    """The id of each image in the annotations, with which predictions are written."""
    category_ids: Mapping[str, Any]
    """The id of each class in the annotations, by its name."""
    relative: bool = False

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> Ints:
        """The number of objects of each image."""
        return np.diff(self.starts)

    @property
    def only_crowds(self) -> NDArray[np.bool_]:
        """Whether each image has objects, all of which are crowds: there is nothing to learn from it."""
        return np.asarray((self.counts > 0) & (self._sums(self.crowd) == self.counts))

    def taken(self, indices: Ints) -> "Objects":
        """The objects of some images, in this order."""
        counts = self.counts[indices]
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in indices] or [np.zeros(0, np.int64)])
        return replace(
            self._rows(rows),
            starts=starts_of(counts),
            sizes=self.sizes[indices],
            image_ids=[self.image_ids[i] for i in indices.tolist()],
        )

    def numbered(self, old: Sequence[str], new: Sequence[str]) -> tuple["Objects", dict[str, int]]:
        """The objects with their classes numbered as in `new`, and how many objects of which other classes are left out."""
        place = {name: number for number, name in enumerate(new)}
        table = np.array([place.get(name, -1) for name in old], dtype=np.int64).reshape(-1)
        labels = table[self.labels] if len(self.labels) else self.labels
        lost = np.bincount(self.labels[labels < 0], minlength=len(old))
        kept = replace(self, labels=labels)._rows(np.flatnonzero(labels >= 0))
        kept = replace(kept, starts=starts_of(self._sums(labels >= 0)))
        return kept, {name: int(count) for name, count in zip(old, lost, strict=True) if count}

    def _sums(self, flags: NDArray[np.bool_]) -> Ints:
        """How many objects of each image have a flag."""
        return np.diff(starts_of(flags)[self.starts])

    def _rows(self, rows: NDArray[np.intp]) -> "Objects":
        segments = None if self.segments is None else [self.segments[row] for row in rows.tolist()]
        boxes, labels, areas = self.boxes[rows], self.labels[rows], self.areas[rows]
        return replace(self, boxes=boxes, labels=labels, crowd=self.crowd[rows], areas=areas, segments=segments)

    def of_image(self, index: int, frame: Frame, shrink_to: ShrinkTo | None) -> ImageObjects:
        """The objects of an image as it is read: turned upright, shrunk, and without the ends of an extremely long image.

        Args:
            index: The image.
            frame: Its file.
            shrink_to: How far it is shrunk: see `unveil.data.images.read_image`.

        Raises:
            Unreadable: If the annotation tells another size than the file, if it does not say whether it is of the turned image, if
                it has no size and a box is outside of the image, or if a mask is damaged.
        """
        turn = self._turn(index, frame)
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        height, width = upright_size(frame.height, frame.width, frame.turn)
        annotated = upright_size(height, width, turn)  # of the annotation: a turn exchanges the sides, or does not
        boxes, labels, crowd = self.boxes[rows], self.labels[rows], self.crowd[rows]
        if self.relative:
            boxes = boxes * np.array([width, height, width, height])
        elif 0 in self.sizes[index]:
            _refuse_outside(boxes, height, width)
        boxes = turned_boxes(boxes, turn, height, width)
        rows_of_image, columns = _axis(height, shrink_to, (height, width), 0), _axis(width, shrink_to, (height, width), 1)
        scale = np.array([columns.scale, rows_of_image.scale] * 2)
        ends = np.array([columns.length, rows_of_image.length] * 2)
        moved = np.clip(boxes * scale - np.array([columns.cut, rows_of_image.cut] * 2), 0, ends)
        seen = (moved[:, 0] < moved[:, 2]) & (moved[:, 1] < moved[:, 3])
        area = self.areas[rows] * columns.scale * rows_of_image.scale
        if rows_of_image.cut or columns.cut:  # as much of an object is left as of its box
            area = area * _areas(moved) / np.maximum(_areas(boxes * scale), 1e-6)
        masks: list[Patch] | None = None
        if self.segments is not None:
            masks = [
                NO_MASK
                if segment is None
                else _patch(scaled(segment, height, width) if self.relative else segment, annotated, turn, (rows_of_image, columns))
                for segment, kept in zip(self.segments[rows], seen, strict=True)
                if kept
            ]
        moved, area = moved[seen], area[seen]
        of_box = _areas(moved)
        if masks is not None and np.isnan(area).any():
            pixels = np.array([mask.pixels.sum() for mask in masks])
            of_box = np.where(pixels > 0, pixels, of_box)
        return ImageObjects(moved, labels[seen], crowd[seen], np.where(np.isnan(area), of_box, area), masks)

    def _turn(self, index: int, frame: Frame) -> Image.Transpose | None:
        """The turn that brings boxes and masks of an image upright; None if they are of the upright image."""
        told, stored = tuple(self.sizes[index].tolist()), (frame.height, frame.width)
        upright = upright_size(*stored, frame.turn)
        if self.relative:  # tools for YOLO turn images upright before they are labelled
            return None
        if 0 not in told and told not in (stored, upright):
            sides = "{1} x {0} pixels".format
            raise Unreadable(f"has {sides(*stored)}, but its annotation says {sides(*told)}")
        if frame.turn is None or (0 not in told and stored != upright):
            return frame.turn if told == stored else None
        if self.starts[index] == self.starts[index + 1]:
            return None
        raise Unreadable(
            "is turned by its EXIF orientation, and its annotation does not say whether its boxes are of the turned image: "
            "save it upright"
        )


def _refuse_outside(boxes: Floats, height: int, width: int) -> None:
    """Raises `Unreadable` for a box outside of an image whose size is known only now."""
    outside = np.flatnonzero((boxes[:, 0] >= width) | (boxes[:, 1] >= height))
    if len(outside):
        shown = ", ".join(f"{value:.6g}" for value in boxes[outside[0]])
        raise Unreadable(
            f"has {width} x {height} pixels, and {len(outside)} of its {len(boxes)} boxes outside of them, such as {shown} "
            "(left, top, right, bottom)"
        )


def _areas(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


class _Axis(NamedTuple):
    """What happens to the rows, or to the columns, of an upright image when it is read."""

    length: int
    """Pixels in the end."""
    scale: float
    cut: int
    """Pixels that are cut off at the beginning, after shrinking."""
    sources: Ints | None
    """The pixel of the original under the centre of each pixel; None if they are the same."""


def _axis(old: int, shrink_to: ShrinkTo | None, size: tuple[int, int], axis: int) -> _Axis:
    if shrink_to is None:
        return _Axis(old, 1.0, 0, None)
    new = fit_size(*size, shrink_to)[axis]
    cut = cut_ends(fit_size(*size, shrink_to), shrink_to)[axis]
    sources = under_centres(old, new)  # as `shrink_class_map`
    return _Axis(new - 2 * cut, new / old, cut, None if new == old and not cut else sources[cut : new - cut])


def _patch(segment: Segment, annotated: tuple[int, int], turn: Image.Transpose | None, axes: tuple[_Axis, _Axis]) -> Patch:
    """The mask of an object in the image as it is read."""
    rows, columns = axes
    if turn is None and rows.sources is None and columns.sources is None:
        return patch(segment, *annotated)
    whole = turned_mask(decoded(segment, *annotated), turn)
    whole = whole if rows.sources is None else whole[rows.sources]
    return Patch(0, 0, whole if columns.sources is None else whole[:, columns.sources])


def scaled(segment: Segment, height: int, width: int) -> Segment:
    """Polygons in shares of an image, in its pixels."""
    assert isinstance(segment, list)
    return [[value * (width, height)[i % 2] for i, value in enumerate(polygon)] for polygon in segment]


def turned_boxes(boxes: Floats, turn: Image.Transpose | None, height: int, width: int) -> Floats:
    """Boxes (m, 4) of a stored image in the image after a turn, whose sides are `height` and `width`."""
    exchange, from_right, from_bottom = ENDS[turn]
    x, y = (boxes[:, 1::2], boxes[:, 0::2]) if exchange else (boxes[:, 0::2], boxes[:, 1::2])
    x = width - x[:, ::-1] if from_right else x
    y = height - y[:, ::-1] if from_bottom else y
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def turned_mask(mask: NDArray[np.bool_], turn: Image.Transpose | None) -> NDArray[np.bool_]:
    """A mask (H, W) of a stored image after a turn."""
    exchange, from_right, from_bottom = ENDS[turn]
    mask = mask.T if exchange else mask
    mask = mask[:, ::-1] if from_right else mask
    return mask[::-1] if from_bottom else mask


def starts_of(counts: NDArray[Any]) -> Ints:
    """The place of the first object of each image, and the number of all, from the number of objects of each."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def joined_objects(
    parts: Sequence[Objects], classes: Sequence[Sequence[str]], names: Sequence[str], files: Sequence[str]
) -> tuple[Objects, str]:
    """The objects of several sources, and what the user should know about their ids, or "".

    Args:
        parts: The objects of each source.
        classes: The classes of each source.
        names: The classes of all, by which labels are numbered.
        files: The names of all images: their ids, if those of the sources are not distinct.
    """
    parts = [part.numbered(own, names)[0] for part, own in zip(parts, classes, strict=True)]
    masks = any(part.segments is not None for part in parts)
    whole: Callable[[str], Any] = lambda field: np.concatenate([getattr(part, field) for part in parts])  # noqa: E731
    segments = [each for part in parts for each in (part.segments or [None] * len(part.labels))] if masks else None
    counts = np.concatenate([part.counts for part in parts])
    image_ids = [each for part in parts for each in part.image_ids]
    category_ids, note = {name: id_ for part in reversed(parts) for name, id_ in part.category_ids.items()}, ""
    if len(set(category_ids.values())) < len(category_ids):
        note = "joined parts have the same category id for different classes, so their classes are numbered from 1"
        category_ids = {name: number for number, name in enumerate(names, 1)}
    objects = Objects(
        starts_of(counts),
        whole("boxes"),
        whole("labels"),
        whole("crowd"),
        whole("areas"),
        segments,
        whole("sizes"),
        image_ids if len(set(image_ids)) == len(image_ids) else list(files),
        category_ids,
        parts[0].relative,
    )
    return objects, note
