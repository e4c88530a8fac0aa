"""Pillow images as arrays: upright, on white where they are transparent, in grey or RGB unless they have 16 bits."""

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


def from_pillow(image: Image.Image, channels: int | None, shrink_to: ShrinkTo | None) -> Pixels:
    """An image as (H, W, C), uint8 or uint16. For `channels` and `shrink_to`, see `read_image`."""
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
        height, width = fit_size(image.height, image.width, shrink_to)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels: Pixels = np.array(image)
    if shrink_to is not None:
        pixels = without_ends(pixels, shrink_to)
    return match_channels(pixels if pixels.ndim == 3 else pixels[:, :, None], channels)


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, by its EXIF or XMP; None if it is, or if the orientation is invalid."""
    if {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}.isdisjoint(image.info):
        return None
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


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
