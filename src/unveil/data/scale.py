"""Refuses images whose scale their type does not tell, or that are nearly black."""

import io
from collections.abc import Sequence

import numpy as np
import tifffile

from unveil.data.images import image_format
from unveil.data.pixels import Pixels
from unveil.data.source import Raw, Source
from unveil.errors import UnveilError

BYTE = 300
"""Images of 8 bits may have larger values after shrinking, because bicubic filters overshoot at edges."""


def refuse_unclear_scale(source: Source, sample: Sequence[Pixels]) -> None:
    """Raises `UnveilError` if the images hold long integers, but no values that 8 bits do not hold, or 0 and 1 only.

    Images of 8 bits are easily saved as int64 by accident. By their type they would be nearly black, and by their maximum the scale
    would differ between sets. Other images in uint16 are read as they are. Masks and drawings are often integers 0 and 1, which
    would be nearly black too.

    Args:
        source: The images.
        sample: Some of them, as they were read.
    """
    if sample and max(image.max() for image in sample) == 1:
        white = np.iinfo(sample[0].dtype).max
        raise UnveilError(
            f"the images of {source.name} hold 0 and 1 only, of {white} for white, so they are nearly black: save them as "
            "booleans, or with larger values"
        )
    if not all(image.dtype == np.uint16 and image.max() <= BYTE for image in sample):
        return
    for index in range(min(len(source), 64)):
        try:
            dtype = stored_dtype(source.read(index, retry=False))
        except Exception:  # it is reported when it is read as an image
            continue
        if dtype is not None and dtype.kind in "iu" and dtype != np.dtype("u2"):
            raise UnveilError(
                f"the images of {source.name} hold {dtype} values up to {max(image.max() for image in sample)}, so their scale is "
                "not clear: save them as uint8 if 255 is white, or as uint16 if 65535 is"
            )
        return


def stored_dtype(raw: Raw) -> np.dtype[np.generic] | None:
    """The type of the values of an array, or of an NPY or TIFF file; None for other images."""
    if isinstance(raw, np.ndarray):
        return raw.dtype.newbyteorder("=")
    if not isinstance(raw, bytes):
        return None
    kind = image_format(raw[:32])
    if kind == "NPY":
        stream = io.BytesIO(raw)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        dtype: np.dtype[np.generic] = read(stream)[2].newbyteorder("=")
        return dtype
    if kind == "TIFF":
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            stored = file.pages[0].dtype
        return None if stored is None else np.dtype(stored).newbyteorder("=")
    return None
