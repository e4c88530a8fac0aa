"""TIFF files against the specification: they are written by hand, and the expected values are computed from the samples."""

import io
import itertools
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.data.test_hostile_archives import LINUX, tried
from tests.data.tiff_files import TURNS, write_tiff
from unveil.data import tiff
from unveil.data.images import image_frame, read_image, turned_with_image
from unveil.data.objects import turned_mask
from unveil.data.pixels import Unreadable

HEIGHT, WIDTH = 20, 37
KINDS = {  # photometric, samples, extra samples
    "white is zero": (0, 1, ()),
    "black is zero": (1, 1, ()),
    "grey, alpha": (1, 2, (2,)),
    "grey, associated alpha": (1, 2, (1,)),
    "white is zero, alpha": (0, 2, (2,)),
    "two channels": (1, 2, (0,)),
    "rgb": (2, 3, ()),
    "rgb, alpha": (2, 4, (2,)),
    "rgb, associated alpha": (2, 4, (1,)),
    "rgb, infrared": (2, 4, (0,)),
    "rgb, alpha, infrared": (2, 5, (2, 0)),
    "six channels": (1, 6, (0,) * 5),
    "palette": (3, 1, ()),
    "cmyk": (5, 4, ()),
}
PALETTE = np.random.default_rng(1).integers(0, 65536, (256, 3)).astype(np.uint16)


def samples_of(kind: str, dtype: type) -> np.ndarray:
    _, count, extra = KINDS[kind]
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, count)).astype(dtype)
    if extra == (1,):  # colours that are multiplied by alpha
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    return values


def meaning(kind: str, samples: np.ndarray, keep_alpha: bool = False) -> np.ndarray:
    """The pixels (H, W, C) of stored samples, as floats in their own scale."""
    photometric, _, extra = KINDS[kind]
    white = float(np.iinfo(samples.dtype).max)
    count = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}[photometric]
    colours = samples[..., :count].astype(float)
    if photometric == 0:
        colours = white - colours
    if photometric == 3:
        return PALETTE[samples[..., 0]] // 256
    if photometric == 5:
        colours = (white - colours[..., :3]) * (white - colours[..., 3:]) / white
    if extra not in ((1,), (2,)):
        return np.concatenate([colours, samples[..., count:]], axis=-1)
    alpha = samples[..., count:].astype(float)
    if keep_alpha:
        plain = colours if extra == (2,) else np.minimum(colours * white / np.maximum(alpha, 1), white)
        return np.concatenate([np.broadcast_to(plain, (HEIGHT, WIDTH, 3)), alpha], axis=-1)
    share = alpha / white
    return (colours if extra == (1,) else colours * share) + white * (1 - share)


def layouts(count: int) -> Iterator[dict[str, object]]:
    """Ways to store the same samples."""
    for orientation, planar, tile, compression, big_endian, predictor in itertools.product(
        (1, 3, 6, 7), (False, True), (0, 16), ("none", "lzw", "deflate", "packbits"), (False, True), (False, True)
    ):
        if (planar and count == 1) or (predictor and compression not in ("lzw", "deflate")):
            continue
        yield {
            "orientation": orientation,
            "planar": planar,
            "tile": tile,
            "rows": 0 if tile else 7,
            "compression": compression,
            "big_endian": big_endian,
            "predictor": predictor,
        }


CASES = [(kind, dtype) for kind in KINDS for dtype in (np.uint8, np.uint16) if (kind, dtype) != ("palette", np.uint16)]


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_every_layout_gives_the_values_of_the_specification(kind: str, dtype: type) -> None:
    """A layout may be refused only for its compression, if it has more channels or bits than Pillow reads."""
    samples = samples_of(kind, dtype)
    photometric, count, extra = KINDS[kind]
    wanted = meaning(kind, samples)
    right = refused = 0
    for layout in layouts(count):
        raw = write_tiff(samples, photometric, extra=extra, palette=PALETTE if photometric == 3 else None, **layout)
        try:
            found = read_image(raw)
        except Unreadable:
            refused += 1
            if layout["compression"] not in ("lzw", "packbits"):
                raise
            continue
        right += 1
        assert found.shape == wanted.shape, layout
        assert found.dtype == dtype, layout
        assert abs(found - wanted).max() < 1.01, layout
    assert right >= 48
    if kind in ("rgb", "black is zero", "palette", "cmyk") and dtype == np.uint8:
        assert not refused


