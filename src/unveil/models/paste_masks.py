"""Masks of detections at the size of their image, from probabilities within their boxes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.rle import encoded


def pasted_masks(masks: Float[Tensor, "n s s"], boxes: Float[Tensor, "n 4"], size: Size) -> list[dict[str, object]]:
    """The pixels whose probability is at least 0.5, as run lengths.

    A pixel takes the value at its centre, between the centres of the cells of the box, as in detectron2. torchvision rounds boxes
    to pixels before, which moves the edge of a small object by up to a pixel. One mask is drawn at a time, and only within its box,
    so that hundreds of masks of a large image fit into memory.

    Args:
        masks: Probabilities within each box. Outside of it they are 0.
        boxes: Left, top, right and bottom in pixels.
        size: Height and width of the image.
    """
    found = []
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        left, top, right, bottom = box
        pixels = torch.zeros(size, dtype=torch.bool)
        columns = range(max(0, int(left)), min(size[1], -int(-right // 1)))
        rows = range(max(0, int(top)), min(size[0], -int(-bottom // 1)))
        if len(rows) and len(columns) and right > left and bottom > top:
            x, y = (torch.arange(each.start, each.stop, device=mask.device) + 0.5 for each in (columns, rows))
            x, y = 2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1  # -1 and 1 are the edges of the box
            grid = torch.stack([x.expand(len(rows), -1), y[:, None].expand(-1, len(columns))], dim=2)
            values = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
            pixels[rows.start : rows.stop, columns.start : columns.stop] = (values >= 0.5).cpu()
        found += encoded(pixels[None].numpy())
    return found
