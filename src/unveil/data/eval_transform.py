"""The preprocessing of an evaluation, image by image, with the pixels of other libraries: resize the short side, crop the centre.

This is torchvision's `Resize` and `CenterCrop` of Pillow images, which timm uses too, so an exported model gets the same pixels.
Models of other libraries may be made for images that are squashed to a square, or resized by a bilinear filter.
Evaluations during a run start from images that were shrunk for training, and crop and resize them in batches: see
`unveil.data.augment.eval_geometry`. The two round sizes and corners differently, so an image may be cropped or scaled by a pixel
more or less: photographs of about 500 x 375 then differ by 2 grey levels on average at 224 px, by 8 at 96 px and by 11 at 32 px.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.blocks.patches import Size
from unveil.data.pixels import Pixels

CROP_PCT = 0.875
"""The usual share of the short side that a centre crop keeps: 224 of 256 pixels."""
LARGEST = 2**24
"""A resized image with more pixels, of extreme shape, is never held as a whole: only the pixels of the crop are computed."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class EvalTransform:
    """Resizes an image so that a centre crop of `image_size` keeps the share `crop_pct` of its short side, and crops it.

    With the mode "squash", both sides are resized to those of the crop, divided by `crop_pct`: circles become ellipses. With
    "center_floor", the crop begins at a whole pixel that is rounded down, as in transformers.
    """

    image_size: Size
    crop_pct: float
    crop_mode: Literal["center", "center_floor", "squash"] = "center"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    @property
    def fitted(self) -> Size:
        """The size (height, width) that a resized image just covers."""
        height, width = (math.floor(side / self.crop_pct) for side in self.image_size)
        return height, width

    def resized(self, height: int, width: int) -> Size:
        """The size of an image after resizing; at least `image_size`. Rounded as in torchvision and, for rectangles, in timm."""
        rows, columns = self.fitted
        if self.crop_mode == "squash":
            return rows, columns
        if rows == columns:
            longer = int(rows * max(height, width) / min(height, width))
            return (longer, rows) if width <= height else (rows, longer)
        ratio = min(height / rows, width / columns)
        return max(round(height / ratio), self.image_size[0]), max(round(width / ratio), self.image_size[1])

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """The top and left of the crop in a resized image. A half is rounded to the even number, as in torchvision."""
        if self.crop_mode == "center_floor":
            return (height - self.image_size[0]) // 2, (width - self.image_size[1]) // 2
        return round((height - self.image_size[0]) / 2), round((width - self.image_size[1]) / 2)

    def __call__(self, pixels: Pixels) -> Pixels:
        """The preprocessed image (S, T, C) of an image (H, W, C) of uint8 or uint16."""
        height, width = self.resized(*pixels.shape[:2])
        top, left = self.corner(height, width)
        rows, columns = self.image_size
        if height * width <= LARGEST:
            resized = resize(pixels, (height, width), interpolation=self.interpolation)
            return resized[top : top + rows, left : left + columns].copy()  # frees the whole
        down, across = pixels.shape[0] / height, pixels.shape[1] / width
        box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
        return resize(pixels, self.image_size, box, self.interpolation)


def resize(
    pixels: Pixels,
    size: Size,
    box: tuple[float, float, float, float] | None = None,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
) -> Pixels:
    """Resizes an image (H, W, C) by one of Pillow's antialiased filters.

    8-bit images of 1, 3 or 4 channels are resized as such; colours are weighted by the fourth channel. Channels of other images are
    resized one by one, and 16-bit ones as floats.

    Args:
        pixels: uint8 or uint16.
        size: Height and width of the result.
        box: Left, top, right and bottom of the part of the image to resize; by default all of it.
        interpolation: The filter.
    """
    kind = FILTERS[interpolation]
    if pixels.shape[:2] == size and box is None:
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] in MODES:
        plain = np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
        found = np.asarray(Image.fromarray(plain).resize(size[::-1], kind, box=box))
        return found.reshape(*size, -1)
    result: Pixels = np.empty((*size, pixels.shape[2]), dtype=pixels.dtype)
    for channel in range(pixels.shape[2]):
        plane: NDArray[np.generic] = np.ascontiguousarray(pixels[:, :, channel])
        if pixels.dtype == np.uint16:
            plane = plane.astype(np.float32)
        image = np.asarray(Image.fromarray(plane).resize(size[::-1], kind, box=box))
        result[:, :, channel] = np.clip(np.rint(image), 0, np.iinfo(pixels.dtype).max)  # bicubic filters overshoot at edges
    return result


def usual_crop_pct(image_size: Size) -> float:
    """The share of the short side to keep, for files that do not record it: 7/8 for models of 224 px or more, else all of it.

    Models of 224 px are usually trained on larger photographs, and smaller models on images of their own size.
    """
    return CROP_PCT if min(image_size) >= 224 else 1.0


def crop_pct_for(sizes: Sequence[Size], image_size: Size) -> float:
    """The share of the short side to keep: 7/8 if most images are large enough for that, else all of it.

    Images of the model's own size are not enlarged only to cut their border off.

    Args:
        sizes: Heights and widths of images.
        image_size: Height and width of the crop.
    """
    room = sorted(min(height / image_size[0], width / image_size[1]) for height, width in sizes)
    return CROP_PCT if room and room[len(room) // 2] >= 8 / 7 else 1.0
