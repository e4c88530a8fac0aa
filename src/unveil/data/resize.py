"""Crops and resizes a whole batch with the same results as Pillow's antialiased bicubic filter.

A resize is linear: it is a product with one matrix for the rows and one for the columns. Crops and flips only change the entries of
the matrices. On a CPU, large 8-bit images are resized one by one in integer arithmetic instead, as in Pillow. Most entries of the
matrices are 0, so the products would take many times longer there.

Letters: B images, C channels, H W sides of the canvas, S T sides of the result, K pixels that contribute to one pixel of the
    result.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from unveil.blocks.patches import Size

MAX_VALUE = {torch.uint8: 255.0, torch.uint16: 65535.0}
LARGE = 64
"""On a CPU, images are resized one at a time if both sides of the result have at least this many pixels."""


def crop_resize(
    images: Tensor,
    boxes: Float[Tensor, "B 4"],
    sizes: Int[Tensor, "B 2"],
    image_size: Size,
    flip: Bool[Tensor, " B"] | None = None,
    max_shrink: float = 0.0,
) -> Float[Tensor, "B C S T"]:
    """Crops and resizes each image like Pillow's bicubic filter, to floats between 0 and 1.

    Args:
        images: (B, C, H, W), uint8 or uint16, each in the upper left corner of a canvas.
        boxes: Top, left, height and width of each crop: whole numbers. The area outside the image is black.
        sizes: Height and width of each image on its canvas.
        image_size: Height and width of the result.
        flip: Which results are mirrored left to right; none by default.
        max_shrink: At least the number of pixels of a box that become one pixel of the result, on either axis. Only boxes longer
            than the canvas need it. It is given so that the host does not wait for a GPU.
    """
    flip = torch.zeros(len(images), dtype=torch.bool, device=images.device) if flip is None else flip
    if images.device.type == "cpu" and images.dtype == torch.uint8 and min(image_size) >= LARGE:
        # The loop cannot be traced. As a decorator, `torch.compiler.disable` would import the compiler in every process, which
        # takes seconds. Here it is called only during compilation.
        loop = torch.compiler.disable(one_by_one) if torch.compiler.is_compiling() else one_by_one
        result: Tensor = loop(images, boxes, sizes, image_size, flip, max_shrink)
        return result
    # Bytes are exact in half precision, and tensor cores are fast. The rounding of weights and of the rows in between is less than
    # half a step of a byte (0.4 measured on an H100).
    half = images.device.type == "cuda" and images.dtype == torch.uint8
    return by_products(images, boxes, sizes, image_size, flip, torch.float16 if half else torch.float32, max_shrink)


def by_products(
    images: Tensor, boxes: Tensor, sizes: Tensor, image_size: Size, flip: Tensor, kind: torch.dtype, max_shrink: float = 0.0
) -> Float[Tensor, "B C S T"]:
    """The whole batch as two matrix products, computed in the dtype `kind`."""
    rows = resize_matrix(boxes[:, 0], boxes[:, 2], sizes[:, 0], images.shape[2], image_size[0], max_shrink).to(kind)
    columns = resize_matrix(boxes[:, 1], boxes[:, 3], sizes[:, 1], images.shape[3], image_size[1], max_shrink).to(kind)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    result = torch.empty(*images.shape[:2], *image_size, device=images.device)
    chunk = max(1, 2 ** (18 if images.device.type == "cpu" else 25) // images[0].numel())  # the cache of a CPU is small
    with torch.autocast(images.device.type, enabled=False):  # evaluations run under it, and bfloat16 has an error of 0.7 %
        for x, r, c, out in zip(*(torch.split(x, chunk) for x in (images, rows, columns, result)), strict=True):
            x = x.to(kind, memory_format=torch.contiguous_format)
            x = x.flatten(1, 2) @ c.mT  # (B, C * H, T)
            out.copy_(r[:, None] @ x.unflatten(1, (images.shape[1], -1)))  # (B, C, S, T)
    return result.div_(MAX_VALUE[images.dtype]).clamp_(0, 1)


def one_by_one(
    images: Tensor, boxes: Tensor, sizes: Tensor, image_size: Size, flip: Tensor, max_shrink: float = 0.0
) -> Float[Tensor, "B C S T"]:
    """`crop_resize` on a CPU, image by image, rounded to bytes between the two passes as in Pillow.

    It uses torch's own kernel, at twice the speed of Pillow. 95 to 98 % of the bytes are equal to Pillow's, and nearly all others
    differ by 1. (With products in float32, which do not round between the passes, 83 % are equal.)
    """
    result = torch.empty(*images.shape[:2], *image_size)
    inside = ((boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= sizes)).all(dim=1).tolist()
    for i, (top, left, height, width) in enumerate(boxes.int().tolist()):
        if inside[i]:
            crop = images[i : i + 1, :, top : top + height, left : left + width]
            x = F.interpolate(crop, image_size, mode="bicubic", antialias=True)[0]
            result[i] = (x.flip(2) if flip[i] else x).contiguous()  # still bytes: a quarter of the memory to move
            result[i].div_(MAX_VALUE[torch.uint8])
        else:  # the crop extends beyond the edge
            each = slice(i, i + 1)
            result[each] = by_products(images[each], boxes[each], sizes[each], image_size, flip[each], torch.float32, max_shrink)
    return result


def crop_bytes(image: NDArray[Any], box: Sequence[int], image_size: Size, flip: bool) -> UInt8[Tensor, "C S T"]:
    """`crop_resize` of one image (H, W, C) uint8, for boxes within the image, as bytes: what `one_by_one` gives, times 255."""
    top, left, height, width = box
    crop = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)
    resized = F.interpolate(crop[None], image_size, mode="bicubic", antialias=True)[0]
    return resized.flip(2) if flip else resized


def resize_matrix(
    start: Float[Tensor, " B"],
    length: Float[Tensor, " B"],
    size: Int[Tensor, " B"],
    canvas: int,
    result: int,
    max_shrink: float = 0.0,
) -> Float[Tensor, "B S H"]:
    """The matrix (result, canvas) that crops [start, start + length) and resizes it: Pillow's bicubic, widened when shrinking.

    Pixels outside the box, or outside the image (which ends at `size`), have weight 0. Only the few weights around each centre are
    computed. Their number depends only on the sizes, so the host does not wait for a GPU.
    """
    start, length, size = (x[:, None, None] for x in (start, length, size))  # (B, 1, 1)
    scale = length / result
    centre = start + (torch.arange(result, device=start.device)[None, :, None] + 0.5) * scale  # (B, S, 1)
    reach = 2 * scale.clamp(min=1)
    window = math.ceil(4 * max(canvas / result, max_shrink, 1)) + 1  # K
    pixel = (centre - reach).floor() + torch.arange(window, device=start.device)
    distance = ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1  # Keys' cubic with a = -0.5
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weight = torch.where((pixel >= start.clamp(min=0)) & (pixel < torch.minimum(start + length, size)), weight, 0.0)
    total = weight.sum(dim=2, keepdim=True)
    inside = (centre > 0) & (centre < size)  # beyond the edge of the image is black
    weight = torch.where(inside, weight / torch.where(total == 0, 1.0, total), 0.0)
    matrix = torch.zeros(len(start), result, canvas, device=start.device)
    return matrix.scatter_add_(2, pixel.long().clamp(0, canvas - 1), weight)  # clamped pixels add 0
