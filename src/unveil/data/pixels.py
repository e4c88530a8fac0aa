"""Images as arrays: conversion of pixel values and channels, shrinking, and NPY files of any number of channels."""

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""An image (H, W, C)."""
ClassMap = NDArray[np.uint8]
"""The class of each pixel (H, W); `IGNORE` for pixels without a class."""
IGNORE = 255
"""The value of pixels without a class. Losses and metrics ignore them."""

ArrayT = TypeVar("ArrayT", bound=NDArray[Any])
ShrinkTo = int | tuple[int, int]
"""How far an image is shrunk: the length of its short side, or a height and a width that the largest crop of their aspect ratio
must have."""


class CropSide(NamedTuple):
    """A `ShrinkTo` for images from which random crops are taken, and resized again: what the smallest crop needs."""

    height: int
    width: int


LONGEST = 4
"""The long side of an image is at most this many times the length of the short side to which images are shrunk."""

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


def fit_size(height: int, width: int, shrink_to: ShrinkTo) -> tuple[int, int]:
    """The size (height, width) after shrinking. Never enlarges.

    For one number, the short side is `shrink_to`. For a height and a width, the long side is also at most twice the larger of them,
    unless a crop of their aspect ratio would then have fewer pixels than they have.
    """
    rows, columns = (shrink_to, shrink_to) if isinstance(shrink_to, int) else shrink_to
    side = max(rows, columns)
    scale = min(side / min(height, width), 2 * side / max(height, width))
    scale = min(1.0, max(scale, rows / height, columns / width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def without_ends(values: ArrayT, shrink_to: ShrinkTo) -> ArrayT:
    """The middle (H, W, ...) of an image whose long side is more than `LONGEST` times `shrink_to`; other images are unchanged.

    In a batch, all images have the canvas of the largest one, so a single long image would multiply the memory of all of them. The
    centre crop of the middle is the one of the whole image: equally many pixels are cut from both ends.
    """
    top, left = cut_ends(values.shape, shrink_to)
    if not (top or left):
        return values
    return cast(ArrayT, values[top : values.shape[0] - top, left : values.shape[1] - left].copy())


def cut_ends(shape: tuple[int, ...], shrink_to: ShrinkTo) -> tuple[int, int]:
    """How many rows at the top and at the bottom, and how many columns on the left and on the right, `without_ends` cuts off."""
    limit = LONGEST * (shrink_to if isinstance(shrink_to, int) else max(shrink_to))
    rows, columns = (max(0, (size - limit + 1) // 2) for size in shape[:2])
    return rows, columns


def as_pixels(values: NDArray[Any], bits: int = 0) -> Pixels:
    """Converts values of any dtype to uint8 or uint16 by a scale that depends on the dtype only, so all images of a set share it.

    White is 255 for integers of 8 bits, 65535 for longer ones, and 1 for floats and booleans. Floats become uint16, which keeps
    every step of a 16-bit original. No value wraps around or is clipped.

    Args:
        values: The values.
        bits: Bits of a stored value, if they are fewer than those of the dtype: then white is 2**bits - 1.

    Raises:
        Unreadable: If a value is below black or above white.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise Unreadable(f"holds {values.dtype} values, expected numbers")
    if kind == "u" and size == 1:
        return cast(Pixels, values)
    if kind == "u" and size == 2:
        pixels = values.astype(np.uint16, copy=False)  # in this machine's byte order
        return pixels if bits in (0, 16) else rescaled(pixels, 2**bits - 1)
    low, high = values.min(), values.max()
    if kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise Unreadable(f"holds {values.dtype} values that are not finite")
        if np.rint(65535 * float(low)) < 0 or np.rint(65535 * float(high)) > 65535:
            raise Unreadable(f"holds {_range(values)}; floats are read from 0 (black) to 1 (white): divide by the value of white")
        return np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
    white = 255 if size == 1 else 65535
    if low < 0 or high > white:
        raise Unreadable(f"holds {_range(values)}; {values.dtype} is read from 0 (black) to {white} (white)")
    return values.astype(np.uint8) if size == 1 else values.astype(np.uint16)


def rescaled(pixels: NDArray[np.uint16], white: int) -> NDArray[np.uint16]:
    """Scales values from 0 to `white` to 0 to 65535."""
    if pixels.max(initial=0) > white:
        raise Unreadable(f"holds values up to {pixels.max()}, but its header says that white is {white}")
    scaled: NDArray[np.uint16] = np.rint(pixels * (65535 / white)).astype(np.uint16)
    return scaled


