"""Decodes JPEG files straight into an array by simplejpeg: the bytes that Pillow gives, in half its time.

Both call libjpeg-turbo. Pillow stores 4 bytes for a pixel of 3, and its images are copied once more to become an array.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, JpegImagePlugin

from unveil.data.from_pillow import Reduced, orientation, shrunk
from unveil.data.pixels import Pixels, ShrinkTo, match_channels, without_ends

try:
    import simplejpeg
except ImportError:  # of a platform without wheels: the same images, read more slowly
    simplejpeg = None

_COLOURS = {"L": "GRAY", "RGB": "RGB"}
_UPRIGHT: dict[Image.Transpose, Callable[[Pixels], Pixels]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda x: x[:, ::-1],
    Image.Transpose.ROTATE_180: lambda x: x[::-1, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda x: x[::-1],
    Image.Transpose.TRANSPOSE: lambda x: x.transpose(1, 0, 2),
    Image.Transpose.ROTATE_270: lambda x: x[::-1].transpose(1, 0, 2),
    Image.Transpose.TRANSVERSE: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    Image.Transpose.ROTATE_90: lambda x: x.transpose(1, 0, 2)[::-1],
}


def from_jpeg(
    image: JpegImagePlugin.JpegImageFile,
    raw: bytes,
    channels: int | None,
    shrink_to: ShrinkTo | None,
    reduced: Reduced | None = None,
) -> Pixels | None:
    """The image as `from_pillow` returns it; None if simplejpeg cannot decode it, or reports anything unusual about the file.

    Args:
        image: The file, opened by Pillow but not decoded. Its size is the one at which to decode.
        raw: The bytes of the file.
        channels: See `unveil.data.images.read_image`.
        shrink_to: See `unveil.data.images.read_image`.
        reduced: The file, if it is decoded at a scale.
    """
    colours = _COLOURS.get(image.mode)
    if simplejpeg is None or colours is None or (channels == 1 and colours == "RGB"):
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(raw, colours, min_height=image.height, min_width=image.width)
    except (ValueError, RuntimeError):  # Pillow finds out whether the file is damaged, and says how
        return None
    if pixels.shape[:2] != (image.height, image.width):
        return None
    turn = orientation(image)
    if turn is not None:
        pixels = _UPRIGHT[turn](pixels).copy()
    if shrink_to is not None:
        upright = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        final = shrunk(upright, turn, shrink_to, reduced)
        if final is not upright:
            pixels = np.array(final).reshape(final.height, final.width, -1)
        pixels = without_ends(pixels, shrink_to)
    return match_channels(pixels, channels)
