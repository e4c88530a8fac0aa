"""Looks at the header of an image file before its decoder does.

Some decoders allocate memory for an image on opening it, before its size can be compared with a limit. Others search the whole file
for its parts, byte by byte and in Python, which takes a minute for 60 MB of zeros.
"""

import re
from typing import Literal

import numpy as np

from unveil.data.pixels import Unreadable, check_size

GAP = 2**16
"""Maximum number of bytes between two parts of a header; some cameras leave a few."""
PARTS = 10_000
"""Maximum number of parts before the image itself. A colour profile takes at most 255."""
QOI_PIXELS = 16_000_000
"""Maximum number of pixels of a QOI file, whose decoder is written in Python: half a minute."""
SCANS = 100
"""Maximum number of scans of a JPEG; each visits the whole image. Progressive JPEGs have about 10."""
JPEG_HEADER = 2**24
"""Maximum number of bytes before the first scan of a JPEG. Depth maps of phones take a few million."""

_FILL, _GIF_PART, _PPM_COMMENT = re.compile(rb"\xff+"), re.compile(rb"[!,;]"), re.compile(rb"#[^\r\n]*")


def check_header(kind: str, raw: bytes, max_pixels: int) -> None:
    """Raises `Unreadable` for a file of the format `kind` that would take too much memory or time to open."""
    for width, height in announced_sizes(kind, raw):
        check_size(height, width, max_pixels)
    checks = {"JPEG": _check_jpeg, "PNG": _check_png, "GIF": _check_gif, "PPM": _check_ppm, "TIFF": _check_tiff}
    if kind in checks:
        checks[kind](raw)
    elif kind == "QOI":
        width, height = int.from_bytes(raw[4:8], "big"), int.from_bytes(raw[8:12], "big")
        if width * height > QOI_PIXELS:
            raise Unreadable(f"QOI of {width * height:,} pixels, whose decoder is slow: save images of over {QOI_PIXELS:,} as PNG")


def _check_jpeg(raw: bytes) -> None:
    """Walks over the segments up to the first scan, and counts the scans."""
    pairs = (np.frombuffer(raw, "<u2", (len(raw) - start) // 2, start) for start in (0, 1))  # even and odd places
    scans = sum(int(np.count_nonzero(each == 0xDAFF)) for each in pairs)  # in image data, a zero follows 255
    if scans > SCANS:
        raise Unreadable(f"JPEG of {scans:,} scans, each of which takes the time of a whole image: expected at most {SCANS}")
    position = 2
    for _ in range(PARTS):
        start = raw.find(b"\xff", position, position + GAP)
        fill = _FILL.match(raw, start, start + GAP) if start >= 0 else None
        if fill is None or fill.end() >= start + GAP:
            break
        position = fill.end()
        marker = raw[position : position + 1]
        if marker == b"\xda" or not marker:  # the scan, or the end of the file, which the decoder reports
            return
        position += 1
        if marker not in b"\0\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9":  # these have no length
            position += int.from_bytes(raw[position : position + 2], "big")
        if position >= len(raw):
            return
        if position > JPEG_HEADER:
            break
    raise Unreadable("damaged JPEG: no image after its header")


def _check_png(raw: bytes) -> None:
    """Counts the chunks that are no image data."""
    position, others = 8, 0
    while position + 8 <= len(raw):
        length, name = int.from_bytes(raw[position : position + 4], "big"), raw[position + 4 : position + 8]
        others += name not in (b"IDAT", b"fdAT")
        if others > PARTS:
            raise Unreadable(f"damaged PNG: more than {PARTS:,} chunks that are no image")
        if name == b"IEND":
            return
        position += 12 + length


def _check_gif(raw: bytes) -> None:
    """Walks over the extensions up to the first image."""
    flags = raw[10:11] or b"\0"
    position = 13 + (3 << (flags[0] & 7) + 1 if flags[0] & 0x80 else 0)
    for _ in range(PARTS):
        part = _GIF_PART.search(raw, position, position + GAP)
        if part is None:
            if position + GAP >= len(raw):
                return  # the decoder reports the end of the file
            break
        if part.group() != b"!":
            return
        position = part.end() + 1
        for _ in range(PARTS):
            length = raw[position] if position < len(raw) else 0
            position += 1 + length
            if not length:
                break
        else:
            break
    raise Unreadable("damaged GIF: no image after its header")


def _check_ppm(raw: bytes) -> None:
    words = _PPM_COMMENT.sub(b" ", raw[:GAP]).split(None, 4)
    if len(words) < 4 and len(raw) > GAP:  # the format, width, height, and the values or their maximum
        raise Unreadable("damaged PPM: no image after its header")


def _check_tiff(raw: bytes) -> None:
    """Compares the number of tags with the size of the file."""
    order: Literal["little", "big"] = "little" if raw[:2] == b"II" else "big"
    big = raw[2:4] in (b"+\0", b"\0+")
    start = int.from_bytes(raw[8:16] if big else raw[4:8], order)
    count = int.from_bytes(raw[start : start + (8 if big else 2)], order)
    if start + count * (20 if big else 12) > len(raw):
        raise Unreadable("truncated TIFF: its directory reaches beyond its end")


def announced_sizes(kind: str, raw: bytes) -> list[tuple[int, int]]:
    """The sizes (width, height) in the header, for the two formats whose plugins already allocate memory on opening."""
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
