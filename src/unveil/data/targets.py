"""Targets of a batch: classes, labels, numbers, boxes, or one class per pixel. They follow the geometry of their images.

Letters: B images, K classes, H W sides of an image as stored, S T sides of the augmented image, M objects in an image.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.pixels import IGNORE
from unveil.data.tensor_batch import TensorBatch


class Geometry(NamedTuple):
    """The crop, resize and flip from which each augmented image was made."""

    boxes: Float[Tensor, "B 4"]
    """Top, left, height and width of the crop, in pixels of the image as stored: whole numbers. It may extend beyond the edge."""
    size: Size
    """Height and width of the result."""
    flip: Bool[Tensor, " B"] | None = None
    """Whether each image is mirrored left to right after the crop; None if no image is."""


Draw = Callable[[Int[Tensor, "B 2"], Int[Tensor, " B"]], Geometry]
"""Draws the crop of each image from the sizes (height, width) of the images and the keys of the samples."""


@runtime_checkable
class Targets(Protocol):
    """The targets of a task, one per image."""

    def to(self, device: torch.device) -> Self:
        """Copies the targets to another device."""

    def first(self, count: int) -> Self:
        """The targets of the first `count` images."""

    def pinned(self) -> Self:
        """Copies the targets to page-locked memory."""

    def transformed(self, geometry: Geometry) -> Self:
        """The targets of the images after a crop, a resize and a flip."""


class _Classes(NamedTuple):
    labels: Tensor


class ClassTargets(_Classes, TensorBatch):
    """One class per image.

    Attributes:
        labels: (B,) classes, -1 for an image without a class; or (B, K) shares of the classes after mixing.
    """

    __slots__ = ()

    def transformed(self, geometry: Geometry) -> "ClassTargets":
        """Returns self: the class of an image does not depend on its crop."""
        return self


class _Values(NamedTuple):
    values: Tensor


class MultiLabelTargets(_Values, TensorBatch):
    """Any number of labels per image.

    Attributes:
        values: (B, K) float32: 1 where an image has a label, 0 where it has not, NaN where that is unknown.
    """

    __slots__ = ()

    def transformed(self, geometry: Geometry) -> "MultiLabelTargets":
        """Returns self: the labels of an image do not depend on its crop."""
        return self


class NumberTargets(_Values, TensorBatch):
    """One number per image.

    Attributes:
        values: (B,) float32, NaN for an image without a number.
    """

    __slots__ = ()

    def transformed(self, geometry: Geometry) -> "NumberTargets":
        """Returns self: the number of an image does not depend on its crop."""
        return self


PER_IMAGE = (ClassTargets, MultiLabelTargets, NumberTargets)
"""Targets that an image may lack, and that are told by label files."""


class _Maps(NamedTuple):
    maps: Int[Tensor, "B H W"]


class PixelTargets(_Maps, TensorBatch):
    """One class per pixel.

    Attributes:
        maps: (B, H, W) int64 classes, `IGNORE` for pixels without a class. Each map is in the upper left corner like its image,
            and the rest is `IGNORE`.
    """

    __slots__ = ()

    def transformed(self, geometry: Geometry) -> "PixelTargets":
        """The maps (B, S, T) after crop, resize and flip. Pixels outside of the image are `IGNORE`.

        Each pixel takes the class that lies under its centre, which is where `unveil.data.resize` centres its filter. torchvision
        and `F.interpolate(mode="nearest")` take the upper left corner instead, which shifts a map against its image.
        """
        height, width = self.maps.shape[1:]
        rows, columns = source_grid(geometry)
        rows, columns = rows[:, :, None], columns[:, None, :]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        image = torch.arange(len(self.maps), device=self.maps.device)[:, None, None]
        maps = self.maps[image, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
        return PixelTargets(torch.where(inside, maps, IGNORE))


class _Boxes(NamedTuple):
    boxes: Float[Tensor, "B M 4"]
    labels: Int[Tensor, "B M"]
    crowd: Bool[Tensor, "B M"] | None = None
    area: Float[Tensor, "B M"] | None = None
    masks: Bool[Tensor, "B M H W"] | None = None


class BoxTargets(_Boxes, TensorBatch):
    """The objects of each image, padded to M, the largest number of objects in an image of the batch.

    Attributes:
        boxes: (B, M, 4) left, top, right and bottom in pixels, as in torchvision ("xyxy"). Padding is 0.
        labels: (B, M) int64 class of each object. Padding is -1.
        crowd: (B, M) whether each is a group of objects that are not told apart, which losses skip and scores ignore; None means
            that none is.
        area: (B, M) pixels of each object, by which COCO calls it small, medium or large; None means the area of its box.
        masks: (B, M, H, W) bool pixels of each object, in the upper left corner of the canvas like its image. All False for an
            object that has only a box. None if there are no masks.
    """

    __slots__ = ()

    def transformed(self, geometry: Geometry) -> "BoxTargets":
        """The objects after crop, resize and flip. Boxes are clipped to the result, and objects outside of it are removed.

        The box of an object with a mask is that of the pixels of the mask that are left, as in large-scale jitter (Ghiasi et al.,
        2020): the clipped box would be too large for a part of an object. The area is the number of these pixels; without a mask,
        it changes as the area of the box does.
        """
        height, width = geometry.size
        top, left, box_height, box_width = geometry.boxes[:, None, None, :].unbind(3)  # (B, 1, 1)
        x = (self.boxes[..., 0::2] - left) * (width / box_width)  # (B, M, 2)
        y = (self.boxes[..., 1::2] - top) * (height / box_height)
        if geometry.flip is not None:
            x = torch.where(geometry.flip[:, None, None], width - x.flip(2), x)
        x, y = x.clamp(0, width), y.clamp(0, height)
        boxes = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=2)
        area = None if self.area is None else self.area * _areas(boxes) / _areas(self.boxes).clamp(min=1e-6)
        masks = None if self.masks is None else cropped_masks(self.masks, geometry)
        if masks is not None and self.masks is not None:
            has_mask = self.masks.flatten(2).any(dim=2)
            boxes = torch.where(has_mask[..., None], boxes_of_masks(masks).to(boxes.dtype), boxes)
            area = None if area is None else torch.where(has_mask, masks.sum(dim=(2, 3)).to(area.dtype), area)
        left_over = (self.labels >= 0) & (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])
        return BoxTargets(
            torch.where(left_over[..., None], boxes, 0.0),
            torch.where(left_over, self.labels, -1),
            None if self.crowd is None else self.crowd & left_over,
            None if area is None else torch.where(left_over, area, 0.0),
            None if masks is None else masks & left_over[..., None, None],
        )


def _areas(boxes: Float[Tensor, "B M 4"]) -> Float[Tensor, "B M"]:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def boxes_of_masks(masks: Bool[Tensor, "B M H W"]) -> Int[Tensor, "B M 4"]:
    """The smallest box (left, top, right, bottom) around the pixels of each mask; 0 if it has none."""
    sides = []
    for dim in (2, 3):  # what is left of the rows gives left and right, of the columns top and bottom
        seen = masks.any(dim=dim)
        first = seen.to(torch.uint8).argmax(dim=2)
        last = seen.shape[2] - seen.flip(2).to(torch.uint8).argmax(dim=2)
        sides.append((first, torch.where(seen.any(dim=2), last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=2)


def cropped_masks(masks: Bool[Tensor, "B M H W"], geometry: Geometry) -> Bool[Tensor, "B M S T"]:
    """Masks after crop, resize and flip, as `PixelTargets.transformed`; False outside of the image."""
    height, width = masks.shape[2:]
    result = masks.new_empty((*masks.shape[:2], *geometry.size))
    for source, target, row, column in zip(masks, result, *source_grid(geometry), strict=True):
        inside = ((row >= 0) & (row < height))[:, None] & (column >= 0) & (column < width)  # (S, T)
        whole = source.index_select(1, row.clamp(0, height - 1)).index_select(2, column.clamp(0, width - 1))
        torch.logical_and(whole, inside, out=target)
    return result


def source_grid(geometry: Geometry) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B T"]]:
    """The row of the original under the centre of each row of the results, and the same for columns. They may lie outside of it."""
    boxes = geometry.boxes.long()
    rows = source_indices(boxes[:, 0], boxes[:, 2], geometry.size[0])
    columns = source_indices(boxes[:, 1], boxes[:, 3], geometry.size[1])
    if geometry.flip is not None:
        columns = torch.where(geometry.flip[:, None], columns.flip(1), columns)
    return rows, columns


def source_indices(start: Int[Tensor, " B"], length: Int[Tensor, " B"], size: int) -> Int[Tensor, "B S"]:
    """The row (or column) of the original under the centre of each of `size` rows of a crop.

    The centre of row i is at start + (i + 1/2) length / size. The floor is computed in integers, so CPU and GPU agree exactly.
    """
    middle = 2 * torch.arange(size, device=start.device) + 1
    return start[:, None] + middle * length[:, None] // (2 * size)
