"""Reads an image file of any supported format, within a memory limit. Every failure raises `Unreadable`.

The format follows from the first bytes of a file, not from its name. Pillow's plugins are called directly, and not through
`Image.open`, so other formats (PostScript, video) are never tried. The only size limit is `max_pixels`, which is compared with the
header. Pillow's global limit is not changed.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from unveil.data.from_pillow import Reduced, from_pillow, orientation, turn_of, upright_size
from unveil.data.image_headers import check_header
from unveil.data.jpeg import from_jpeg
from unveil.data.mask_values import MaskValues
from unveil.data.objects import Frame
from unveil.data.pixels import (
    ClassMap,
    CropSide,
    Pixels,
    ShrinkTo,
    Unreadable,
    array_image,
    as_class_map,
    check_size,
    finish,
    fit_size,
    npy_header,
    read_npy,
    sides_of,
)
from unveil.data.quiet_decoders import quiet_decoders
from unveil.data.regular_files import read_file
from unveil.data.tiff import read_tiff, tiff_frame

IMAGE_SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .webp .tif .tiff .bmp .dib .npy .ppm .pgm .pbm .pnm .pfm "
    ".avif .avifs .jp2 .j2k .jpx .j2c .qoi .dds .ico".split()
)
"""Suffixes (lower case) of image files. A file with such a suffix that is not an image is reported as skipped."""

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


def image_format(head: bytes) -> str | None:
    """The image format ("JPEG", "NPY", ...) of a file that begins with these 32 bytes, or None."""
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
    shrink_to: ShrinkTo | None = None,
    max_pixels: int = 64_000_000,
    name: str = "",
) -> Pixels:
    """Reads one image as (H, W, C), upright, uint8 or (16-bit grey, TIFF, NPY) uint16.

    Only the first frame of an animation, or the first page of a file, is read. Transparent pixels are blended with white, unless
    `channels` is 4. Palettes, CMYK, YCbCr and Lab become RGB. 16-bit colour PNGs become 8-bit, since Pillow cannot read them
    otherwise.

    Args:
        raw: The bytes of a file, its path, a Pillow image (which is not changed), or an array (H, W) or (H, W, C).
        channels: Number of channels. For 3, grey is repeated; for 1, RGB becomes luma. None keeps the channels of the file.
        shrink_to: Length of the short side after shrinking, see `fit_size`. Images are never enlarged. Of an image that is then
            longer than `LONGEST` times that, only the middle is kept.
        max_pixels: Maximum number of pixels to decode, compared with the header before anything is decoded.
        name: The name of the image in errors.

    Raises:
        Unreadable: If the image cannot be used; the message is one line.
    """
    kind = ""
    try:
        if isinstance(raw, np.ndarray):
            return finish(array_image(raw, max_pixels), channels, shrink_to)
        with quiet_decoders():
            if isinstance(raw, Image.Image):
                check_size(raw.height, raw.width, max_pixels)
                return from_pillow(raw, channels, shrink_to)
            if isinstance(raw, Path):
                raw = _read_file(raw)
            kind = _format_or_error(raw)
            if kind == "NPY":
                return finish(read_npy(raw, max_pixels), channels, shrink_to)
            if kind == "TIFF":
                check_header(kind, raw, max_pixels)
                return read_tiff(raw, channels, shrink_to, max_pixels)
            image, reduced = _open(kind, raw, shrink_to, max_pixels)
            found = None
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                found = from_jpeg(image, raw, channels, shrink_to, reduced)
            return from_pillow(image, channels, shrink_to, reduced) if found is None else found
    except Unreadable as error:
        raise Unreadable(error.reason, name, lost=error.lost) from None
    except Exception as error:
        raise Unreadable(_reason(kind, error), name) from None


def image_frame(raw: bytes | Image.Image | NDArray[Any], *, max_pixels: int = 64_000_000, name: str = "") -> Frame:
    """The size of an image as it is stored, and its orientation, without decoding it.

    Raises:
        Unreadable: If it cannot be opened.
    """
    try:
        if isinstance(raw, Image.Image):
            return Frame(raw.height, raw.width, orientation(raw))
        if isinstance(raw, np.ndarray):
            return Frame(*raw.shape[:2])
        with quiet_decoders():
            kind = _format_or_error(raw)
            if kind == "NPY":
                return Frame(*sides_of(npy_header(raw, max_pixels)[0]))
            if kind == "TIFF":
                height, width, tag = tiff_frame(raw, max_pixels)
                return Frame(height, width, turn_of(tag))
            image, _ = _open(kind, raw, None, max_pixels)
            return Frame(image.height, image.width, orientation(image))
    except Unreadable as error:
        raise Unreadable(error.reason, name, lost=error.lost) from None
    except Exception as error:
        raise Unreadable(_reason("", error), name) from None


class Mask(NamedTuple):
    """What a mask stores for each pixel."""

    pixels: NDArray[np.generic]
    """Values (H, W), or colours (H, W, 3) of uint8."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """The colour of each value, if the file has a palette."""


def read_mask(raw: bytes | NDArray[Any], *, max_pixels: int = 64_000_000, name: str = "") -> Mask:
    """Reads a mask as it is stored: a palette is never looked up, and values are not scaled.

    Args:
        raw: The bytes of a PNG in grey (1 to 16 bits), with a palette, or in colour; or an array (H, W).
        max_pixels: Maximum number of pixels to decode.
        name: The name of the mask in errors.

    Raises:
        Unreadable: If it is not such a mask, or is damaged.
    """
    try:
        if isinstance(raw, np.ndarray):
            return Mask(as_class_map(raw))
        with quiet_decoders():
            kind = _format_or_error(raw)
            if kind != "PNG":
                raise Unreadable(f"mask in {kind} format, expected PNG")
            image, _ = _open(kind, raw, None, max_pixels)
            if image.mode not in ("1", "L", "P", "I", "I;16", "RGB", "RGBA"):
                raise Unreadable(f"mask in the colour mode {image.mode}, expected a PNG in grey, with a palette, or in RGB")
            image.load()
            if image.mode in ("RGB", "RGBA"):
                colours = np.asarray(image)[:, :, :3]
                grey = bool((colours == colours[:, :, :1]).all())  # values that were saved as a colour image
                return Mask(as_class_map(colours[:, :, 0]) if grey else colours)
            classes = np.asarray(image)
            stored = as_class_map(classes // _grey_step(raw) if image.mode == "L" else classes)
            palette = np.asarray(image.getpalette() if image.mode == "P" else (), np.int64).reshape(-1, 3).tolist()
            return Mask(stored, tuple((red, green, blue) for red, green, blue in palette))
    except Unreadable as error:
        raise Unreadable(error.reason, name, lost=error.lost) from None
    except Exception as error:
        raise Unreadable(_reason("PNG", error), name) from None


def read_class_map(
    raw: bytes | NDArray[Any], *, values: MaskValues | None = None, max_pixels: int = 64_000_000, name: str = ""
) -> ClassMap:
    """Reads a mask as one class number per pixel, (H, W) uint8; 255 marks pixels without a class.

    Args:
        raw: As for `read_mask`. An array holds classes already, to which `values` do not apply.
        values: The class of each value or colour. By default values are the classes, and there are no colour masks.
        max_pixels: Maximum number of pixels to decode.
        name: The name of the mask in errors.

    Raises:
        Unreadable: If it is not such a mask, is damaged, or has another value or colour.
    """
    mask = read_mask(raw, max_pixels=max_pixels, name=name).pixels
    if mask.ndim == 3 and (values is None or not values.in_colour):
        raise Unreadable("mask in colour (RGB), expected one class number per pixel: a grey or palette PNG", name)
    if values is None or isinstance(raw, np.ndarray):
        return as_class_map(mask)
    if values.in_colour and mask.ndim == 2:
        mask = np.repeat(mask[:, :, None], 3, axis=2)  # a mask whose only colours are grey
    try:
        return values.classes_of(mask)
    except Unreadable as error:
        raise Unreadable(error.reason, name) from None


def turned(raw: bytes | Image.Image, max_pixels: int = 64_000_000) -> Frame | None:
    """What an image says about its orientation; None if it is upright, or says nothing.

    Args:
        raw: The bytes of a file that can be read, or a Pillow image.
        max_pixels: As for `read_image`.
    """
    try:
        frame = image_frame(raw, max_pixels=max_pixels)
    except Unreadable:  # what cannot be read is told where it is decoded
        return None
    return None if frame.turn is None else frame


def turned_with_image(classes: ClassMap, mask: bytes | NDArray[Any], image: object) -> ClassMap:
    """A class map, upright like its image.

    A mask with an orientation of its own is turned by that. A mask without one belongs to the pixels as they are stored, or to the
    upright image, as its size tells.

    Args:
        classes: The map as it is stored.
        mask: The file of the mask.
        image: The image: its file, a Pillow image, or something else that has no orientation.

    Raises:
        Unreadable: If both sizes are the same, so that it is not clear which it is.
    """
    own, found = (turned(raw) if isinstance(raw, bytes | Image.Image) else None for raw in (mask, image))
    if own is not None and own.turn is not None:
        return np.array(Image.fromarray(classes).transpose(own.turn))
    if found is None:
        return classes
    stored, upright = (found.height, found.width), upright_size(found.height, found.width, found.turn)
    if stored == upright:
        raise Unreadable(
            "the image has an EXIF orientation, and its mask has none and the same size both ways, so it is not clear whether the "
            "mask has to be turned: save the image upright"
        )
    if classes.shape == stored and found.turn is not None:
        return np.array(Image.fromarray(classes).transpose(found.turn))
    return classes


def _format_or_error(raw: bytes) -> str:
    if not raw:
        raise Unreadable("empty file")
    kind = image_format(raw[:32])
    if kind is None:
        raise Unreadable("not an image")
    return kind


def _reason(kind: str, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"{kind or 'image'} that does not fit into memory"
    text = " ".join(str(error).split()) or type(error).__name__
    state = "truncated" if "truncated" in text.lower() or isinstance(error, EOFError) else "damaged"
    return f"{state} {kind}: {text[:200]}" if kind else text[:200]


def _read_file(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}", lost=True) from None


def _open(kind: str, raw: bytes, shrink_to: ShrinkTo | None, max_pixels: int) -> tuple[Image.Image, Reduced | None]:
    """Opens an image without decoding it, and lets the decoder shrink it. Raises `Unreadable` if it is too large."""
    check_header(kind, raw, max_pixels)
    Image.init()  # registers Pillow's formats, once per process
    opener = (
        JpegImagePlugin.JpegImageFile if kind == "JPEG" else Image.OPEN[kind][0]
    )  # the registered opener of JPEG looks for more images in the file
    image = opener(io.BytesIO(raw), "")
    reduced = None
    if shrink_to is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        reduced = _draft(image, shrink_to)
    check_size(image.height, image.width, max_pixels)
    return (_mended_png(image, raw) if kind == "PNG" else image), reduced


def _grey_step(raw: bytes) -> int:
    """By what Pillow multiplies the values of a PNG in grey: 85 or 17 if they have 2 or 4 bits, else 1."""
    depth, colour_type = raw[24:26]
    return {2: 85, 4: 17}.get(depth, 1) if colour_type == 0 else 1


def _mended_png(image: Image.Image, raw: bytes) -> Image.Image:
    """Scales the transparent colour of a PNG like its pixels, which Pillow forgets for 2, 4 and 16 bits."""
    clear = image.info.get("transparency")
    if isinstance(clear, int) and image.mode == "L":
        image.info["transparency"] = clear * _grey_step(raw)
    elif isinstance(clear, tuple) and raw[24] == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if raw[25] == 4 and image.mode == "RGBA":  # grey with transparency, in 16 bits
        return image.convert("LA")
    return image


def _draft(image: JpegImagePlugin.JpegImageFile, shrink_to: ShrinkTo) -> Reduced | None:
    """Lets the JPEG decoder shrink the image by 2, 4 or 8, but to no less than twice the final size.

    The decoder uses a box filter, so the last step, whose quality is visible, is left to the bicubic filter. If random crops are
    taken, that step follows anyway, so the final size is enough, in half the time. A progressive file needs memory for all its
    coefficients at any scale, so it is decoded, and compared with the limit, at full size.
    """
    if "progressive" in image.info:
        return None
    width, height = image.size
    turn = orientation(image)
    final = upright_size(*fit_size(*upright_size(height, width, turn), shrink_to), turn)  # turned back
    spare = 1 if isinstance(shrink_to, CropSide) else 2
    drafted = image.draft(None, (spare * final[1], spare * final[0])) if final != (height, width) else None
    if drafted is None or image.size == (width, height):
        return None
    return Reduced(height, width, round(width / drafted[1][2]))
