"""Small pictures inside a page, as data URIs, so that the page needs no other files."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.reports.html import Markup, element


def small_jpeg(pixels: NDArray[np.generic], side: int, quality: int = 80) -> bytes:
    """An image (H, W, C) of uint8 or uint16 as a JPEG file whose long side is at most `side` pixels. Small images are not enlarged.

    With two channels, the first is shown as grey. With more than three, the first three are red, green and blue.
    """
    if pixels.dtype == np.uint16:
        low, high = int(pixels.min()), int(pixels.max())
        pixels = np.rint((pixels.astype(np.float32) - low) * (255 / max(high - low, 1)))  # few images fill the range of 16 bits
    values = np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]).astype(np.uint8)
    image = Image.fromarray(values)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def picture(jpeg: bytes, alt: str, **attributes: object) -> Markup:
    """An `img` of a JPEG file."""
    return element("img", src=data_uri(jpeg), alt=alt, **attributes)


def data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
