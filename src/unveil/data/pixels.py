"""Pixels as plain arrays: what counts as a pixel value, NPY files, TIFF files of any number of channels, shrinking."""

import importlib.util
import io
import logging
import math
import zlib
from typing import Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# Its warnings about odd tags would land on stderr, one for each odd file; what matters comes as an exception.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_NONE, _LZW, _DEFLATE, _OLD_DEFLATE = 1, 5, 8, 32946  # how a TIFF says that it is compressed
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Unreadable(Exception):  # noqa: N818 (it is what we call such an image)
    """One image that cannot be used; `reason` says why in a few words, and the text names the image too."""

    def __init__(self, reason: str, name: str = ""):
        self.reason = " ".join(reason.split())
        super().__init__(f"{name}: {self.reason}" if name else self.reason)


def check_size(height: int, width: int, pixel_limit: int) -> None:
    """Refuse an image by its header, before any memory is spent on it.

    Raises:
        Unreadable: it has no pixels, or more than `pixel_limit`.
    """
    if height < 1 or width < 1:
        raise Unreadable(f"has no pixels: {width} x {height}")
    if height * width > pixel_limit:
        raise Unreadable(f"{height * width:,} pixels, over the limit of {pixel_limit:,}")


def fit_size(height: int, width: int, shrink_to: int) -> tuple[int, int]:
    """The (height, width) whose short side is `shrink_to` and whose long side is at most twice that; never enlarged."""
    short, long = min(height, width), max(height, width)
    scale = min(1.0, shrink_to / short, 2 * shrink_to / long)
    return max(1, round(height * scale)), max(1, round(width * scale))


def as_pixels(values: NDArray[Any]) -> Pixels:
    """Values of any dtype as uint8 or uint16, or a refusal: nothing wraps, is clipped or is guessed.

    Floats from 0 to 1 become uint16 (0 to 65535), so that no step of a 16-bit original is lost; whole numbers become
    uint8 where none passes 255, and uint16 where none passes 65535.

    Raises:
        Unreadable: the values fit neither.
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
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C): a last axis of up to 4 is channels, else the smallest axis is."""
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3:
        raise Unreadable(f"has shape {values.shape}, expected (H, W), (H, W, C) or (C, H, W)")
    if values.shape[2] > 4 and values.shape[0] < min(values.shape[1:]):
        return values.transpose(1, 2, 0)
    return values


def match_channels(pixels: Pixels, channels: int | None) -> Pixels:
    """(H, W, C) with the wanted number of channels: grey is repeated to 3, colour (RGB) becomes luma for 1.

    Raises:
        Unreadable: any other mismatch.
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
    """(H, W, C) antialiased down to `fit_size`, one channel at a time; uint16 goes through floats and loses no step."""
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
            resized = np.clip(np.rint(resized), 0, 65535)  # bicubic overshoots at edges
        smaller[:, :, channel] = resized
    return smaller


def _check_volume(shape: tuple[int, ...], dtype: np.dtype[Any], pixel_limit: int) -> None:
    """Refuse an array by its shape: too many pixels, or channels so many and wide that they weigh as much."""
    sides = sorted(shape)[-2:] if len(shape) == 3 and shape[2] > 4 else shape[:2]
    check_size(sides[0], sides[1], pixel_limit)
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        raise Unreadable(f"has no pixels: shape {shape}")
    if size > 8 * pixel_limit:
        raise Unreadable(f"{size:,} bytes of pixels, over the limit of {8 * pixel_limit:,}")


def read_npy(raw: bytes, pixel_limit: int) -> Pixels:
    """(H, W, C) from the bytes of an NPY file; a header that promises more than the file holds costs nothing.

    Raises:
        Unreadable: pickled objects, a wrong shape, values that are no pixels, or a file cut short.
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
    _check_volume(shape, dtype, pixel_limit)
    count, offset = math.prod(shape), stream.tell()
    missing = count * dtype.itemsize - (len(raw) - offset)
    if missing > 0:
        raise Unreadable(f"truncated NPY: {missing:,} bytes are missing")
    values = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F" if fortran else "C")
    return as_pixels(channels_last(values))


def read_tiff(raw: bytes, pixel_limit: int) -> Pixels:
    """(H, W, C) from the first page of a TIFF of any number of channels, interleaved or in planes.

    A file that tifffile wrote says its array's shape, and then (C, H, W) may be spread over pages: it is read whole.

    Raises:
        Unreadable: a layout or compression that is not read here.
    """
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        page: Any = file.pages[0]
        pages, image = [page], page
        if file.is_shaped and len(file.series[0].shape) == 3:
            series = file.series[0]
            found = [each for each in series.pages if each is not None]
            if min(series.shape) <= 32 or len(found) == 1:  # else it is a stack of images
                pages, image = found, series
        if image.dtype is None:
            raise Unreadable(f"TIFF with samples of {page.bitspersample} bits")
        if len(image.shape) not in (2, 3):
            raise Unreadable(f"TIFF of shape {image.shape}, expected one image")
        _check_volume(image.shape, image.dtype, pixel_limit)
        for each in pages:
            _check_segments(page, each, raw)
        values: NDArray[Any] = image.asarray(maxworkers=1)
        planar = image is page and page.axes[:1] == "S"
    return as_pixels(values.transpose(1, 2, 0) if planar else channels_last(values))


def _check_segments(first: Any, page: Any, raw: bytes) -> None:
    """Refuse strips and tiles that would decompress to more than they should: tifffile would follow them."""
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
