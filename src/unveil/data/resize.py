"""Crops and resizes a whole batch as Pillow's antialiased bicubic filter does.

A resize is linear, so it is a matrix for the rows and one for the columns; a crop and a flip only move the places where the
matrices look. On a CPU large images of 8 bits are resized one by one in whole numbers instead, as Pillow does it: there the
products, most of whose factors are 0, take many times as long.

Letters: B images, C channels, H W sides of the canvas, S T sides of the result, K places that weigh in a place of the result.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import Size

FULL = {torch.uint8: 255.0, torch.uint16: 65535.0}
LARGE = 64
"""Sides of a result from which on a CPU resizes one image at a time."""


def crop_resize(
    images: Tensor, boxes: Float[Tensor, "B 4"], sizes: Int[Tensor, "B 2"], image_size: Size, flip: Bool[Tensor, " B"] | None = None
) -> Float[Tensor, "B C S T"]:
    """Crops and resizes each image as Pillow's bicubic filter does, to floats between 0 and 1.

    Args:
        images: (B, C, H, W), uint8 or uint16, each in the upper left corner of a canvas.
        boxes: Top, left, height and width of each crop: whole numbers. What lies outside the image is black.
        sizes: Height and width of each image inside its canvas.
        image_size: Height and width of the result.
        flip: Which results are turned left to right; none by default.
    """
    flip = torch.zeros(len(images), dtype=torch.bool, device=images.device) if flip is None else flip
    if images.device.type == "cpu" and images.dtype == torch.uint8 and min(image_size) >= LARGE:
        result: Tensor = one_by_one(images, boxes, sizes, image_size, flip)
        return result
    # Bytes are exact in half precision, and its rounding of weights is a fraction of a byte's step: tensor cores multiply it.
    half = images.device.type == "cuda" and images.dtype == torch.uint8
    return by_products(images, boxes, sizes, image_size, flip, torch.float16 if half else torch.float32)


def by_products(
    images: Tensor, boxes: Tensor, sizes: Tensor, image_size: Size, flip: Tensor, kind: torch.dtype
) -> Float[Tensor, "B C S T"]:
    """The whole batch as two products of matrices, which are computed in the type `kind`."""
    rows = resize_matrix(boxes[:, 0], boxes[:, 2], sizes[:, 0], images.shape[2], image_size[0]).to(kind)
    columns = resize_matrix(boxes[:, 1], boxes[:, 3], sizes[:, 1], images.shape[3], image_size[1]).to(kind)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    result = torch.empty(*images.shape[:2], *image_size, device=images.device)
    chunk = max(1, 2 ** (18 if images.device.type == "cpu" else 25) // images[0].numel())  # a processor's cache is small
    for x, r, c, out in zip(*(torch.split(x, chunk) for x in (images, rows, columns, result)), strict=True):
        x = x.to(kind, memory_format=torch.contiguous_format)
        x = x.flatten(1, 2) @ c.mT  # (B, C * H, T)
        out.copy_(r[:, None] @ x.unflatten(1, (images.shape[1], -1)))  # (B, C, S, T)
    return result.div_(FULL[images.dtype]).clamp_(0, 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def one_by_one(images: Tensor, boxes: Tensor, sizes: Tensor, image_size: Size, flip: Tensor) -> Float[Tensor, "B C S T"]:
    """The same on a CPU, image by image, rounded to bytes between the two passes as Pillow does it.

    Torch's own kernel, at twice Pillow's speed: 95 to 98 of 100 bytes are Pillow's, nearly all others differ by 1. (Of products in
    float32, which do not round between the passes, 83 are.)
    """
    result = torch.empty(*images.shape[:2], *image_size)
    inside = ((boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= sizes)).all(dim=1).tolist()
    for i, (top, left, height, width) in enumerate(boxes.int().tolist()):
        if inside[i]:
            crop = images[i : i + 1, :, top : top + height, left : left + width]
            x = F.interpolate(crop, image_size, mode="bicubic", antialias=True)[0]
            result[i] = (x.flip(2) if flip[i] else x).contiguous()  # as bytes first: a quarter of the way
            result[i].div_(FULL[torch.uint8])
        else:  # reaches over the edge
            each = slice(i, i + 1)
            result[each] = by_products(images[each], boxes[each], sizes[each], image_size, flip[each], torch.float32)
    return result


def resize_matrix(
    start: Float[Tensor, " B"], length: Float[Tensor, " B"], size: Int[Tensor, " B"], canvas: int, result: int
) -> Float[Tensor, "B S H"]:
    """Weights (result, canvas) that crop [start, start + length) and resize it: Pillow's bicubic, widened when shrinking.

    A place outside the box, or outside the image (which ends at `size`), weighs nothing. Only the few places around each
    centre are computed; how many follows from the sizes alone, so that a GPU is never waited for.
    """
    start, length, size = (x[:, None, None] for x in (start, length, size))  # (B, 1, 1)
    scale = length / result
    centre = start + (torch.arange(result, device=start.device)[None, :, None] + 0.5) * scale  # (B, S, 1)
    reach = 2 * scale.clamp(min=1)
    most = math.ceil(4 * max(canvas / result, 1)) + 1  # K
    place = (centre - reach).floor() + torch.arange(most, device=start.device)
    distance = ((place + 0.5 - centre) / scale.clamp(min=1)).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1  # Keys' cubic with a = -0.5
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weight = torch.where((place >= start.clamp(min=0)) & (place < torch.minimum(start + length, size)), weight, 0.0)
    total = weight.sum(dim=2, keepdim=True)
    inside = (centre > 0) & (centre < size)  # a crop that reaches over the edge sees black
    weight = torch.where(inside, weight / torch.where(total == 0, 1.0, total), 0.0)
    matrix = torch.zeros(len(start), result, canvas, device=start.device)
    return matrix.scatter_add_(2, place.long().clamp(0, canvas - 1), weight)  # at the edges zeros are added
