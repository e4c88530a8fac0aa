"""Images as arrays: conversion of pixel values and channels, shrinking, and NPY and TIFF files of any number of channels."""

import importlib.util
import io
import math
import zlib
from typing import Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""An image (H, W, C)."""
ClassMap = NDArray[np.uint8]
"""The class of each pixel (H, W); `IGNORE` for pixels without a class."""
IGNORE = 255
"""The value of pixels without a class. Losses and metrics ignore them."""

_NONE, _LZW, _DEFLATE, _OLD_DEFLATE = 1, 5, 8, 32946  # TIFF's codes of compressions
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Unreadable(Exception):  # noqa: N818 (the file is at fault, not the program)
    """An image that cannot be used.

    Attributes:
        reason: A short text; the message of the exception also has the name of the image.
        lost: Whether the file has changed or vanished since DATA was listed, or its disk failed: an I/O error, not a damaged image.
    """

    def __init__(self, reason: str, name: str = "", *, lost: bool = False):
        self.reason, self.lost = " ".join(reason.split()), lost
        super().__init__(f"{name}: {self.reason}" if name else self.reason)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises `Unreadable` if an image has no pixels, or more than `max_pixels`. Called before memory is allocated for it."""
    if height < 1 or width < 1:
        raise Unreadable(f"has no pixels: {width} x {height}")
    if height * width > max_pixels:
        raise Unreadable(f"{height * width:,} pixels, over the limit of {max_pixels:,}")


def fit_size(height: int, width: int, shrink_to: int) -> tuple[int, int]:
    """The size (height, width) after shrinking: the short side is `shrink_to`, the long side at most twice that. Never enlarges."""
    short, long = min(height, width), max(height, width)
    scale = min(1.0, shrink_to / short, 2 * shrink_to / long)
    return max(1, round(height * scale)), max(1, round(width * scale))


