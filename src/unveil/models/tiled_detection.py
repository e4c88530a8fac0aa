"""Detections in overlapping tiles of a large image, merged."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import batched_nms, box_area

from unveil.blocks.patches import Size

CUT = 1.5
"""A box that ends within so many pixels of the inner edge of a tile may have been cut by it."""
SAME = 0.5
"""A box that was cut is dropped if more than this share of it, or of another one, is in both."""


class Tile(NamedTuple):
    """A part of an image."""

    top: int
    left: int
    height: int
    width: int


def tiles_of(size: Size, tile: Size, overlap: float = 0.5) -> list[Tile]:
    """Tiles that cover an image. Those at its ends are moved inwards, so that each is whole if the image is large enough.

    Args:
        size: Height and width of the image.
        tile: Height and width of a tile.
        overlap: The smallest share of a tile that the next one has as well: an object of this share of a tile is whole in one.
    """
    starts = []
    for length, side in zip(size, tile, strict=True):
        steps = -(-max(length - side, 0) // max(1, int(side * (1 - overlap))))
        starts.append([round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0])
    rows, columns = starts
    return [Tile(y, x, min(tile[0], size[0] - y), min(tile[1], size[1] - x)) for y in rows for x in columns]


def cut_by(tile: Tile, boxes: Float[Tensor, "n 4"], size: Size) -> Bool[Tensor, " n"]:
    """Whether each box, in pixels of the image, ends at an edge of the tile that is none of the image."""
    left, top, right, bottom = boxes.unbind(1)
    near = torch.zeros_like(left, dtype=torch.bool)
    for edge, start, is_inner in (
        (left, tile.left, tile.left > 0),
        (top, tile.top, tile.top > 0),
        (right, tile.left + tile.width, tile.left + tile.width < size[1]),
        (bottom, tile.top + tile.height, tile.top + tile.height < size[0]),
    ):
        if is_inner:
            near |= (edge - start).abs() <= CUT
    return near


def merged(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    cut: Bool[Tensor, " n"],
    nms: float,
    most: int,
) -> Int[Tensor, " m"]:
    """The detections to keep from all tiles of an image, the best first.

    Whole boxes go through non-maximum suppression. A box that an edge has cut is kept only if no better one shows the same object.

    Args:
        boxes: In pixels of the image.
        scores: Their scores.
        labels: Their classes.
        cut: See `cut_by`.
        nms: Overlap (IoU) from which the weaker of two detections of a class is dropped.
        most: How many to keep.
    """
    whole, parts = torch.where(~cut)[0], torch.where(cut)[0]
    kept: list[int] = whole[batched_nms(boxes[whole], scores[whole], labels[whole], nms)].tolist()
    for part in parts[scores[parts].argsort(descending=True, stable=True)].tolist():
        others = [other for other in kept if labels[other] == labels[part]]
        if not others or share_in_both(boxes[part], boxes[others]) <= SAME:
            kept.append(part)
    chosen = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return chosen[scores[chosen].argsort(descending=True, stable=True)][:most]


def share_in_both(box: Float[Tensor, " 4"], others: Float[Tensor, "n 4"]) -> float:
    """The largest share of the smaller of two boxes that lies in both."""
    corner = torch.maximum(box[:2], others[:, :2])
    sides = (torch.minimum(box[2:], others[:, 2:]) - corner).clamp(min=0)
    smaller = torch.minimum(box_area(box[None]), box_area(others)).clamp(min=1e-6)
    return float((sides.prod(dim=1) / smaller).max())


def joined(parts: Sequence[Tensor], empty: Tensor) -> Tensor:
    """Tensors of all tiles as one; `empty` if there are none."""
    return torch.cat(list(parts)) if parts else empty
