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
        boxes = geometry.boxes.long()
        rows = source_indices(boxes[:, 0], boxes[:, 2], geometry.size[0])  # (B, S)
        columns = source_indices(boxes[:, 1], boxes[:, 3], geometry.size[1])  # (B, T)
        if geometry.flip is not None:
            columns = torch.where(geometry.flip[:, None], columns.flip(1), columns)
        rows, columns = rows[:, :, None], columns[:, None, :]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        image = torch.arange(len(self.maps), device=self.maps.device)[:, None, None]
        maps = self.maps[image, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
        return PixelTargets(torch.where(inside, maps, IGNORE))


class _Boxes(NamedTuple):
    boxes: Float[Tensor, "B M 4"]
    labels: Int[Tensor, "B M"]


class BoxTargets(_Boxes, TensorBatch):
    """The objects of each image, padded to M, the largest number of objects in an image of the batch.

    Attributes:
        boxes: (B, M, 4) left, top, right and bottom in pixels, as in torchvision ("xyxy"). Padding is 0.
        labels: (B, M) int64 class of each object. Padding is -1.
    """

    __slots__ = ()

    def transformed(self, geometry: Geometry) -> "BoxTargets":
        """The boxes after crop, resize and flip, clipped to the result. Objects outside of the result are removed."""
        height, width = geometry.size
        top, left, box_height, box_width = geometry.boxes[:, None, None, :].unbind(3)  # (B, 1, 1)
        x = (self.boxes[..., 0::2] - left) * (width / box_width)  # (B, M, 2)
        y = (self.boxes[..., 1::2] - top) * (height / box_height)
        if geometry.flip is not None:
            x = torch.where(geometry.flip[:, None, None], width - x.flip(2), x)
        x, y = x.clamp(0, width), y.clamp(0, height)
        left_over = (self.labels >= 0) & (x[..., 0] < x[..., 1]) & (y[..., 0] < y[..., 1])
        boxes = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=2)
        return BoxTargets(torch.where(left_over[..., None], boxes, 0.0), torch.where(left_over, self.labels, -1))


def source_indices(start: Int[Tensor, " B"], length: Int[Tensor, " B"], size: int) -> Int[Tensor, "B S"]:
    """The row (or column) of the original under the centre of each of `size` rows of a crop.

    The centre of row i is at start + (i + 1/2) length / size. The floor is computed in integers, so CPU and GPU agree exactly.
    """
    middle = 2 * torch.arange(size, device=start.device) + 1
    return start[:, None] + middle * length[:, None] // (2 * size)
