"""TIFF files of any number of channels and bits. They give the same pixels whether Pillow or tifffile decodes them.

Pillow decodes the common kinds: with libtiff it knows most compressions. It cannot keep more than 8 bits of colours, nor channels
that are not colours, so those are left to tifffile. tifffile returns the samples as they are stored, and what they mean is applied
here: white as zero, palettes, CMYK, transparency, and orientation.
"""

import importlib.util
import io
import math
import re
import zlib
from typing import Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from unveil.data.from_pillow import from_pillow
from unveil.data.pixels import (
    Pixels,
    ShrinkTo,
    Unreadable,
    as_pixels,
    channels_last,
    check_array_size,
    check_size,
    finish,
    sides_of,
)

_NONE, _LZW, _DEFLATE, _OLD_DEFLATE = 1, 5, 8, 32946  # codes of compressions
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8  # codes of colour spaces
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
"""Samples of a pixel in each colour space; further ones are transparency, or channels of another kind."""
_ASSOCIATED, _UNASSOCIATED = 1, 2  # codes of transparency: whether the colours are multiplied by it
_THREE_AXES = re.compile(r'"shape": \[\d+, \d+, \d+\]')  # tifffile's note of a 3-D array, whose channels may be pages
LARGEST_TILE = 4096 * 4096
"""Maximum number of pixels of a tile, unless the image itself is larger. A decoder allocates a whole tile."""


def read_tiff(raw: bytes, channels: int | None, shrink_to: ShrinkTo | None, max_pixels: int) -> Pixels:
    """Reads the first page of a TIFF as (H, W, C), upright.

    A file written by tifffile records the shape of its array. If that is (C, H, W), channels may be pages, and all pages are read.

    Args:
        raw: The file.
        channels: As for `read_image`.
        shrink_to: As for `read_image`.
        max_pixels: Maximum number of pixels.

    Raises:
        Unreadable: If its layout or compression is not supported.
    """
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(raw))
        tags = image.tag_v2
        kept = _pillow_keeps_all(tags)
    except Exception:
        return finish(read_samples(raw, channels, max_pixels), channels, shrink_to)
    if not kept:
        return finish(read_samples(raw, channels, max_pixels), channels, shrink_to)
    check_size(image.height, image.width, max_pixels)
    samples = 1 if tags.get(284, 1) == 2 else len(tags.get(258, (1,)))
    _check_tile(tags.get(322, 0), tags.get(323, 0), samples, image.height, image.width)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image.load()  # also turns it upright
        bits, values = max(tags.get(258, (0,))), np.asarray(image)[:, :, None]
        if image.mode == "I" and bits == 32 and tags.get(339, (1,))[0] == 1:
            values = values.view(np.uint32)  # Pillow takes unsigned integers for signed ones
        pixels = as_pixels(values, bits if bits < 16 else 0)
        return finish(_white(pixels) - pixels if tags.get(262) == _WHITE_IS_ZERO else pixels, channels, shrink_to)
    if image.mode in ("La", "RGBa"):  # divided by alpha, as Pillow converts them, dark colours would lose their last bits
        image.load()
        return finish(_blended(np.asarray(image), True, channels), channels, shrink_to)
    return from_pillow(image, channels, shrink_to)


def tiff_frame(raw: bytes, max_pixels: int) -> tuple[int, int, int]:
    """Height and width of what `read_tiff` reads, as they are stored, and its orientation; from the header alone."""
    try:
        tags = TiffImagePlugin.TiffImageFile(io.BytesIO(raw)).tag_v2
        if _pillow_keeps_all(tags):
            return int(tags[257]), int(tags[256]), int(tags.get(274, 1))
    except Exception:
        pass  # tifffile reads it, or says why not
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        page, image, _ = _first_image(file)
        check_array_size(image.shape, image.dtype, max_pixels)
        if image is page:
            return page.imagelength, page.imagewidth, int(page.tags.valueof(274, 1))
        return *sides_of(image.shape), int(page.tags.valueof(274, 1))


def _pillow_keeps_all(tags: Any) -> bool:
    """Whether Pillow reads every channel and every bit, by the tags of a file."""
    bits, samples, photometric, extra = (tags.get(tag) for tag in (258, 277, 262, 338))
    samples, extra = samples or 1, tuple(extra or ())
    wide = max(bits or (1,)) > 8
    expected = _COLOURS.get(photometric, 0)
    alpha = samples == expected + 1 and extra in ((_ASSOCIATED,), (_UNASSOCIATED,))
    planar = tags.get(284, 1) == 2 and samples > 1
    signed = 2 in tags.get(339, ()) and not wide  # Pillow takes signed bytes for unsigned ones
    unsupported = planar and (expected == 1 or (extra == (_ASSOCIATED,) and tags.get(259, _NONE) == _NONE))
    if _THREE_AXES.search(str(tags.get(270, ""))) or signed or unsupported:
        return False
    return samples == 1 or (not wide and (samples == expected or alpha))


