"""Small pictures inside a page, as data URIs, so that the page needs no other files."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.pixels import Pixels
from unveil.reports.html import Markup, element


def small_jpeg(pixels: Pixels, side: int, quality: int = 80) -> bytes:
    """An image (H, W, C) as a JPEG file whose long side is at most `side` pixels; small images are not enlarged. See `as_bytes`."""
    image = Image.fromarray(as_bytes(pixels))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def as_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """An image to look at: (H, W) or (H, W, 3).

    16 bits are stretched from the darkest to the brightest value, since few images fill their range. Of two channels, the first is
    shown as grey, and of more than three, the first three as red, green and blue.
    """
    if pixels.dtype == np.uint16:
        low, high = int(pixels.min()), int(pixels.max())
        pixels = np.rint((pixels.astype(np.float32) - low) * (255 / max(high - low, 1))).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]).astype(np.uint8, copy=False)


def picture(jpeg: bytes, alt: str, **attributes: object) -> Markup:
    """An `img` of a JPEG file."""
    return element("img", src=data_uri(jpeg), alt=alt, **attributes)


def data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
