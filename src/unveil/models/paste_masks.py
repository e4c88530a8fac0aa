"""The masks of a detector, which are drawn in cells within their boxes, as masks of the whole image."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.patches import Size


def paste_masks(
    masks: Float[Tensor, "n s s"], boxes: Float[Tensor, "n 4"], size: Size, threshold: float = 0.5
) -> Bool[Tensor, "n H W"]:
    """The pixels of each object: those in its box where the probability of its mask, between cells bilinear, is high enough.

    A pixel is in a box if its centre is, and a cell has its probability at its own centre, as `RoIPool` and `mask_targets` have it
    with `aligned`. Between the centres of the outermost cells and the edge of the box, the probability is constant.

    Args:
        masks: Probabilities in cells, as `MaskRCNN.detect` returns them.
        boxes: Left, top, right and bottom in pixels of the image to draw in. They may reach over its edge.
        size: Height and width of this image.
        threshold: The lowest probability of a pixel of the object.
    """
    out = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for canvas, mask, (left, top, right, bottom) in zip(out, masks.float(), boxes.tolist(), strict=True):
        (rows, down), (columns, across) = (
            along(*ends, side, mask) for ends, side in (((top, bottom), size[0]), ((left, right), size[1]))
        )
        canvas[rows, columns] = down @ mask @ across.t() >= threshold
    return out


def along(start: float, end: float, side: int, mask: Float[Tensor, "s s"]) -> tuple[slice, Float[Tensor, "p s"]]:
    """In one direction, the pixels of an image whose centres are in a box, and the weights of the cells in each of them."""
    first, last = (min(max(math.ceil(edge - 0.5), 0), side) for edge in (start, end))
    cells = mask.shape[0]
    pixels = torch.arange(first, max(first, last), device=mask.device) + 0.5
    place = ((pixels - start) / max(end - start, 1e-6) * cells - 0.5).clamp(0, cells - 1)
    distance = (place[:, None] - torch.arange(cells, device=mask.device)).abs()
    return slice(first, max(first, last)), (1 - distance).clamp(min=0)