def as_pixels(values: NDArray[Any]) -> Pixels:
    """Converts values of any dtype to uint8 or uint16. No value wraps around or is clipped.

    Floats from 0 to 1 become uint16 (0 to 65535), which keeps every step of a 16-bit original. Whole numbers become uint8 if none
    is above 255, else uint16 if none is above 65535.

    Raises:
        Unreadable: If the values fit neither type.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8 or values.dtype == np.uint16:
        return cast(Pixels, values)
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and values.dtype.itemsize == 2:  # the other byte order
        return values.astype(np.uint16)
    if kind not in "iuf":
        raise Unreadable(f"holds {values.dtype} values, expected numbers")
    low, high = values.min(), values.max()
    if kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise Unreadable(f"holds {values.dtype} values that are not finite")
        if low >= 0 and high <= 1:
            return np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
    if low < 0 or high > 65535 or (kind == "f" and not np.array_equal(np.rint(values), values)):
        found = f"{values.dtype} values from {low:g} to {high:g}"
        raise Unreadable(f"holds {found}; expected 0 to 1, or whole numbers from 0 to 65535")
    return values.astype(np.uint8) if high <= 255 else values.astype(np.uint16)


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """Converts (H, W), (H, W, C) or (C, H, W) to (H, W, C). Channels are a last axis of at most 4, else the smallest axis."""
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3:
        raise Unreadable(f"has shape {values.shape}, expected (H, W), (H, W, C) or (C, H, W)")
    if values.shape[2] > 4 and values.shape[0] < min(values.shape[1:]):
        return values.transpose(1, 2, 0)
    return values


def match_channels(pixels: Pixels, channels: int | None) -> Pixels:
    """Converts (H, W, C) to a number of channels. For 3, grey is repeated; for 1, RGB becomes luma.

    Raises:
        Unreadable: For any other mismatch.
    """
    found = pixels.shape[2]
    if channels is None or found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return cast(Pixels, np.repeat(pixels, 3, axis=2))
    if (found, channels) == (3, 1):
        return cast(Pixels, np.rint(pixels @ _LUMA)[:, :, None].astype(pixels.dtype))
    raise Unreadable(f"has {found} channel{'' if found == 1 else 's'}, expected {channels}")


def shrink(pixels: Pixels, shrink_to: int | None) -> Pixels:
    """Shrinks (H, W, C) to `fit_size` with an antialiased bicubic filter, channel by channel; uint16 is filtered as floats."""
    height, width = pixels.shape[:2]
    if shrink_to is None or fit_size(height, width, shrink_to) == (height, width):
        return pixels
    new_height, new_width = fit_size(height, width, shrink_to)
    smaller: Pixels = np.empty((new_height, new_width, pixels.shape[2]), dtype=pixels.dtype)
    for channel in range(pixels.shape[2]):
        plane = np.ascontiguousarray(pixels[:, :, channel])
        if pixels.dtype == np.uint16:
            plane = plane.astype(np.float32)
        resized = np.asarray(Image.fromarray(plane).resize((new_width, new_height), Image.Resampling.BICUBIC))
        if pixels.dtype == np.uint16:
            resized = np.clip(np.rint(resized), 0, 65535)  # bicubic filters overshoot at edges
        smaller[:, :, channel] = resized
    return smaller


def array_image(values: NDArray[Any], max_pixels: int) -> Pixels:
    """Converts an array (H, W) or (H, W, C) to an image (H, W, C). Raises `Unreadable` if it is not an image."""
    if values.ndim not in (2, 3) or values.size == 0:
        raise Unreadable(f"has shape {values.shape}, expected (H, W) or (H, W, C)")
    check_size(values.shape[0], values.shape[1], max_pixels)
    return as_pixels(values if values.ndim == 3 else values[:, :, None])


def finish(pixels: Pixels, channels: int | None, shrink_to: int | None) -> Pixels:
    """Converts channels and size of an image, and copies it if it is a view of another array."""
    pixels = shrink(match_channels(pixels, channels), shrink_to)
    return pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy(order="C")


def as_class_map(values: NDArray[Any]) -> ClassMap:
    """Class numbers (H, W) of any integer dtype as uint8; 255 marks pixels without a class.

    Raises:
        Unreadable: If the array has another shape, or numbers outside of 0 to 255.
    """
    if values.ndim != 2 or values.size == 0:
        raise Unreadable(f"mask of shape {values.shape}, expected (H, W): one class number per pixel")
    if values.dtype.kind not in "biu":
        raise Unreadable(f"mask of {values.dtype} values, expected class numbers")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise Unreadable(f"mask with values from {low} to {high}, expected classes from 0 to 254, and 255 for pixels without one")
    return values.astype(np.uint8)


def shrink_class_map(classes: ClassMap, shrink_to: int | None) -> ClassMap:
    """Shrinks a map to `fit_size`: each pixel takes the class under its centre, as `PixelTargets.transformed` does."""
    height, width = classes.shape
    new_height, new_width = (height, width) if shrink_to is None else fit_size(height, width, shrink_to)
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in ((new_height, height), (new_width, width)))
    smaller: ClassMap = classes[rows[:, None], columns]
    return smaller


def _check_array_size(shape: tuple[int, ...], dtype: np.dtype[Any], max_pixels: int) -> None:
    """Raises `Unreadable` if an array of this shape has no pixels, too many pixels, or too many bytes."""
    sides = sorted(shape)[-2:] if len(shape) == 3 and shape[2] > 4 else shape[:2]
    check_size(sides[0], sides[1], max_pixels)
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        raise Unreadable(f"has no pixels: shape {shape}")
    if size > 8 * max_pixels:
        raise Unreadable(f"{size:,} bytes of pixels, over the limit of {8 * max_pixels:,}")


def read_npy(raw: bytes, max_pixels: int) -> Pixels:
    """Reads an NPY file as (H, W, C). Allocates memory only for the actual content of the file, which its header may overstate.

    Raises:
        Unreadable: If it holds pickled objects or values that are not pixels, has a wrong shape, or is truncated.
    """
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise Unreadable(f"NPY version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    if dtype.hasobject:
        raise Unreadable("NPY of Python objects, which are not read because they can run code")
    if len(shape) not in (2, 3):
        raise Unreadable(f"has shape {shape}, expected (H, W), (H, W, C) or (C, H, W)")
    _check_array_size(shape, dtype, max_pixels)
    count, offset = math.prod(shape), stream.tell()
    missing = count * dtype.itemsize - (len(raw) - offset)
    if missing > 0:
        raise Unreadable(f"truncated NPY: {missing:,} bytes are missing")
    values = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F" if fortran else "C")
    return as_pixels(channels_last(values))


def read_tiff(raw: bytes, max_pixels: int) -> Pixels:
    """Reads the first page of a TIFF of any number of channels, interleaved or planar, as (H, W, C).

    A file written by tifffile records the shape of its array. If that is (C, H, W), channels may be pages, and all pages are read.

    Raises:
        Unreadable: If its layout or compression is not supported.
    """
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        page: Any = file.pages[0]
        pages, image = [page], page
        if file.is_shaped and len(file.series[0].shape) == 3:
            series = file.series[0]
            found = [each for each in series.pages if each is not None]
            if min(series.shape) <= 32 or len(found) == 1:  # otherwise it is a stack of images
                pages, image = found, series
        if image.dtype is None:
            raise Unreadable(f"TIFF with samples of {page.bitspersample} bits")
        if len(image.shape) not in (2, 3):
            raise Unreadable(f"TIFF of shape {image.shape}, expected one image")
        _check_array_size(image.shape, image.dtype, max_pixels)
        for each in pages:
            _check_segments(page, each, raw)
        values: NDArray[Any] = image.asarray(maxworkers=1)
        planar = image is page and page.axes[:1] == "S"
    return as_pixels(values.transpose(1, 2, 0) if planar else channels_last(values))


def _check_segments(first: Any, page: Any, raw: bytes) -> None:
    """Raises `Unreadable` for strips and tiles that decompress to more than their size, which tifffile does not check."""
    if first.compression == _NONE:
        return
    if first.compression == _LZW and importlib.util.find_spec("imagecodecs") is None:
        raise Unreadable(f"LZW-compressed TIFF of {first.samplesperpixel} channels: `pip install imagecodecs` reads it")
    if first.compression not in (_LZW, _DEFLATE, _OLD_DEFLATE):
        raise Unreadable(f"TIFF of {first.samplesperpixel} channels compressed by {first.compression!r}")
    if first.compression == _LZW:
        return
    expected = math.prod(first.chunks) * first.dtype.itemsize
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        inflater = zlib.decompressobj()
        inflated = len(inflater.decompress(raw[offset : offset + size], expected + 1))
        if inflated > expected:
            raise Unreadable("TIFF strip that decompresses to more than its size")
