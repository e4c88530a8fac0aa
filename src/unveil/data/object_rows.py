"""Collects the objects of images as any annotation format tells them, checks them, and leaves out what is no object."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.label_table import examples
from unveil.data.objects import Objects, starts_of
from unveil.data.rle import Segment, is_rectangle
from unveil.errors import UnveilError
from unveil.plain_text import count_of

MOST_BROKEN = 0.1
"""Largest share of the boxes that may be broken. With more, the file is another than it seems."""
EMPTY = "without area"
FAR_OUT = 0.02
"""A box that reaches this share of a side beyond its image, or further, is not just rounded."""


class Row(NamedTuple):
    """One object."""

    image: int
    """The place of its image among those of the part."""
    label: int
    box: tuple[float, float, float, float]
    """Left, top, right and bottom."""
    name: str
    """How to find it, such as "annotation 17"."""
    crowd: bool = False
    area: float = float("nan")
    segment: Segment | None = None


class Told(NamedTuple):
    """What annotations say about the images of one part of DATA."""

    where: str
    """DATA and the file, for messages."""
    field: str
    """What a box is called there."""
    expected: str
    """What a box has to be."""
    rows: list[Row]
    sizes: list[tuple[int, int]]
    """Height and width of each image, 0 where it is not told."""
    image_ids: list[Any]
    category_ids: dict[str, Any]
    """The id of each class, by its name, in the order of the labels."""
    relative: bool = False
    """Whether boxes are shares of the width and the height."""


def checked_objects(told: Told) -> tuple[Objects, list[str]]:
    """The objects of a part, and what the user should know about them.

    Boxes are clipped to their image. A box that is not finite, of negative width or height, without area, or outside of its image
    is left out, and so is an exact copy of another object.

    Raises:
        UnveilError: If that is more than `MOST_BROKEN` of them (boxes without area aside) or all; or if most reach beyond
            their images.
    """
    rows = sorted(told.rows, key=lambda row: row.image)  # stable: objects of an image stay in their order
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    images = np.array([row.image for row in rows], dtype=np.int64)
    sizes = np.array(told.sizes, dtype=np.int64).reshape(-1, 2)
    ends = np.ones((len(rows), 2)) if told.relative else sizes[images][:, ::-1].astype(np.float64)
    ends = np.tile(np.where(ends > 0, ends, np.inf), 2)
    _refuse_other_corners(told, rows, boxes, ends)
    wrong = _broken(told.field, boxes, ends)
    _refuse_many(told, rows, boxes, wrong)
    inside = np.clip(np.nan_to_num(boxes, nan=0.0, posinf=0.0, neginf=0.0), 0, ends)
    notes = [
        _left_out(told, [rows[i] for i in np.flatnonzero(flags)], boxes[flags], reason) for reason, flags in wrong if flags.any()
    ]
    kept = ~np.any([flags for _, flags in wrong], axis=0)
    copies = _copies(rows, kept)
    if copies.any():
        notes.append(_left_out(told, [rows[i] for i in np.flatnonzero(copies)], boxes[copies], "an exact copy of another object"))
    kept &= ~copies
    clipped = int((kept & (np.abs(inside - boxes) > (0.01 if told.relative else 1)).any(axis=1)).sum())
    if clipped:
        notes.append(f"{told.where}: cut {clipped:,} of {count_of(int(kept.sum()), 'box', 'boxes')} at the edge of the image")
    found = [rows[i] for i in np.flatnonzero(kept)]
    segments, note = _masks(told, found)
    counts = np.bincount(images[kept], minlength=len(sizes))
    objects = Objects(
        starts_of(counts),
        inside[kept],
        np.array([row.label for row in found], dtype=np.int64),
        np.array([row.crowd for row in found], dtype=bool),
        np.array([row.area for row in found], dtype=np.float64),
        segments,
        sizes,
        told.image_ids,
        told.category_ids,
        told.relative,
    )
    return objects, [*notes, *([note] if note else [])]


def _broken(field: str, boxes: NDArray[np.float64], ends: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """What is wrong with boxes, and which of them it is; each is counted once."""
    sides = boxes[:, 2:] - boxes[:, :2]
    finite = np.isfinite(boxes).all(axis=1)
    tests = {
        f"a {field} with numbers that are not finite": ~finite,
        f"a {field} of negative width or height": (sides < 0).any(axis=1),
        f"a {field} {EMPTY}": (sides == 0).any(axis=1),
        f"a {field} outside of the image": (boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= ends[:, :2]).any(axis=1),
    }
    found, seen = list[tuple[str, NDArray[np.bool_]]](), np.zeros(len(boxes), bool)
    for reason, flags in tests.items():
        found.append((reason, flags & ~seen))
        seen |= flags
    return found


def _refuse_many(
    told: Told, rows: Sequence[Row], boxes: NDArray[np.float64], wrong: Sequence[tuple[str, NDArray[np.bool_]]]
) -> None:
    total = sum(int(flags.sum()) for _, flags in wrong)
    empty = sum(int(flags.sum()) for reason, flags in wrong if reason.endswith(EMPTY))  # a click of the mouse makes one
    if not total or (total - empty <= MOST_BROKEN * len(rows) and total < len(rows)):
        return
    reason, flags = max(wrong, key=lambda each: int(each[1].sum()))
    first = int(np.flatnonzero(flags)[0])
    raise UnveilError(
        f"{told.where}: {total:,} of {count_of(len(rows), 'object')} cannot be used: {rows[first].name} has {reason} "
        f"({_numbers(boxes[first])} as left, top, right, bottom). Expected {told.expected}"
    )


def _refuse_other_corners(told: Told, rows: Sequence[Row], boxes: NDArray[np.float64], ends: NDArray[np.float64]) -> None:
    """Raises `UnveilError` if most boxes reach beyond their images, as they do if right and bottom are taken for sizes."""
    known = np.isfinite(ends)
    limits = np.where(known, FAR_OUT * ends, np.inf)
    beyond = ((boxes > ends + limits) | (boxes < np.where(known, -limits, -np.inf))).any(axis=1)
    if len(rows) < 4 or beyond.mean() <= 0.5:
        return
    first = int(np.flatnonzero(beyond)[0])
    raise UnveilError(
        f"{told.where}: {int(beyond.sum()):,} of {len(rows):,} boxes reach beyond their images: the {told.field} of "
        f"{rows[first].name} goes from {_numbers(boxes[first, :2])} to {_numbers(boxes[first, 2:])}, but its image from 0, 0 to "
        f"{_numbers(ends[first, 2:])}. Expected {told.expected}"
    )


def _numbers(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.6g}" for value in values.tolist())


def _left_out(told: Told, rows: Sequence[Row], boxes: NDArray[np.float64], reason: str) -> str:
    verb = "is" if len(rows) == 1 else "are"
    what = reason if reason.startswith("an exact") else f"{reason} ({_numbers(boxes[0])} as left, top, right, bottom)"
    has = "has" if reason != "an exact copy of another object" else verb
    return f"{told.where}: left out {count_of(len(rows), 'object')}: {examples([row.name for row in rows])} {has} {what}"


def _copies(rows: Sequence[Row], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which objects have the image, the class, the box and the mask of an earlier one."""
    seen, found = dict[Any, list[Row]](), np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        same = seen.setdefault((row.image, row.label, row.box, row.crowd), [])
        if kept[i] and any(other.segment == row.segment for other in same):
            found[i] = True
        elif kept[i]:
            same.append(row)
    return found


