"""The mask of a detection at the size of its image, from probabilities within its box."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.patches import Size


def pasted_mask(mask: Float[Tensor, "s s"], box: Sequence[float], size: Size) -> Bool[Tensor, "H W"]:
    """The pixels whose probability is at least 0.5, on the CPU.

    A pixel takes the value at its centre, between the centres of the cells of the box, as in detectron2. torchvision rounds boxes
    to pixels before, which moves the edge of a small object by up to a pixel. Only the pixels within the box are computed.

    Args:
        mask: Probabilities within the box. Outside of it they are 0.
        box: Left, top, right and bottom in pixels.
        size: Height and width of the image.
    """
    left, top, right, bottom = box
    pixels = torch.zeros(size, dtype=torch.bool)
    columns = range(max(0, int(left)), min(size[1], int(-(-right // 1))))
    rows = range(max(0, int(top)), min(size[0], int(-(-bottom // 1))))
    if not (len(rows) and len(columns) and right > left and bottom > top):
        return pixels
    x, y = (torch.arange(each.start, each.stop, device=mask.device) + 0.5 for each in (columns, rows))
    x, y = 2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1  # -1 and 1 are the edges of the box
    grid = torch.stack([x.expand(len(rows), -1), y[:, None].expand(-1, len(columns))], dim=2)
    values = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
    pixels[rows.start : rows.stop, columns.start : columns.stop] = (values >= 0.5).cpu()
    return pixels
