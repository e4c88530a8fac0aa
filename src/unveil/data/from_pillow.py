"""Pillow images as arrays: upright, on white where they are transparent, in grey or RGB unless they have 16 bits."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from unveil.data.pixels import Pixels, ShrinkTo, as_pixels, finish, fit_size, match_channels, without_ends

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 274
ENDS: dict[Image.Transpose | None, tuple[bool, bool, bool]] = {
    None: (False, False, False),
    Image.Transpose.FLIP_LEFT_RIGHT: (False, True, False),
    Image.Transpose.ROTATE_180: (False, True, True),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, False, True),
    Image.Transpose.TRANSPOSE: (True, False, False),
    Image.Transpose.ROTATE_270: (True, True, False),
    Image.Transpose.TRANSVERSE: (True, True, True),
    Image.Transpose.ROTATE_90: (True, False, True),
}
"""Whether a turn exchanges height and width, and whether it then reverses the columns, and the rows."""


class Reduced(NamedTuple):
    """A JPEG file that its decoder shrinks by 2, 4 or 8. The last row and column that it gives stand for less than a whole one."""

    height: int
    """Pixels in the file, as they are stored."""
    width: int
    scale: int

    def size(self, turn: Image.Transpose | None, shrink_to: ShrinkTo) -> tuple[int, int]:
        """The final size (height, width) of the upright image: that of the file and of its mask, whatever the scale."""
        return fit_size(*upright_size(self.height, self.width, turn), shrink_to)

    def box(self, turn: Image.Transpose | None) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the image in the upright array that was decoded, as fractions of its pixels."""
        height, width = upright_size(self.height, self.width, turn)
        _, from_right, from_bottom = ENDS[turn]
        rows, columns = height / self.scale, width / self.scale
        left = math.ceil(columns) - columns if from_right else 0.0
        top = math.ceil(rows) - rows if from_bottom else 0.0
        return left, top, left + columns, top + rows


def upright_size(height: int, width: int, turn: Image.Transpose | None) -> tuple[int, int]:
    """Height and width after a turn."""
    return (width, height) if ENDS[turn][0] else (height, width)


def from_pillow(image: Image.Image, channels: int | None, shrink_to: ShrinkTo | None, reduced: Reduced | None = None) -> Pixels:
    """An image as (H, W, C), uint8 or uint16. For `channels` and `shrink_to`, see `read_image`; for `reduced`, `Reduced`."""
    turn = orientation(image)
    image.load()
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.format == "PPM" and image.mode == "I":
            values = values.astype(np.uint16)  # Pillow has scaled the values to 16 bits
        if image.mode.startswith("I;16") and isinstance(image.info.get("transparency"), int):
            values = np.where(values == image.info["transparency"], np.uint16(65535), values)
        return finish(as_pixels(values[:, :, None]), channels, shrink_to)
    image = _grey_or_rgb(image, channels)
    if channels == 1 and image.mode == "RGB":
        image = image.convert("L")
    if shrink_to is not None:
        image = shrunk(image, turn, shrink_to, reduced)
    pixels: Pixels = np.array(image)
    if shrink_to is not None:
        pixels = without_ends(pixels, shrink_to)
    return match_channels(pixels if pixels.ndim == 3 else pixels[:, :, None], channels)


def shrunk(image: Image.Image, turn: Image.Transpose | None, shrink_to: ShrinkTo, reduced: Reduced | None) -> Image.Image:
    """An upright image at its final size.

    Args:
        image: The image, in the data type in which it is to be resized.
        turn: What has made it upright.
        shrink_to: See `unveil.data.images.read_image`.
        reduced: The file, if the decoder has shrunk it.
    """
    height, width = fit_size(image.height, image.width, shrink_to) if reduced is None else reduced.size(turn, shrink_to)
    box = (0.0, 0.0, float(image.width), float(image.height)) if reduced is None else reduced.box(turn)
    if (width, height) == image.size and box == (0, 0, width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, box)


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, by its EXIF or XMP; None if it is, or if the orientation is invalid."""
    if {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}.isdisjoint(image.info):
        return None
    try:
        return turn_of(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


def turn_of(tag: int) -> Image.Transpose | None:
    """What makes an image of this orientation upright, by the number that EXIF and TIFF have for it."""
    return _UPRIGHT.get(tag)


def _upright(image: Image.Image) -> Image.Image:
    turn = orientation(image)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    return turned


def _grey_or_rgb(image: Image.Image, channels: int | None) -> Image.Image:
    """Converts to L or RGB, or to RGBA if four channels are wanted and the image has transparency."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "1")
        image = image.convert("RGBA")
        if channels == 4:
            return image
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white.convert("L") if grey else white
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
