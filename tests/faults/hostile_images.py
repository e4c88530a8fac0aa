"""Images that are broken, odd, or ask for gigabytes."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from tests.faults.hostile_bytes import GIB, MIB, chunk, deflated_zeros, pixels_chunk, png, png_of, tiff, tiff_tags


def images() -> dict[str, Callable[[], bytes]]:
    """Hostile images by file name, which are made when they are needed."""
    one, idat = png(), pixels_chunk()
    gray = bytes(256)
    text = b"Comment\0\0" + b"\x78\x9c"
    found: dict[str, Callable[[], bytes]] = {
        "bomb_30000.png": lambda: png(30000, 30000, 1, 0),
        "bomb_12000x9000.png": lambda: png(12000, 9000, 1, 0),
        "bomb_9000_rgba16.png": lambda: png(9000, 9000, 16, 6),
        "long_1x200000.png": lambda: png(1, 200_000, 8, 0),
        "wide_60000x1000.png": lambda: png(60_000, 1000, 8, 0),
        "head_only_2e9.png": lambda: png_of([], 2**31 - 1, 2**31 - 1),
        "text_bomb.png": lambda: png_of([chunk(b"zTXt", text[:-2] + deflated_zeros(GIB, zlib_head=True)), idat]),
        "many_texts.png": lambda: png_of([chunk(b"zTXt", text[:-2] + deflated_zeros(MIB, zlib_head=True))] * 200 + [idat]),
        "profile_bomb.png": lambda: png_of([chunk(b"iCCP", b"x\0\0" + deflated_zeros(GIB, zlib_head=True)), idat]),
        "no_pixels.png": lambda: png_of([]),
        "empty_pixels.png": lambda: png_of([chunk(b"IDAT", b"")]),
        "cut.png": lambda: one[: len(one) // 2],
        "wrong_checksum.png": lambda: one[:60] + bytes([one[60] ^ 1]) + one[61:],
        "long_chunk.png": lambda: one[:33] + b"\x7f\xff\xff\xff" + one[37:],
        "palette_missing.png": lambda: png_of([idat], color=3),
        "garbage_after.png": lambda: one + bytes(10 * MIB),
        "no_bytes.jpg": lambda: b"",
        "one_byte.png": lambda: b"\x89",
        "page.jpg": lambda: b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "text.png": lambda: b"not an image\n" * 100,
        "postscript.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(canary) (w) file closefile showpage\n",
        "postscript.eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(canary) (w) file closefile showpage\n",
        "entities.svg": lambda: (
            b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
            + b"".join(f'<!ENTITY {b} "{f"&{a};" * 10}">'.encode() for a, b in zip("abcdefgh", "bcdefghi", strict=True))
            + b"]><svg>&i;</svg>"
        ),
        "document.png": lambda: b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n" + bytes(2000),
        "huge.gif": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0\x3b",
        "cut.gif": lambda: saved("GIF")[:60],
        "frames.gif": lambda: animated(2000),
        "huge.webp": lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(30),
        "cut.webp": lambda: saved("WEBP")[:100],
        "huge.bmp": lambda: b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\xff\xff\xff\x7f" * 2 + b"\1\0\x18\0" + bytes(24),
        "negative.bmp": lambda: saved("BMP")[:18] + b"\xff\xff\xff\xff\0\0\0\x80" + saved("BMP")[26:],
        "runs.bmp": lambda: (
            b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0\0\x40\0\0\0\x40\0\0\1\0\x08\0\1\0\0\0" + bytes(20) + b"\xff\0" * 200
        ),
        "huge.ppm": lambda: b"P6 99999 99999 255\n" + bytes(100),
        "digits.ppm": lambda: b"P6 " + b"9" * 5_000_000 + b" 1 255\n",
        "comment.ppm": lambda: b"P6\n#" + b"x" * (20 * MIB) + b"\n20 20 255\n" + bytes(1200),
        "huge.pgm": lambda: b"P5 4000000000 1 65535\n",
        "huge.tga": lambda: bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 32, 0]) + bytes(50),
        "runs.tga": lambda: bytes([0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 64, 24, 0]) + b"\xff\0\0\0" * 50,
        "huge.psd": lambda: b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\x75\x30\0\0\x75\x30\0\x08\0\3" + bytes(60),
        "huge.ico": lambda: b"\0\0\1\0\xff\xff" + bytes(16) * 200,
        "huge.dds": lambda: (
            b"DDS \x7c\0\0\0\x07\x10\0\0\xff\xff\0\0\xff\xff\0\0" + bytes(56) + b"\x20\0\0\0\4\0\0\0DXT1" + bytes(40)
        ),
        "huge.qoi": lambda: b"qoif" + b"\0\1\0\0" * 2 + b"\3\0" + b"\xfd" * 1000,
        "huge.jp2": lambda: (
            b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr"
            + (b"\x7f" + b"\xff" * 3) * 2
            + b"\0\3\7\7\0\0"
            + bytes(60)
        ),
        "huge.avif": lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\xff" * 200,
        "huge.fits": lambda: fits(SIMPLE="T", BITPIX="8", NAXIS="2", NAXIS1="999999", NAXIS2="999999"),
        "tile_32752.tif": lambda: tiled(32752),
        "tile_deflated.tif": lambda: tiled(32752, compression=[8]),
        "tiles_float.tif": lambda: tiled(16384, bits=[64], sample_format=[3]),
        "samples_65535.tif": lambda: tiff(tiff_tags(4000, 4000, samples=[65535], offsets=[8], rows=[4000], counts=[256]), gray),
        "strip_deflated.tif": lambda: tiff(tiff_tags(40000, 40000, compression=[8], offsets=[8], rows=[40000], counts=[256]), gray),
        "strip_beyond.tif": lambda: tiff(tiff_tags(20, 20, offsets=[2**31], rows=[20], counts=[400]), gray),
        "strip_2e9.tif": lambda: tiff(tiff_tags(20, 20, offsets=[8], rows=[20], counts=[2**31]), gray),
        "bits_1000.tif": lambda: tiff(tiff_tags(16, 16, bits=[1000], offsets=[8], rows=[16], counts=[256]), gray),
        "circle.tif": lambda: tiff(tiff_tags(16, 16, offsets=[8], rows=[16], counts=[256]), gray, next_at=264),
        "strips_1e5.tif": lambda: tiff(tiff_tags(16, 100_000, offsets=[8] * 100_000, rows=[1], counts=[16] * 100_000), gray),
        "not_numbers.tif": lambda: tiff(
            tiff_tags(8, 8, bits=[32], sample_format=[3], offsets=[8], rows=[8], counts=[256]), b"\xff\xff\xff\x7f" * 64
        ),
        "huge.npy": lambda: npy("|u1", "(1000000, 1000000, 3)", bytes(100)),
        "pickled.npy": lambda: npy("|O", "(1,)", b"cposix\nsystem\n(S'touch canary ../canary'\ntR."),
        "huge.jpg": lambda: saved("JPEG").replace(b"\x08\0\x14\0\x14", b"\x08\xff\xff\xff\xff"),
        "cut.jpg": lambda: saved("JPEG")[:400],
        "scans.jpg": lambda: scans(2000),
        "comment.jpg": lambda: saved("JPEG")[:2] + (b"\xff\xfe\xff\xff" + bytes(65533)) * 100 + saved("JPEG")[2:],
        "bit_rot.jpg": lambda: saved("JPEG")[:300] + b"\xff\xd9\xff\x00" + saved("JPEG")[304:],
    }
    return found


def tiled(side: int, **others: Sequence[int]) -> bytes:
    """A TIFF of 16 x 16 pixels in one tile of any size."""
    tags = tiff_tags(16, 16, tile_width=[side], tile_height=[side], tile_offsets=[8], tile_counts=[256], **others)
    return tiff(tags, bytes(256))


def npy(kind: str, shape: str, data: bytes) -> bytes:
    """A file of `numpy.save`."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\1\0v\0" + head.encode().ljust(117) + b"\n" + data


def fits(**facts: str) -> bytes:
    return b"".join(f"{key:<8}= {value:>20}".encode().ljust(80) for key, value in facts.items()) + b"END".ljust(2480)


def saved(form: str) -> bytes:
    """A small image in a format."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(stream, form)
    return stream.getvalue()


def animated(frames: int) -> bytes:
    stream = io.BytesIO()
    images = [Image.new("P", (20, 20), number % 255) for number in range(frames)]
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:])
    return stream.getvalue()


def scans(count: int) -> bytes:
    """A progressive JPEG of 4000 x 4000 pixels whose last scan is repeated: each repetition visits every coefficient."""
    stream = io.BytesIO()
    Image.new("L", (4000, 4000)).save(stream, "JPEG", progressive=True)
    raw = stream.getvalue()
    last = raw.rindex(b"\xff\xda")
    return raw[:last] + raw[last:-2] * count + raw[-2:]
