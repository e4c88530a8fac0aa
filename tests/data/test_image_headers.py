"""Headers that would keep a decoder busy, and odd kinds of PNG files, written by hand."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from unveil.data.images import read_class_map, read_image
from unveil.data.pixels import Unreadable

LONG = bytes(20 << 20)


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


JPEG, PNG, PROGRESSIVE = encoded("JPEG"), encoded("PNG"), encoded("JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
SLOW = {
    "JPEG of zeros": JPEG[:2] + b"\xff" + LONG,
    "JPEG of fill bytes": JPEG[:2] + b"\xff" * len(LONG),
    "JPEG with junk": JPEG[:20] + LONG + JPEG[20:],
    "JPEG of EXIF": JPEG[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 400 + JPEG[2:],
    "JPEG of comments": JPEG[:2] + b"\xff\xfe\0\2" * 2_000_000 + JPEG[2:],
    "JPEG of scans": PROGRESSIVE[:-2] + LAST_SCAN * 2000 + PROGRESSIVE[-2:],
    "GIF of zeros": b"GIF89a" + LONG,
    "GIF of extensions": b"GIF89a\x01\0\x01\0\0\0\0" + b"!\xff\x01\0\0" * (4 << 20),
    "GIF of blocks": b"GIF89a\x01\0\x01\0\0\0\0!\xff" + b"\1a" * (10 << 20),
    "PPM of spaces": b"P6 " + b" " * len(LONG),
    "PPM of comments": b"P6\n#" + b"a" * len(LONG),
    "PNG of chunks": PNG[:33] + chunk(b"tEXt", b"a\0b") * 1_000_000 + PNG[33:],
    "BigTIFF of tags": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**40) + LONG,
    "QOI": b"qoif" + struct.pack(">II", 8000, 8000) + b"\3\0" + b"\xfd" * 1_100_000,
}


@pytest.mark.parametrize("what", SLOW)
def test_headers_without_end_cost_no_time(what: str) -> None:
    start = time.monotonic()
    with pytest.raises(Unreadable):
        read_image(SLOW[what])
    assert time.monotonic() - start < 3


def test_ordinary_headers_pass() -> None:
    profile = np.random.default_rng(0).bytes(300_000)  # split over several segments
    for raw in (encoded("JPEG", icc_profile=profile), encoded("JPEG", comment=b"x" * 60_000), encoded("PNG", icc_profile=profile)):
        assert read_image(raw).shape == (40, 50, 3)
    assert PROGRESSIVE.count(b"\xff\xda") == 10
    assert read_image(PROGRESSIVE).shape == (40, 50, 3)
    stray = JPEG[:2] + b"\xff\xff\xff" + bytes(100) + JPEG[2:]
    assert read_image(stray).shape == (40, 50, 3)
    frames = encoded("GIF", comment=b"x" * 3000)
    assert read_image(frames).shape == (40, 50, 3)


# ---------------------------------------------------------------- PNG by its specification


def png(depth: int, colour: int, rows: np.ndarray, clear: bytes = b"", palette: bytes = b"") -> bytes:
    """A PNG file of samples (H, W, S), by the specification."""
    if depth < 8:
        digits = (rows.reshape(len(rows), -1)[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = [np.packbits(line.astype(np.uint8)).tobytes() for line in digits.reshape(len(rows), -1)]
    else:
        lines = [line.astype(">u2" if depth == 16 else np.uint8).tobytes() for line in rows]
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"") + (chunk(b"tRNS", clear) if clear else b"")
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_lies_on_white(depth: int) -> None:
    rows = np.random.default_rng(0).integers(0, 2**depth, (6, 9, 1))
    white = 65535 if depth == 16 else 255
    for clear in (int(rows[0, 0, 0]), int(rows[1, 1, 0])):
        wanted = np.where(rows == clear, white, rows * (white // (2**depth - 1)))
        assert np.array_equal(read_image(png(depth, 0, rows, struct.pack(">H", clear))), wanted)
    assert np.array_equal(read_image(png(depth, 0, rows)), rows * (white // (2**depth - 1)))


@pytest.mark.parametrize("depth", [8, 16])
def test_colour_and_alpha_of_png(depth: int) -> None:
    shift = depth - 8  # Pillow keeps the upper 8 bits of colours
    values = np.random.default_rng(0).integers(0, 2**depth, (6, 9, 4))
    colours, alpha = (values >> shift)[..., :3], (values >> shift)[..., 3:]
    clear = values[2, 3, :3]
    same = (colours == clear >> shift).all(axis=-1, keepdims=True)
    assert np.array_equal(read_image(png(depth, 2, values[..., :3], struct.pack(">HHH", *clear))), np.where(same, 255, colours))
    blended = colours * (alpha / 255) + 255 - alpha
    assert abs(read_image(png(depth, 6, values)) - blended).max() <= 1
    assert np.array_equal(read_image(png(depth, 6, values), channels=4), values >> shift)
    found = read_image(png(depth, 4, values[..., 2:]))
    assert found.shape == (6, 9, 1)
    assert abs(found - blended[..., 2:3]).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_class_maps_of_few_bits_keep_their_classes(depth: int) -> None:
    classes = np.random.default_rng(0).integers(0, min(2**depth, 200), (6, 9, 1))
    assert np.array_equal(read_class_map(png(depth, 0, classes)), classes[..., 0])
    if depth <= 8:
        palette = np.random.default_rng(1).bytes(3 * 2**depth)
        assert np.array_equal(read_class_map(png(depth, 3, classes, palette=palette)), classes[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_orientation_that_a_tiff_says_twice_is_applied_once(dtype: type) -> None:
    """As Photoshop writes it: in a tag, and in XMP."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    values = np.arange(24).reshape(4, 6).astype(dtype)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700], tags[274] = xmp, 6
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", tiffinfo=tags)
    assert np.array_equal(read_image(stream.getvalue())[..., 0], np.rot90(values, -1))