def _masks(told: Told, rows: Sequence[Row]) -> tuple[list[Segment | None] | None, str]:
    """The masks of objects, None if there are none; and what the user should know about them."""
    segments = [row.segment for row in rows]
    missing = sum(segment is None for segment in segments)
    if missing == len(segments):
        return None, ""
    told_boxes = [row for row in rows if row.segment is not None and not row.crowd]
    if told_boxes and all(is_rectangle(row.segment, row.box) for row in told_boxes if row.segment is not None):
        return None, f"{told.where}: each mask is the rectangle of its box, so there are boxes and no masks"
    verb = "has" if missing == 1 else "have"
    note = f"{told.where}: {missing:,} of {count_of(len(rows), 'object')} {verb} no mask, and only a box" if missing else ""
    return segments, note


def class_sentence(where: str, objects: Objects, classes: Sequence[str]) -> str:
    """A sentence for the user: "annotations.json has 120 objects in 10 images: cat (70), dog (50)"."""
    counts = Counter(objects.labels.tolist())
    shown = ", ".join(f"{classes[label]} ({count:,})" for label, count in counts.most_common(8))
    many = f", ... ({len(classes):,} classes)" if len(counts) > 8 else ""
    masks = " with masks" if objects.segments is not None else ""
    crowds = f", {int(objects.crowd.sum()):,} of them crowds" if objects.crowd.any() else ""
    empty = int((objects.counts == 0).sum())
    none = f"; {count_of(empty, 'image')} without objects" if empty else ""
    what = f"{count_of(len(objects.labels), 'object')}{masks}{crowds} in {count_of(len(objects), 'image')}{none}"
    return f"{where} has {what}" + (f": {shown}{many}" if shown else "")
