"""Masks as COCO stores them: run lengths, plain or compressed, and polygons.

Run lengths count pixels column by column, and begin with those outside of the object. The compressed form writes each number, less
the one two places before it, in characters of six bits. Decoding is done here, with checks, because the libraries trust the
numbers and write beyond the end of the mask if they are too large. Polygons are drawn by faster-coco-eval, which draws them as
COCO does.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from unveil.data.pixels import Unreadable

Segment = dict[str, Any] | list[list[float]]
"""Run lengths {"size": [height, width], "counts": text or list}, or polygons [x, y, x, y, ...] that together are the object."""
FAR = 10
"""How far a point of a polygon may lie outside of the image, in sides of the image. The time to draw grows with the length of
lines."""
ROUNDED = 0.005
"""By how much the corners of a polygon may differ from those of a box, in sides of the box. Tools round them differently."""
_LONGEST = 7
"""Maximum number of characters of a compressed number: more than any mask needs."""


class Patch(NamedTuple):
    """The rectangle of a mask that has all of its pixels: most objects are much smaller than their image."""

    top: int
    left: int
    pixels: Bool[np.ndarray, "h w"]

    def paste(self, canvas: Bool[np.ndarray, "H W"]) -> None:
        """Draws the mask on a canvas of False."""
        height, width = self.pixels.shape
        canvas[self.top : self.top + height, self.left : self.left + width] = self.pixels


def decoded(segment: Segment, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """The pixels of an object.

    Raises:
        Unreadable: If the mask has another size than the image, or is damaged.
    """
    pixels = np.zeros((height, width), bool)
    patch(segment, height, width).paste(pixels)
    return pixels


def patch(segment: Segment, height: int, width: int) -> Patch:
    """`decoded` without the columns and rows at the sides that the object does not reach."""
    counts = _drawn(segment, height, width) if isinstance(segment, list) else _checked(segment, height, width)
    ends = np.cumsum(counts)
    starts, ends = ends[0:-1:2], ends[1::2]  # of the runs inside of the object
    starts, ends = starts[starts < ends], ends[starts < ends]
    if not len(starts):
        return Patch(0, 0, np.zeros((0, 0), bool))
    first, last = int(starts[0]) // height, int(ends[-1] - 1) // height + 1  # columns
    values = np.zeros(2 * len(starts) + 1, bool)
    values[1::2] = True
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = first * height, starts, ends, last * height
    columns = np.repeat(values, np.diff(edges)).reshape(last - first, height)
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return Patch(top, first, np.ascontiguousarray(columns[:, top:bottom].T))


def _checked(segment: dict[str, Any], height: int, width: int) -> NDArray[np.int64]:
    if list(segment.get("size", ())) != [height, width]:
        raise Unreadable(f"segmentation of size {segment.get('size')} (height, width), but its image has {[height, width]}")
    counts = run_lengths(segment["counts"])
    total = int(counts.sum())
    if total != height * width or (counts < 0).any():
        raise Unreadable(f"segmentation with run lengths of {total:,} pixels in all, expected {height * width:,}")
    return counts


def run_lengths(counts: str | bytes | Sequence[int]) -> NDArray[np.int64]:
    """The run lengths of a mask, which begin with the pixels outside of the object.

    Raises:
        Unreadable: If they are no whole numbers, or the text is damaged.
    """
    if not isinstance(counts, str | bytes):
        if any(type(each) is not int or not 0 <= each < 2**31 for each in counts):
            raise Unreadable("segmentation with counts that are no whole numbers from 0 on")
        return np.asarray(counts, dtype=np.int64)
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise Unreadable("segmentation with counts that are no compressed run lengths") from None
    bits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((bits & 32) == 0)  # the last character of each number
    sizes = np.diff(ends, prepend=-1)
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or not len(ends) or ends[-1] != len(bits) - 1 or sizes.max() > _LONGEST:
        raise Unreadable("segmentation with counts that are no compressed run lengths")
    place = np.arange(len(bits)) - np.repeat(ends - sizes + 1, sizes)
    values = np.add.reduceat((bits & 31) << (5 * place), ends - sizes + 1)
    values -= np.where(bits[ends] & 16, np.int64(1) << (5 * sizes), 0)  # negative numbers
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _drawn(polygons: list[list[float]], height: int, width: int) -> NDArray[np.int64]:
    """The run lengths of polygons."""
    from faster_coco_eval.core import mask  # imported here, since data without polygons does not need it

    for polygon in polygons:
        for values, side in ((polygon[0::2], width), (polygon[1::2], height)):
            if not (min(values) >= -FAR * side and max(values) <= (FAR + 1) * side and math.isfinite(sum(values))):
                raise Unreadable(f"segmentation with a polygon far outside of its image of {width} x {height} pixels")
    found = mask.frPyObjects(polygons, height, width)
    return run_lengths((found[0] if len(found) == 1 else mask.merge(found))["counts"])


def encoded(masks: Bool[np.ndarray, "n H W"]) -> list[dict[str, Any]]:
    """Compressed run lengths of masks, as COCO json holds them."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            top, left = int(rows[0]), int(columns[0])
            piece = Patch(top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1])
        else:
            piece = Patch(0, 0, np.zeros((0, 0), bool))
        found.append(encoded_patch(piece, *mask.shape))
    return found


