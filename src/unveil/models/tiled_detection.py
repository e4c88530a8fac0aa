"""Detections in overlapping tiles of a large image, merged."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import batched_nms, box_area

from unveil.blocks.patches import Size

CUT = 1.5
"""A box that ends within so many pixels of the inner edge of a tile may have been cut by it."""
SAME = 0.5
"""A box that was cut is dropped if more than this share of it is in a better one."""


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

    Whole boxes go through non-maximum suppression. A box that an edge has cut is kept only if no other one shows the same object.
    It is computed on the CPU, since each decision depends on those before it.

    Args:
        boxes: In pixels of the image.
        scores: Their scores.
        labels: Their classes.
        cut: See `cut_by`.
        nms: Overlap (IoU) from which the weaker of two detections of a class is dropped.
        most: How many to keep.
    """
    device = boxes.device
    boxes, scores, labels, cut = (each.cpu() for each in (boxes, scores, labels, cut))
    whole, parts = torch.where(~cut)[0], torch.where(cut)[0]
    whole = whole[batched_nms(boxes[whole], scores[whole], labels[whole], nms)]
    parts = parts[scores[parts].argsort(descending=True, stable=True)]
    kept = [whole]
    for label in labels[parts].unique():
        mine = parts[labels[parts] == label]
        kept.append(mine[are_new(boxes[mine], boxes[whole[labels[whole] == label]])])
    chosen = torch.cat(kept)
    return chosen[scores[chosen].argsort(descending=True, stable=True)][:most].to(device)


def are_new(parts: Float[Tensor, "n 4"], whole: Float[Tensor, "m 4"]) -> Bool[Tensor, " n"]:
    """Which boxes that were cut, the best first, show an object that no whole one and no better part shows.

    A part lies in a whole box of its object. Of two parts, the smaller one lies in the other.
    """
    areas, kept = box_area(parts).clamp(min=1e-6), torch.zeros(len(parts), dtype=torch.bool)
    for i, part in enumerate(parts):
        in_whole = area_in_both(part, whole) / areas[i]
        in_parts = area_in_both(part, parts[kept]) / torch.minimum(areas[i], areas[kept])
        kept[i] = not (torch.cat([in_whole, in_parts]) > SAME).any()
    return kept


def area_in_both(box: Float[Tensor, " 4"], others: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """The area that a box shares with each other one."""
    corner = torch.maximum(box[:2], others[:, :2])
    return (torch.minimum(box[2:], others[:, 2:]) - corner).clamp(min=0).prod(dim=1)
