"""What torchvision has otherwise than detectron2, in the parts of a Mask R-CNN: anchors, RoIAlign, losses and mask targets.

| | torchvision | detectron2, and here by default | option |
| --- | --- | --- | --- |
| RoIAlign | shifted by half a pixel | aligned with the pixels | `aligned` |
| samples in a cell of RoIAlign | 2 x 2 | one for each pixel of the map | `sampling_ratio` |
| loss of boxes | squared up to 1/9, then linear | linear | `smooth_l1_beta` |
| sides of anchors | rounded to even pixels | exact | `round_anchors` |
| targets of masks | shares of a cell | 0 or 1 | `binary_masks` |

Letters: n boxes, C channels, H W pixels of an image, h w of a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import box_area, roi_align

CANONICAL = 224 / 16
"""Pixels of a map in the side of a box that is pooled from it (FPN, equation 1): boxes of 224 pixels from the map of stride 16."""
OBJECTS_AT_ONCE = 32
"""Masks that are converted to floating point at once: they take 4 bytes for each pixel of an image."""


class RoIPool(nn.Module):
    """RoIAlign (Mask R-CNN, section 3) of each box from the map that suits its size (FPN, section 4.2).

    torchvision's `MultiScaleRoIAlign` guesses the strides from the first batch, and guesses wrong if the images are padded much.

    Args:
        strides: Pixels between two values of each map.
        size: Rows and columns of the result.
        sampling_ratio: Samples in each direction of a cell; 0 for one for each pixel of the map.
        aligned: Whether the value at (i, j) of a map is that of the point (i + 0.5, j + 0.5), as it is of an image.
    """

    def __init__(self, strides: Sequence[float], size: int, sampling_ratio: int = 0, aligned: bool = True) -> None:
        super().__init__()
        self.strides, self.size, self.sampling_ratio, self.aligned = tuple(strides), size, sampling_ratio, aligned

    def levels(self, boxes: Float[Tensor, "n 4"]) -> Int[Tensor, " n"]:
        """The map of each box."""
        level = torch.log2(box_area(boxes).sqrt() / (CANONICAL * self.strides[0])) + 1e-6
        return level.floor().clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: Sequence[Float[Tensor, "B C _ _"]], boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "n C s s"]:
        """The features in the boxes of each image, image by image, in float32."""
        flat = torch.cat(list(boxes))
        image = torch.cat([each.new_full((len(each), 1), i) for i, each in enumerate(boxes)])
        regions, level = torch.cat([image, flat], dim=1), self.levels(flat)
        out = flat.new_zeros(len(flat), maps[0].shape[1], self.size, self.size)
        for i, (each, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.where(level == i)[0]
            pooled = roi_align(
                each.float(), regions[here], (self.size, self.size), 1 / stride, self.sampling_ratio or -1, self.aligned
            )
            out = out.index_copy(0, here, pooled)
        return out


def anchors_of(side: float, ratios: Sequence[float], rounded: bool) -> Float[Tensor, "A 4"]:
    """Boxes around (0, 0) with an area of `side` squared; a ratio is height / width."""
    roots = torch.tensor(ratios, dtype=torch.float32).sqrt()
    height, width = side * roots, side * (1 / roots)
    anchors = torch.stack([-width, -height, width, height], dim=1) / 2
    return anchors.round() if rounded else anchors


def anchor_grid(cell: Float[Tensor, "A 4"], rows: int, columns: int, stride: float) -> Float[Tensor, "n 4"]:
    """The anchors of each value of a map, row by row."""
    y, x = (torch.arange(side, dtype=torch.float32, device=cell.device) * stride for side in (rows, columns))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return (torch.stack([x, y, x, y], dim=2)[:, :, None] + cell).reshape(-1, 4)


def box_loss(found: Float[Tensor, "n 4"], true: Float[Tensor, "n 4"], beta: float, samples: int) -> Float[Tensor, ""]:
    """Smooth L1, summed over the boxes of objects, over the number of all samples (Fast R-CNN, section 2.3)."""
    total: Tensor = F.smooth_l1_loss(found, true, beta=beta, reduction="sum")
    return total / max(samples, 1)


def mask_targets(
    masks: Bool[Tensor, "m H W"],
    boxes: Float[Tensor, "n 4"],
    objects: Int[Tensor, " n"],
    size: int,
    *,
    aligned: bool = True,
    binary: bool = True,
) -> Float[Tensor, "n size size"]:
    """The part of a mask within each box, in cells.

    Args:
        masks: Of all objects of an image.
        boxes: Boxes that match an object.
        objects: The object of each box.
        size: Rows and columns of cells.
        aligned: As in `RoIPool`.
        binary: Whether a cell is 1 from half of its area on, or else the share of its area.
    """
    out = boxes.new_zeros(len(boxes), size, size)
    for first in range(0, len(masks), OBJECTS_AT_ONCE):
        part = masks[first : first + OBJECTS_AT_ONCE]
        here = torch.where((objects >= first) & (objects < first + len(part)))[0]
        if len(here):
            regions = torch.cat([(objects[here] - first).to(boxes)[:, None], boxes[here]], dim=1)
            out[here] = roi_align(part[:, None].to(boxes), regions, (size, size), 1.0, -1, aligned)[:, 0]
    return (out >= 0.5).to(out) if binary else out


def mask_loss(logits: Float[Tensor, "n K s s"], labels: Int[Tensor, " n"], true: Float[Tensor, "n s s"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of the mask of the true class (Mask R-CNN, section 3); 0 without objects."""
    if not len(labels):
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(labels), device=labels.device), labels], true)


def shapes_of(sizes: Int[Tensor, "B 2"]) -> list[tuple[int, int]]:
    """Heights and widths as torchvision takes them."""
    return [(int(height), int(width)) for height, width in sizes.tolist()]


def in_full(maps: Sequence[Tensor]) -> torch.autocast:
    """A context without autocast, on the device of these maps."""
    return torch.autocast(maps[0].device.type, enabled=False)