@pytest.mark.parametrize(("kind", "dtype"), [case for case in CASES if "alpha" in case[0] and "infrared" not in case[0]])
def test_four_channels_keep_the_alpha(kind: str, dtype: type) -> None:
    samples = samples_of(kind, dtype)
    photometric, _, extra = KINDS[kind]
    found = read_image(write_tiff(samples, photometric, extra=extra, orientation=6), channels=4)
    wanted = meaning(kind, samples, keep_alpha=True)
    assert found.shape == (HEIGHT, WIDTH, 4)
    assert np.array_equal(found[..., 3], wanted[..., 3])
    assert abs(found - wanted).max() <= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "six channels"])
def test_both_readers_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 8 bits that Pillow decodes, decoded by tifffile."""
    photometric, _, extra = KINDS[kind]
    samples = samples_of(kind, np.uint8)
    for orientation, compression in itertools.product(range(1, 9), ("none", "deflate")):
        palette = PALETTE if photometric == 3 else None
        raw = write_tiff(samples, photometric, extra=extra, orientation=orientation, compression=compression, palette=palette)
        first = read_image(raw)
        with monkeypatch.context() as patch:
            patch.setattr(tiff, "_pillow_keeps_all", lambda tags: False)
            second = read_image(raw)
        assert first.shape == second.shape == (HEIGHT, WIDTH, first.shape[2])
        assert abs(first.astype(int) - second).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_few_bits_are_scaled_to_white(bits: int) -> None:
    samples = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH, 1)).astype(np.uint8 if bits < 8 else np.uint16)
    white = 255 if bits < 8 else 65535
    wanted = samples * (white / (2**bits - 1))
    assert abs(read_image(write_tiff(samples, 1, bits=bits)) - wanted).max() <= 0.5
    if bits < 8:
        assert abs(read_image(write_tiff(samples, 0, bits=bits)) - (white - wanted)).max() <= 0.5
        assert abs(read_image(write_tiff(samples, 0, bits=bits, orientation=8, compression="lzw")) - (white - wanted)).max() <= 0.5


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.uint64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("photometric", [0, 1])
def test_the_scale_follows_from_the_type(dtype: type, photometric: int) -> None:
    for largest in (100, 127) if dtype == np.int8 else (100, 4000, 30000):
        samples = np.random.default_rng(0).integers(0, largest + 1, (HEIGHT, WIDTH, 1))
        white = 255 if dtype == np.int8 else 65535
        stored = (samples / 65535).astype(dtype) if dtype(0.5) else samples.astype(dtype)
        wanted = np.rint(stored.astype(float) * 65535) if dtype(0.5) else samples
        found = read_image(write_tiff(stored, photometric))
        assert found.dtype == (np.uint8 if white == 255 else np.uint16)
        assert np.array_equal(found, white - wanted if photometric == 0 else wanted)


def test_values_outside_of_the_scale_are_refused() -> None:
    samples = np.full((4, 5, 1), 3)
    for stored, reason in [
        (-samples.astype(np.int8), "int8 values from -3 to -3"),
        (samples.astype(np.uint32) + 2**31, r"uint32 values from 2\.14748e\+09"),
        (samples.astype(np.float32), "floats are read from 0"),
        (samples.astype(np.int32) * 30000, "int32 is read from 0"),
    ]:
        with pytest.raises(Unreadable, match=reason):
            read_image(write_tiff(stored, 1))
    with pytest.raises(Unreadable, match="lacks some of its colours"):
        read_image(write_tiff(samples.astype(np.uint16) * 100, 3, palette=PALETTE))
    for photometric in (6, 8):
        with pytest.raises(Unreadable):
            read_image(write_tiff(np.repeat(samples, 3, axis=2).astype(np.uint16), photometric))


def test_stacks_of_tifffile_keep_their_meaning() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 1)).astype(np.uint8)
    note = json.dumps({"shape": [5, HEIGHT, WIDTH]})  # as tifffile describes a stack of images
    assert np.array_equal(read_image(write_tiff(samples, 3, palette=PALETTE, description=note)), PALETTE[samples[..., 0]] // 256)
    one = json.dumps({"shape": [1, HEIGHT, WIDTH]})
    assert np.array_equal(read_image(write_tiff(samples, 0, description=one, orientation=5)), 255 - samples)


# ---------------------------------------------------------------- tiles that are made to exhaust memory


def tile_bomb(side: int, compression: int, samples: int = 1) -> bytes:
    """A TIFF of 16 x 16 pixels in one tile of another size."""
    tags = [(256, 16), (257, 16), (258, 8), (259, compression), (262, 1), (277, samples)]
    tags += [(322, side), (323, side), (324, 200), (325, 50)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + zlib.compress(bytes(5000), 9).ljust(50, b"\0")


@LINUX
def test_tiles_are_compared_with_the_image(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    bombs = [(32752, 8, 1), (32752, 5, 1), (32752, 1, 1), (16368, 8, 1), (8192, 7, 1), (8192, 8, 3), (32752, 8, 5), (4096, 8, 400)]
    for number, bomb in enumerate(bombs):
        (folder / f"{number}.tif").write_bytes(tile_bomb(*bomb))
    said, _ = tried(folder)["tiles"]
    assert isinstance(said, dict)
    assert len(said) == len(bombs)
    for name, reason in said.items():
        assert "with a tile of" in reason, (name, reason)
    small = np.random.default_rng(0).integers(0, 256, (10, 12, 1)).astype(np.uint8)
    assert np.array_equal(read_image(write_tiff(small, 1, tile=256)), small)  # larger than the image, as usual


def test_the_import_needs_no_torch() -> None:
    code = "import sys, unveil.data.tiff; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["rgb", "rgb, infrared", "six channels"])  # Pillow reads the first one, tifffile the others
def test_boxes_and_masks_of_a_turned_tiff(kind: str, orientation: int) -> None:
    photometric, _, extra = KINDS[kind]
    samples = samples_of(kind, np.uint8)
    raw = write_tiff(samples, photometric, extra=extra, orientation=orientation)
    frame, stored = image_frame(raw), TURNS[orientation](samples)
    assert (frame.height, frame.width) == stored.shape[:2]
    assert np.array_equal(turned_mask(stored[..., 0] > 99, frame.turn), samples[..., 0] > 99)
    mask = np.ascontiguousarray(stored[..., 0])
    if orientation in (2, 3, 4):
        with pytest.raises(Unreadable, match="its mask has none and the same size both ways"):
            turned_with_image(mask, mask, raw)
    else:
        assert np.array_equal(turned_with_image(mask, mask, raw), samples[..., 0])


@pytest.mark.parametrize("shape", [(20, 37), (20, 37, 5), (5, 20, 37), (40, 20, 37)])
def test_the_frame_is_the_size_of_what_is_read(shape: tuple[int, ...]) -> None:
    """Without decoding: the file has no pixels."""
    tiff_file, npy_file = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(tiff_file, np.ones(shape, np.uint8), photometric="minisblack")
    np.save(npy_file, np.ones(shape, np.uint8))
    for raw in (tiff_file.getvalue(), npy_file.getvalue()):
        assert image_frame(raw)[:2] == read_image(raw).shape[:2]
    header = npy_file.getvalue()[:128]
    assert image_frame(header)[:2] == read_image(npy_file.getvalue()).shape[:2]
    assert image_frame(np.ones((20, 37, 3), np.uint8)) == (20, 37, None)