def common_scale(array: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """How to convert the images of an array so that `as_pixels` reads them by one scale, chosen by the range of all of them.

    uint8, uint16 and floats up to 1 stay as they are. Other numbers become uint8 if none is above 255, else uint16: an array of
    8-bit pixels is easily converted to int64 or float32 by accident.

    Raises:
        Unreadable: If the values are no pixels.
    """
    kind = array.dtype.kind
    if kind in "iuf" and array.dtype not in (np.uint8, np.uint16):
        low, high = array.min(), array.max()
        if kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
            raise Unreadable(f"holds {array.dtype} values that are not finite")
        if kind != "f" or np.rint(65535 * float(high)) > 65535:
            whole = kind != "f" or all(np.array_equal(np.rint(image), image) for image in array)
            if low < 0 or high > 65535 or not whole:
                raise Unreadable(f"holds {_range(array)}; expected floats from 0 to 1, or whole numbers from 0 to 65535")
            dtype = np.uint8 if high <= 255 else np.uint16
            return lambda image: image.astype(dtype)
    return lambda image: image


def _range(values: NDArray[Any]) -> str:
    return f"{values.dtype} values from {values.min():g} to {values.max():g}"


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """Converts (H, W), (H, W, C) or (C, H, W) to (H, W, C). Channels are a last axis of at most 4, else the smallest axis."""
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3:
        raise Unreadable(f"has shape {values.shape}, expected (H, W), (H, W, C) or (C, H, W)")
    if values.shape[2] > 4 and values.shape[0] < min(values.shape[1:]):
        return values.transpose(1, 2, 0)
    return values


def sides_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of `channels_last` of an array of this shape."""
    return cast(tuple[int, int], channels_last(np.broadcast_to(np.uint8(0), shape)).shape[:2])


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


def shrink(pixels: Pixels, shrink_to: ShrinkTo | None) -> Pixels:
    """Shrinks (H, W, C) to `fit_size` with an antialiased bicubic filter, channel by channel; uint16 is filtered as floats.

    Then cuts the ends of extremely long images: see `without_ends`.
    """
    height, width = pixels.shape[:2]
    if shrink_to is None:
        return pixels
    new_height, new_width = fit_size(height, width, shrink_to)
    if (new_height, new_width) == (height, width):
        return without_ends(pixels, shrink_to)
    smaller: Pixels = np.empty((new_height, new_width, pixels.shape[2]), dtype=pixels.dtype)
    for channel in range(pixels.shape[2]):
        plane = np.ascontiguousarray(pixels[:, :, channel])
        if pixels.dtype == np.uint16:
            plane = plane.astype(np.float32)
        resized = np.asarray(Image.fromarray(plane).resize((new_width, new_height), Image.Resampling.BICUBIC))
        if pixels.dtype == np.uint16:
            resized = np.clip(np.rint(resized), 0, 65535)  # bicubic filters overshoot at edges
        smaller[:, :, channel] = resized
    return without_ends(smaller, shrink_to)


def array_image(values: NDArray[Any], max_pixels: int) -> Pixels:
    """Converts an array (H, W) or (H, W, C) to an image (H, W, C). Raises `Unreadable` if it is not an image."""
    if values.ndim not in (2, 3) or values.size == 0:
        raise Unreadable(f"has shape {values.shape}, expected (H, W) or (H, W, C)")
    check_size(values.shape[0], values.shape[1], max_pixels)
    return as_pixels(values if values.ndim == 3 else values[:, :, None])


def finish(pixels: Pixels, channels: int | None, shrink_to: ShrinkTo | None) -> Pixels:
    """Converts channels and size of an image, and copies it if it is a view of another array."""
    pixels = shrink(match_channels(pixels, channels), shrink_to)
    return pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy(order="C")


def as_class_map(values: NDArray[Any]) -> ClassMap:
    """Class numbers (H, W) of any integer dtype as uint8; 255 marks pixels without a class, as does 65535 in longer integers.

    Raises:
        Unreadable: If the array has another shape, or numbers outside of 0 to 255.
    """
    if values.ndim != 2 or values.size == 0:
        raise Unreadable(f"mask of shape {values.shape}, expected (H, W): one class number per pixel")
    if values.dtype.kind not in "biu":
        raise Unreadable(f"mask of {values.dtype} values, expected class numbers")
    if values.dtype.itemsize > 1:
        values = np.where(values == 65535, IGNORE, values)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise Unreadable(f"mask with values from {low} to {high}, expected classes from 0 to 254, and 255 for pixels without one")
    return values.astype(np.uint8)


def under_centres(old: int, new: int) -> NDArray[np.int64]:
    """The pixel of a row of `old` pixels that lies under the centre of each of `new` pixels of the same length."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def shrink_class_map(classes: ClassMap, shrink_to: ShrinkTo | None) -> ClassMap:
    """Shrinks a map as `read_image` shrinks its image: each pixel takes the class under its centre."""
    if shrink_to is None:
        return classes
    height, width = classes.shape
    new_height, new_width = fit_size(height, width, shrink_to)
    smaller: ClassMap = classes[under_centres(height, new_height)[:, None], under_centres(width, new_width)]
    return without_ends(smaller, shrink_to)


def check_array_size(shape: tuple[int, ...], dtype: np.dtype[Any], max_pixels: int) -> None:
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
    shape, fortran, dtype, offset = npy_header(raw, max_pixels)
    count = math.prod(shape)
    if (missing := count * dtype.itemsize - (len(raw) - offset)) > 0:
        raise Unreadable(f"truncated NPY: {missing:,} bytes are missing")
    values = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F" if fortran else "C")
    return as_pixels(channels_last(values))


def npy_header(raw: bytes, max_pixels: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """The shape, the order of the axes and the type of an array in an NPY file, and where its values begin."""
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
    check_array_size(shape, dtype, max_pixels)
    return shape, fortran, dtype, stream.tell()
