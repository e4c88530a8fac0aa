"""Hostile files of a few kilobytes, written by hand, that ask for gigabytes."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

MIB, GIB = 1 << 20, 1 << 30
ZEROS = bytes(1 << 20)


def png(width: int = 20, height: int = 20, bits: int = 8, color: int = 2, seed: int = 0) -> bytes:
    """A small PNG of noise; or the head of a large one, whose pixels compress to nothing."""
    if width * height <= 1 << 16:
        stream = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()
    channels = {0: 1, 2: 3, 6: 4}[color]
    size = (1 + (width * bits * channels + 7) // 8) * height
    return png_of([chunk(b"IDAT", deflated_zeros(size, zlib_head=True))], width, height, bits, color)


def png_of(chunks: Iterable[bytes], width: int = 20, height: int = 20, bits: int = 8, color: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pixels_chunk(width: int = 20, height: int = 20) -> bytes:
    return chunk(b"IDAT", zlib.compress((b"\0" + bytes(range(3 * width))) * height))


def deflated_zeros(size: int, zlib_head: bool = False) -> bytes:
    """`size` bytes of zeros, deflated. One mebibyte is compressed once, and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(ZEROS) + packer.flush(zlib.Z_FULL_FLUSH)
    count, rest = divmod(size, len(ZEROS))
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = once * count + last.compress(ZEROS[:rest]) + last.flush()
    if not zlib_head:
        return raw
    total = zlib.adler32(b"")
    for _ in range(count):
        total = zlib.adler32(ZEROS, total)
    return b"\x78\x9c" + raw + struct.pack(">I", zlib.adler32(ZEROS[:rest], total))


def tiff(tags: Sequence[tuple[int, int, Sequence[int]]], data: bytes = b"", next_at: int = 0) -> bytes:
    """A little-endian TIFF with one directory; `tags` are numbers, types (3: 2 bytes, 4: 4 bytes) and values."""
    start = 8 + len(data)
    body = struct.pack("<H", len(tags))
    extra = b""
    rest_at = start + 2 + 12 * len(tags) + 4
    for tag, kind, values in sorted(tags):
        packed = b"".join(struct.pack("<H" if kind == 3 else "<I", value) for value in values)
        if len(packed) > 4:
            body += struct.pack("<HHII", tag, kind, len(values), rest_at + len(extra))
            extra += packed
        else:
            body += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + data + body + struct.pack("<I", next_at) + extra


def tiff_tags(width: int, height: int, **others: Sequence[int]) -> list[tuple[int, int, Sequence[int]]]:
    """The usual tags of a grey image in one strip at byte 8."""
    numbers = {"bits": 258, "compression": 259, "photometric": 262, "offsets": 273, "samples": 277, "rows": 278, "counts": 279}
    numbers |= {"tile_width": 322, "tile_height": 323, "tile_offsets": 324, "tile_counts": 325, "sample_format": 339}
    usual: dict[str, Sequence[int]] = {"bits": [8], "compression": [1], "photometric": [1], "samples": [1], **others}
    short = ("bits", "compression", "photometric", "samples", "sample_format")
    rest = [(numbers[name], 3 if name in short else 4, values) for name, values in usual.items()]
    return [(256, 4, [width]), (257, 4, [height]), *rest]


def zip_of(entries: Sequence[tuple[str, bytes]], comment: bytes = b"", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as table:
        for name, data in entries:
            table.writestr(name, data)
        table.comment = comment
    return stream.getvalue()


def zip_of_zeros(names: Sequence[str], size: int, said: int | None = None, overlap: bool = False) -> bytes:
    """A zip whose members are `size` zeros; `said` is the size in its table; with `overlap` all of them are the same bytes."""
    raw = deflated_zeros(size)
    check = 0
    for _ in range(size >> 20):
        check = zlib.crc32(ZEROS, check)
    check = zlib.crc32(ZEROS[: size & 0xFFFFF], check)
    body, table = b"", b""
    for name in names:
        offset = 0 if overlap and body else len(body)
        facts = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, check, len(raw), size if said is None else said, len(name), 0)
        if not (overlap and body):
            body += b"PK\3\4" + facts + name.encode() + raw
        table += b"PK\1\2" + struct.pack("<H", 20) + facts + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name.encode()
    return body + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(table), len(body), 0)


def tar_of(entries: Sequence[tuple[str | tarfile.TarInfo, bytes]], **options: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as table:  # type: ignore[call-overload]
        for name, data in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            table.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member of a tar that is no file: a link, a device, a FIFO."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor, info.devminor = kind, target, 1, 5
    return info


def tar_gz_of_zeros(size: int, good: bytes) -> bytes:
    """A .tar.gz with one good image, and one of `size` zeros in gzip members of one mebibyte."""
    head = tarfile.TarInfo("good/a.png")
    head.size = len(good)
    zeros = tarfile.TarInfo("zeros.png")
    zeros.size = size
    start = head.tobuf() + good.ljust(-(-len(good) // 512) * 512, b"\0") + zeros.tobuf()
    return gzip.compress(start) + gzip.compress(ZEROS) * (size >> 20) + gzip.compress(bytes(10240))
