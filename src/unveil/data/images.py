"""Reads one image, whatever its file turns out to be, within a limit of memory; every failure is `Unreadable`.

Files are known by their first bytes, never by their names. Pillow's plugins are called one by one and not through
`Image.open`: so a format that nobody asked for (PostScript, video) is never tried, and the only limit of size is ours,
checked from the header, with no process-wide setting of Pillow to change.
"""

import contextlib
import ctypes
import io
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from unveil.data.pixels import Pixels, Unreadable, as_pixels, check_size, fit_size, match_channels, read_npy, read_tiff, shrink

__all__ = ["FILE_LIMIT", "IMAGE_SUFFIXES", "Pixels", "Unreadable", "fit_size", "image_format", "read_image"]

IMAGE_SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .webp .tif .tiff .bmp .dib .npy .ppm .pgm .pbm .pnm .pfm "
    ".avif .avifs .jp2 .j2k .jpx .j2c .qoi .dds .ico".split()
)
"""Endings (lower case) of files that are meant to be images: one that is not is reported, not passed over."""
FILE_LIMIT = 1 << 30
"""Bytes of the largest file that is taken for one image."""

# A damaged tag makes Pillow warn, on stderr and from any thread. Filters cannot be set for one thread, so this one is
# set once; it is last in the list, which leaves whatever the user says about warnings in charge.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.", append=True)
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL + 1)
with contextlib.suppress(OSError, AttributeError):  # libtiff writes to stderr too, and this is the only way to stop it
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # type: ignore[attr-defined]
Image.init()

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\x93NUMPY", "NPY"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"qoif", "QOI"),
    (b"DDS \x7c\0\0\0", "DDS"),
    (b"\0\0\1\0", "ICO"),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
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
_SPREAD = re.compile(r'"shape": \[\d+, \d+, \d+\]')  # tifffile's note of a 3-D array, which may lie over several pages