def encoded_patch(piece: Patch, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of a mask of which only a rectangle is given, in an image of this size."""
    rows, columns = piece.pixels.shape
    padded = np.zeros((columns, rows + 2), np.int8)
    padded[:, 1:-1] = piece.pixels.T
    steps = np.diff(padded, axis=1)  # 1 where a run begins in its column, -1 after its end
    first = piece.top + height * (piece.left + np.arange(columns))
    starts, ends = ((np.nonzero(steps == step)) for step in (1, -1))
    edges = np.stack([first[starts[0]] + starts[1], first[ends[0]] + ends[1]], axis=1).reshape(-1)
    same = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run that goes on in the next column
    edges = np.delete(edges, np.concatenate([2 * same + 1, 2 * same + 2]))
    counts = np.diff(edges, prepend=0, append=height * width)
    if len(edges) and edges[-1] == height * width:
        counts = counts[:-1]
    return {"size": [height, width], "counts": compressed(counts)}


def compressed(counts: NDArray[np.int64]) -> str:
    """Run lengths as text: the reverse of `run_lengths`."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    chars, kept = np.zeros((len(rest), _LONGEST), np.uint8), np.zeros((len(rest), _LONGEST), bool)
    alive = np.ones(len(rest), bool)
    for place in range(_LONGEST):
        bits, rest = rest & 31, rest >> 5
        more = np.where(bits & 16, rest != -1, rest != 0)  # the sign of the number is that of its last bit
        chars[:, place], kept[:, place] = (bits | more << 5) + 48, alive
        alive = alive & more
    return chars[kept].tobytes().decode("ascii")


def as_text(counts: str | bytes) -> str:
    """Compressed run lengths as JSON can hold them."""
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def is_rectangle(segment: Segment, box: Sequence[float]) -> bool:
    """Whether a segment is one polygon with the corners of a box (left, top, right, bottom): a box, and no mask."""
    if not isinstance(segment, list) or len(segment) != 1 or len(segment[0]) not in (8, 10):
        return False
    left, top, right, bottom = box
    points = {(segment[0][i], segment[0][i + 1]) for i in range(0, len(segment[0]), 2)}
    reach = (ROUNDED * (right - left), ROUNDED * (bottom - top))
    corners = [(left, top), (left, bottom), (right, top), (right, bottom)]
    found = [[i for i, corner in enumerate(corners) if _is_near(point, corner, reach)][:1] for point in points]
    return sorted(found) == [[0], [1], [2], [3]]


def _is_near(point: tuple[float, float], corner: tuple[float, float], reach: tuple[float, float]) -> bool:
    return all(abs(a - b) <= far for a, b, far in zip(point, corner, reach, strict=True))