def read_samples(raw: bytes, channels: int | None, max_pixels: int) -> Pixels:
    """Reads a TIFF with tifffile as (H, W, C), upright. `channels` only says whether transparency is kept: if it is 4."""
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        page, image, pages = _first_image(file)
        check_array_size(image.shape, image.dtype, max_pixels)
        for each in pages:
            _check_segments(page, each, raw)
        values: NDArray[Any] = image.asarray(maxworkers=1)
        if image is not page:
            values = channels_last(values)
        else:
            values = values.transpose(1, 2, 0) if page.axes[:1] == "S" else values.reshape(page.imagelength, page.imagewidth, -1)
        pixels = _colours(values, page, channels)
    return _UPRIGHT[int(page.tags.valueof(274, 1))](pixels) if page.tags.valueof(274, 1) in _UPRIGHT else pixels


def _first_image(file: tifffile.TiffFile) -> tuple[Any, Any, list[Any]]:
    """The first page, what is read (the page, or a series whose pages are channels), and its pages."""
    page: Any = file.pages[0]
    image, pages = page, [page]
    if file.is_shaped and len(file.series[0].shape) == 3 and int(page.photometric) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        series = file.series[0]
        found = [each for each in series.pages if each is not None]
        if min(series.shape) <= 32 or len(found) == 1:  # otherwise it is a stack of images
            image, pages = series, found
    if image.dtype is None:
        raise Unreadable(f"TIFF with samples of {page.bitspersample} bits")
    if len(image.shape) not in (2, 3):
        raise Unreadable(f"TIFF of shape {image.shape}, expected one image")
    return page, image, pages


_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What turns an image (H, W, C) upright, for each orientation but 1."""


def _colours(values: NDArray[Any], page: Any, channels: int | None) -> Pixels:
    """What stored samples (H, W, S) mean: (H, W, C)."""
    photometric, extra = int(page.photometric), tuple(map(int, page.extrasamples))
    expected = _COLOURS.get(photometric, 0)
    has_alpha = values.shape[2] == expected + 1 and extra in ((_ASSOCIATED,), (_UNASSOCIATED,))
    if photometric == _PALETTE:
        return _from_palette(values, page, has_alpha)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    pixels = as_pixels(values, bits if bits < 8 * values.dtype.itemsize else 0)
    if photometric in (_YCBCR, _LAB):
        raise Unreadable(f"TIFF in {page.photometric.name} of {bits} bits: save it as RGB")
    white = _white(pixels)
    if photometric == _WHITE_IS_ZERO:
        pixels = pixels.copy()
        pixels[:, :, : 1 if extra else None] = white - pixels[:, :, : 1 if extra else None]
    if photometric == _CMYK and len(extra) <= int(has_alpha):
        ink = white - pixels[:, :, :4].astype(np.int64)
        rgb = (ink[:, :, :3] * ink[:, :, 3:] + white // 2) // white
        pixels = np.concatenate([rgb.astype(pixels.dtype), pixels[:, :, 4:]], axis=2)
    return _blended(pixels, extra == (_ASSOCIATED,), channels) if has_alpha else pixels


def _from_palette(values: NDArray[Any], page: Any, has_alpha: bool) -> Pixels:
    table = page.colormap  # (3, 2**bits) of uint16
    if table is None or values.dtype.kind != "u" or values[:, :, 0].max(initial=0) >= table.shape[1]:
        raise Unreadable("TIFF with a palette that lacks some of its colours")
    if values.shape[2] > 1 and not has_alpha:
        raise Unreadable(f"TIFF with a palette and {values.shape[2]} channels")
    return cast(Pixels, (table.T[values[:, :, 0]] // 256).astype(np.uint8))


def _blended(pixels: Pixels, associated: bool, channels: int | None) -> Pixels:
    """Colours and alpha (H, W, C + 1) on white (H, W, C); for four channels, RGBA with colours that are not multiplied by alpha."""
    white = _white(pixels)
    colours, alpha = pixels[:, :, :-1].astype(np.int64), pixels[:, :, -1:].astype(np.int64)
    if channels == 4:
        if associated:
            colours = np.minimum(colours * white // np.maximum(alpha, 1), white)
        colours = np.broadcast_to(colours, (*colours.shape[:2], 3))
        return cast(Pixels, np.concatenate([colours, alpha], axis=2).astype(pixels.dtype))
    if associated:
        blended = np.minimum(colours + white - alpha, white)
    else:
        blended = (colours * alpha + white * (white - alpha) + white // 2) // white
    return cast(Pixels, blended.astype(pixels.dtype))


def _white(pixels: Pixels) -> Any:
    return np.iinfo(pixels.dtype).max


def _check_tile(width: Any, height: Any, samples: int, image_height: int, image_width: int) -> None:
    """Raises `Unreadable` for a tile far larger than the image, which a decoder would allocate."""
    pixels = int(width or 0) * int(height or 0)
    if pixels * samples > max(LARGEST_TILE, 4 * image_height * image_width * samples):
        what = f"{width:,} x {height:,} pixels" + f" and {samples} samples" * (samples > 1)
        raise Unreadable(f"TIFF with a tile of {what}, but the image has {image_width:,} x {image_height:,}")


def _check_segments(first: Any, page: Any, raw: bytes) -> None:
    """Raises `Unreadable` for strips and tiles that decompress to more than their size, which tifffile does not check."""
    samples = 1 if first.planarconfig == 2 else first.samplesperpixel
    if first.is_tiled:
        _check_tile(first.tilewidth, first.tilelength, samples, first.imagelength, first.imagewidth)
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