def image_format(head: bytes) -> str | None:
    """The image format that a file's first 32 bytes announce ("JPEG", "NPY", ...), or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456fFy" and head[2:3].isspace():
        return "PPM"
    return None


def read_image(
    raw: bytes | Path | Image.Image | NDArray[Any],
    *,
    channels: int | None = None,
    shrink_to: int | None = None,
    pixel_limit: int = 64_000_000,
    name: str = "",
) -> Pixels:
    """Read one image as (H, W, C), upright, uint8 or (16-bit grey, TIFF, NPY) uint16.

    Of an animation or a file of many pages the first is read. Transparency is laid over white, as a page would show
    it, except where `channels` is 4. Palettes, CMYK, YCbCr and Lab become RGB; 16-bit colour PNGs come as 8 bits,
    which is all that Pillow offers.

    Args:
        raw: the bytes of a file, its path, a Pillow image (not changed), or an array (H, W) or (H, W, C).
        channels: how many to return: grey is repeated to 3, RGB becomes luma for 1; None leaves them as they are.
        shrink_to: shrink so that the short side is this and the long side at most twice this; never enlarges.
        pixel_limit: the most pixels that may be decoded, known from the header before anything is.
        name: what to call the image in the error.

    Raises:
        Unreadable: whatever is wrong with this image, in one line.
    """
    kind = ""
    try:
        if isinstance(raw, np.ndarray):
            return _finish(_checked_array(raw, pixel_limit), channels, shrink_to)
        if isinstance(raw, Image.Image):
            check_size(raw.height, raw.width, pixel_limit)
            return _from_image(raw, channels, shrink_to)
        if isinstance(raw, os.PathLike):
            raw = _read_file(raw)
        if not raw:
            raise Unreadable("empty file")
        kind = image_format(raw[:32]) or ""
        if not kind:
            raise Unreadable("not an image")
        if kind == "NPY":
            return _finish(read_npy(raw, pixel_limit), channels, shrink_to)
        if kind == "TIFF":
            return _read_tiff(raw, channels, shrink_to, pixel_limit)
        return _from_image(_open(kind, raw, shrink_to, pixel_limit), channels, shrink_to)
    except Unreadable as error:
        raise Unreadable(error.reason, name) from None
    except Exception as error:
        raise Unreadable(_reason(kind, error), name) from None


def _reason(kind: str, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"{kind or 'image'} that does not fit into memory"
    text = " ".join(str(error).split()) or type(error).__name__
    state = "truncated" if "truncated" in text.lower() or isinstance(error, EOFError) else "damaged"
    return f"{state} {kind}: {text[:200]}" if kind else text[:200]


def _read_file(path: os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_LIMIT:
                raise Unreadable(f"{size:,} bytes, over the limit of {FILE_LIMIT:,} for one image")
            return file.read()
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None


def _checked_array(values: NDArray[Any], pixel_limit: int) -> Pixels:
    if values.ndim not in (2, 3) or values.size == 0:
        raise Unreadable(f"has shape {values.shape}, expected (H, W) or (H, W, C)")
    check_size(values.shape[0], values.shape[1], pixel_limit)
    return as_pixels(values if values.ndim == 3 else values[:, :, None])


def _finish(pixels: Pixels, channels: int | None, shrink_to: int | None) -> Pixels:
    pixels = shrink(match_channels(pixels, channels), shrink_to)
    return pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy(order="C")


def _open(kind: str, raw: bytes, shrink_to: int | None, pixel_limit: int) -> Image.Image:
    """Open without decoding, so that the size is known and can be refused."""
    for width, height in _announced_sizes(kind, raw):
        check_size(height, width, pixel_limit)
    opener = JpegImagePlugin.JpegImageFile if kind == "JPEG" else Image.OPEN[kind][0]  # JPEG's looks for more images
    image = opener(io.BytesIO(raw), "")
    if shrink_to is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        _draft(image, shrink_to)
    check_size(image.height, image.width, pixel_limit)
    return image


def _draft(image: JpegImagePlugin.JpegImageFile, shrink_to: int) -> None:
    """Let the JPEG decoder shrink by 2, 4 or 8 while at least twice the final size is left.

    Its shrinking is a box filter; the factor of two leaves the last and visible step to the better one. A progressive
    file keeps all its coefficients in memory whatever the scale: it is decoded, and counted, at full size.
    """
    if "progressive" not in image.info:
        height, width = fit_size(image.height, image.width, shrink_to)
        image.draft(None, (2 * width, 2 * height))


def _announced_sizes(kind: str, raw: bytes) -> list[tuple[int, int]]:
    """The (width, height) in the headers of the two formats whose plugins spend memory when they only open."""
    if kind == "WEBP" and len(raw) >= 30:
        if raw[12:16] == b"VP8X":
            return [(int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1)]
        if raw[12:16] == b"VP8L":
            bits = int.from_bytes(raw[21:25], "little")
            return [((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)]
        width, height = int.from_bytes(raw[26:28], "little"), int.from_bytes(raw[28:30], "little")
        return [(width & 0x3FFF, height & 0x3FFF)]
    if kind != "ICO":
        return []
    sizes = []
    for entry in range(int.from_bytes(raw[4:6], "little")):
        start = int.from_bytes(raw[18 + 16 * entry : 22 + 16 * entry], "little")
        frame = raw[start : start + 24]
        if frame[:4] == b"\x89PNG":
            sizes.append((int.from_bytes(frame[16:20], "big"), int.from_bytes(frame[20:24], "big")))
        elif len(frame) == 24:  # a bitmap, twice as high because its mask follows
            width, height = (int.from_bytes(frame[at : at + 4], "little", signed=True) for at in (4, 8))
            sizes.append((abs(width), (abs(height) + 1) // 2))
    return sizes


def _read_tiff(raw: bytes, channels: int | None, shrink_to: int | None, pixel_limit: int) -> Pixels:
    """Pillow where it keeps every sample as it is, tifffile where Pillow would drop channels or bits."""
    try:
        image = Image.OPEN["TIFF"][0](io.BytesIO(raw), "")
        bits, samples, photometric, extra = (image.tag_v2.get(tag) for tag in (258, 277, 262, 338))  # type: ignore[attr-defined]
        spread = _SPREAD.search(str(image.tag_v2.get(270, "")))  # type: ignore[attr-defined]
    except Exception:
        return _finish(read_tiff(raw, pixel_limit), channels, shrink_to)
    samples = samples or 1
    wide = max(bits or (1,)) > 8
    known = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}.get(photometric, 0)  # samples that the colour space needs
    alpha = samples == known + 1 and tuple(extra or ()) in ((1,), (2,))
    if spread or (samples > 1 and (wide or not (samples == known or alpha))):
        return _finish(read_tiff(raw, pixel_limit), channels, shrink_to)
    check_size(image.height, image.width, pixel_limit)
    return _from_image(image, channels, shrink_to)


def _from_image(image: Image.Image, channels: int | None, shrink_to: int | None) -> Pixels:
    image.load()
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.format == "PPM" and image.mode == "I":
            values = values.astype(np.uint16)  # Pillow stretched its values to 16 bits
        return _finish(as_pixels(values[:, :, None]), channels, shrink_to)
    image = _plain(image, channels)
    if channels == 1 and image.mode == "RGB":
        image = image.convert("L")
    if shrink_to is not None:
        height, width = fit_size(image.height, image.width, shrink_to)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    return match_channels(pixels if pixels.ndim == 3 else pixels[:, :, None], channels)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF (or XMP) orientation says; one that cannot be understood is left alone."""
    if not {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}.isdisjoint(image.info):
        try:
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        except Exception:
            return image
        if turn is not None:
            turned = image.transpose(turn)
            turned.format = image.format
            return turned
    return image


def _plain(image: Image.Image, channels: int | None) -> Image.Image:
    """As L or RGB, or as RGBA where four channels are wanted and there is transparency."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "1")
        image = image.convert("RGBA")
        if channels == 4:
            return image
        page = Image.new("RGB", image.size, (255, 255, 255))
        page.paste(image, mask=image.getchannel("A"))
        return page.convert("L") if grey else page
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
