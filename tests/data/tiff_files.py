"""Writes TIFF files by hand, from the specification (TIFF 6.0), so no library decides both what is stored and what it means."""

import struct
import zlib

import numpy as np

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""How a device with this orientation stores an upright image."""
COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773}


def write_tiff(
    samples: np.ndarray,
    photometric: int,
    *,
    bits: int = 0,
    extra: tuple[int, ...] = (),
    orientation: int = 1,
    planar: bool = False,
    tile: int = 0,
    rows: int = 0,
    compression: str = "none",
    predictor: bool = False,
    palette: np.ndarray | None = None,
    big_endian: bool = False,
    description: str = "",
) -> bytes:
    """A TIFF of upright samples (H, W, S), which it turns as `orientation` says.

    Args:
        samples: Of an integer or float type; their own byte order does not matter.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK.
        bits: Bits of a sample, if not those of the type: 1, 2, 4 or 12.
        extra: Meaning of the samples beyond those of the colour: 0 unknown, 1 associated alpha, 2 unassociated alpha.
        orientation: 1 to 8.
        planar: Whether each channel is stored on its own.
        tile: Side of the tiles; 0 for strips.
        rows: Rows of a strip; 0 for a single strip.
        compression: A key of `COMPRESSIONS`.
        predictor: Whether differences of neighbours are stored.
        palette: Colours (256, 3), uint16.
        big_endian: The byte order.
        description: Text, for example that of tifffile.
    """
    stored = TURNS[orientation](samples)
    height, width, count = stored.shape
    order = ">" if big_endian else "<"
    bits = bits or 8 * stored.dtype.itemsize
    planes = [stored[:, :, i : i + 1] for i in range(count)] if planar else [stored]
    step_y, step_x = (tile, tile) if tile else (rows or height, width)
    parts = []
    for plane in planes:
        for top in range(0, height, step_y):
            for left in range(0, width, step_x):
                part = plane[top : top + step_y, left : left + step_x]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)))
                parts.append(packed(part, bits, order, compression, predictor))
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * count),
        (259, 3, [COMPRESSIONS[compression]]),
        (262, 3, [photometric]),
        (274, 3, [orientation]),
        (277, 3, [count]),
        (284, 3, [2 if planar else 1]),
        (339, 3, [{"u": 1, "i": 2, "f": 3}[stored.dtype.kind]] * count),
    ]
    if description:
        tags.append((270, 2, description.encode() + b"\0"))
    if predictor:
        tags.append((317, 3, [2]))
    if palette is not None:
        tags.append((320, 3, palette.T.flatten().tolist()))
    if extra:
        tags.append((338, 3, list(extra)))
    offset_tag, size_tag = (324, 325) if tile else (273, 279)
    tags += [(322, 4, [tile]), (323, 4, [tile])] if tile else [(278, 4, [step_y])]
    tags += [(offset_tag, 4, [0] * len(parts)), (size_tag, 4, [len(part) for part in parts])]
    tags.sort(key=lambda tag: tag[0])
    kinds = {3: "H", 4: "I"}
    after = 8 + 2 + 12 * len(tags) + 4

    def encoded(kind: int, content: list[int] | bytes) -> bytes:
        return content if isinstance(content, bytes) else struct.pack(f"{order}{len(content)}{kinds[kind]}", *content)

    data_start = after + sum(len(encoded(kind, content)) + 1 for _, kind, content in tags)
    offsets = [data_start + sum(len(part) + len(part) % 2 for part in parts[:number]) for number in range(len(parts))]
    tags = [(tag, kind, offsets if tag == offset_tag else content) for tag, kind, content in tags]
    directory, heap = struct.pack(f"{order}H", len(tags)), b""
    for tag, kind, content in tags:
        raw = encoded(kind, content)
        length = len(content)
        if len(raw) <= 4:
            directory += struct.pack(f"{order}HHI", tag, kind, length) + raw.ljust(4, b"\0")
        else:
            directory += struct.pack(f"{order}HHII", tag, kind, length, after + len(heap))
            heap += raw + bytes(len(raw) % 2)
    body = b"".join(part + bytes(len(part) % 2) for part in parts)
    head = (b"MM" if big_endian else b"II") + struct.pack(f"{order}HI", 42, 8)
    return head + (directory + bytes(4) + heap).ljust(data_start - 8, b"\0") + body


def packed(part: np.ndarray, bits: int, order: str, compression: str, predictor: bool) -> bytes:
    """The bytes of a strip or a tile (H, W, S)."""
    if predictor:
        part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)  # wraps around, as it should
    if bits in (1, 2, 4, 12):
        flat = part.reshape(len(part), -1)
        digits = (flat[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        raw = np.packbits(digits.reshape(len(part), -1).astype(np.uint8), axis=1).tobytes()  # each row begins with a whole byte
    else:
        raw = part.astype(part.dtype.newbyteorder(order)).tobytes()
    if compression == "deflate":
        return zlib.compress(raw)
    if compression == "packbits":
        return b"".join(bytes([len(raw[i : i + 128]) - 1]) + raw[i : i + 128] for i in range(0, len(raw), 128))
    if compression == "lzw":
        codes = []
        for start in range(0, len(raw), 200):  # few codes after each reset, so that they keep 9 bits
            codes += [256, *raw[start : start + 200]]
        digits = (np.array([*codes, 257])[:, None] >> np.arange(8, -1, -1)) & 1
        return np.packbits(digits.astype(np.uint8)).tobytes()
    return raw
