"""Makes one tensor of the images, the crops or the class maps of a batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unveil.data.objects import ImageObjects
from unveil.data.pixels import IGNORE, ClassMap, Pixels
from unveil.data.resize import crop_bytes
from unveil.data.source import Source
from unveil.data.targets import BoxTargets, ClassTargets, Geometry, MultiLabelTargets, NumberTargets, PixelTargets


def stacked(images: Sequence[Pixels]) -> tuple[Tensor, Int[Tensor, "B 2"]]:
    """Images (H, W, C) as one tensor (B, C, H, W), each in the upper left corner, and their sizes. The rest is black."""
    sizes = torch.tensor([x.shape[:2] for x in images])
    height, width = sizes.amax(dim=0).tolist()
    new = np.zeros if len(sizes.unique(dim=0)) > 1 else np.empty
    canvas = new((len(images), height, width, images[0].shape[2]), images[0].dtype)
    for row, x in zip(canvas, images, strict=True):
        row[: x.shape[0], : x.shape[1]] = x  # channels last, as in files: transposing here would take longer
    return torch.from_numpy(canvas).permute(0, 3, 1, 2), sizes


def arrays_at(table: Tensor | Sequence[Pixels], rows: Int[Tensor, " B"]) -> list[Pixels]:
    """Images (H, W, C) of a table in memory, which is one tensor (N, C, H, W) if all have the same size."""
    if isinstance(table, Tensor):
        return [table[row].permute(1, 2, 0).numpy() for row in rows.tolist()]
    return [table[row] for row in rows.tolist()]


def images_at(
    table: Tensor | Sequence[Pixels], rows: Int[Tensor, " B"], size: Int[Tensor, " 2"]
) -> tuple[Tensor, Int[Tensor, "B 2"]]:
    """Images of a table in memory as one tensor (B, C, H, W), and their sizes; `size` is that of all if the table is one tensor."""
    if not isinstance(table, Tensor):
        return stacked(arrays_at(table, rows))
    rows = rows.pin_memory().to(table.device, non_blocking=True) if table.is_cuda else rows
    images = table[rows] if table.dtype == torch.uint8 else table.view(torch.int16)[rows].view(torch.uint16)
    return images, size.expand(len(rows), 2)


def cut_crops(
    images: Sequence[Pixels], geometry: Geometry, by_all_threads: Callable[[Callable[[int], None], Sequence[int]], object]
) -> UInt8[Tensor, "B C S T"]:
    """The crops of images (H, W, C). No canvas is made, on which the largest image would set the size.

    Args:
        images: The images.
        geometry: The box, the flip and the size of each crop.
        by_all_threads: Calls a function for each of several numbers, in threads.
    """
    result = torch.empty(len(images), images[0].shape[2], *geometry.size, dtype=torch.uint8)
    boxes = geometry.boxes.int().tolist()
    flips = [False] * len(images) if geometry.flip is None else geometry.flip.tolist()

    def cut(i: int) -> None:
        result[i] = crop_bytes(images[i], boxes[i], geometry.size, flips[i])

    by_all_threads(cut, range(len(images)))
    return result


def pixel_targets(maps: Sequence[ClassMap]) -> PixelTargets:
    """Stacks class maps, each in the upper left corner. The rest is `IGNORE`."""
    height, width = (max(x.shape[axis] for x in maps) for axis in range(2))
    canvas = np.full((len(maps), height, width), IGNORE, np.int64)
    for row, x in zip(canvas, maps, strict=True):
        row[: x.shape[0], : x.shape[1]] = x
    return PixelTargets(torch.from_numpy(canvas))


def box_targets(objects: Sequence[ImageObjects], sizes: Sequence[Sequence[int]]) -> BoxTargets:
    """Stacks the objects of images, and pads them to the largest number of objects, at least 1.

    Args:
        objects: Those of each image.
        sizes: Height and width of each image, which stands in the upper left corner of its canvas, as its masks do.
    """
    most = max(1, *(len(each.labels) for each in objects))
    shape = (len(objects), most)
    boxes, labels = np.zeros((*shape, 4), np.float32), np.full(shape, -1, np.int64)
    crowd, area = np.zeros(shape, bool), np.zeros(shape, np.float32)
    masks = None
    if any(each.masks is not None for each in objects):
        # Pages of zeros on which nothing is drawn take no time, unlike torch.zeros. They would take no memory either, but numpy
        # asks for pages of 2 MiB: 300 masks of 20 x 20 pixels in an image of 1500 x 1500 take 609 MB, and 10 MB with
        # NUMPY_MADVISE_HUGEPAGE=0.
        masks = np.zeros((*shape, *(max(size[axis] for size in sizes) for axis in range(2))), bool)
    for row, each in enumerate(objects):
        count = len(each.labels)
        boxes[row, :count], labels[row, :count], crowd[row, :count], area[row, :count] = each[:4]
        for place, patch in enumerate(each.masks or ()):
            assert masks is not None
            patch.paste(masks[row, place])
    whole, numbers, groups, areas = (torch.from_numpy(x) for x in (boxes, labels, crowd, area))
    return BoxTargets(whole, numbers, groups, areas, None if masks is None else torch.from_numpy(masks))


def label_targets(source: Source, indices: Int[Tensor, " B"]) -> ClassTargets | MultiLabelTargets | NumberTargets | None:
    """The labels of images of a source: a class, any number of labels, or a number for each; None if the source has none."""
    if source.values is not None:
        values = torch.from_numpy(source.values[indices.numpy()]).float()
        return NumberTargets(values) if values.ndim == 1 else MultiLabelTargets(values)
    return None if source.labels is None else ClassTargets(torch.from_numpy(source.labels[indices.numpy()]))


def numpy_type(dtype: torch.dtype) -> type[np.uint8] | type[np.uint16]:
    """The numpy type of uint8 or uint16."""
    return np.uint16 if dtype == torch.uint16 else np.uint8
