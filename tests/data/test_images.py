import io
import json
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.data.images import image_format, read_image
from unveil.data.pixels import Unreadable, fit_size

# pytest replaces the filter that images.py sets; the tests in a process of their own show that it works.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "odd_images"


def photo(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth image without symmetry, so that JPEG keeps it and every turn of it differs."""
    down, across = np.mgrid[0:height, 0:width].astype(float)
    planes = [200 * down / height + 20 * channel + 10 * (across / width) for channel in range(channels)]
    planes[0] = 250 * (across / width) ** 2
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- formats and modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "QOI", "JPEG2000"])
def test_lossless_formats_are_exact(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.array_equal(read_image(encode(photo(), kind, **options)), photo())


def test_bytes_path_and_image_agree(tmp_path: Path) -> None:
    raw = encode(photo(), "JPEG")
    (tmp_path / "odd name é&.png").write_bytes(raw)  # a wrong ending does no harm
    expected = np.asarray(Image.open(io.BytesIO(raw)))
    assert np.array_equal(read_image(raw), expected)
    assert np.array_equal(read_image(tmp_path / "odd name é&.png"), expected)
    assert np.array_equal(read_image(Image.open(io.BytesIO(raw))), expected)


def test_result_may_be_written_to() -> None:
    for raw in (encode(photo()), npy(photo()), photo(), tiff(photo(channels=5), planarconfig="contig")):
        assert read_image(raw).flags.writeable
        assert read_image(raw).flags.c_contiguous


def test_cmyk_is_converted() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        pixel = read_image(encode(red, kind))[4, 4].astype(int)
        assert abs(pixel - [255, 0, 0]).max() <= 4


def test_transparency_lies_on_white_unless_four_channels_are_wanted() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (10, 20, 30, 0)
    raw = encode(rgba)
    assert read_image(raw)[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.array_equal(read_image(raw, channels=4), rgba)
    grey = read_image(encode(Image.fromarray(rgba).convert("LA")))
    assert grey.shape == (2, 2, 1)
    assert grey[0, 1, 0] == 255


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 1, 2, 3])
    image.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        assert read_image(encode(image, transparency=transparency)).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    assert read_image(encode(image)).tolist() == [[[9, 8, 7], [1, 2, 3]]]


def test_bilevel_becomes_grey() -> None:
    assert read_image(encode(Image.fromarray(np.eye(3, dtype=bool))))[:, :, 0].tolist() == (255 * np.eye(3)).tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_kept(kind: str) -> None:
    values = np.array([[0, 1, 255], [256, 40000, 65535]], np.uint16)
    found = read_image(encode(values, kind))
    assert found.dtype == np.uint16
    assert np.array_equal(found[:, :, 0], values)
    assert read_image(encode(values, kind), channels=3).shape == (2, 3, 3)


def test_first_frame_and_first_page() -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        raw = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert abs(read_image(raw)[2, 2].astype(int) - [255, 0, 0]).max() <= 3, kind


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_equals_the_upright_image(orientation: int, kind: str) -> None:
    upright = photo(32, 48)
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = np.ascontiguousarray(turns[orientation](upright))  # how a camera held that way stores it
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = read_image(encode(stored, kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert abs(found.astype(int) - upright).max() <= (12 if kind == "JPEG" else 0)
    assert read_image(encode(stored, kind, exif=exif, **options), shrink_to=16).shape == (16, 24, 3)


def test_broken_exif_is_no_reason_to_lose_a_image() -> None:
    assert read_image(encode(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")).shape == (48, 64, 3)


# ---------------------------------------------------------------- channels and values


def test_channels() -> None:
    grey, colour = photo(channels=1), photo()
    assert np.array_equal(read_image(encode(grey), channels=3), grey.repeat(3, axis=2))
    assert read_image(encode(colour), channels=1).shape == (48, 64, 1)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert abs(read_image(encode(colour), channels=1)[:, :, 0] - luma).max() <= 1
    assert abs(read_image(npy(colour.astype(np.uint16) * 257), channels=1)[:, :, 0] - 257 * luma).max() <= 1
    with pytest.raises(Unreadable, match=r"a\.png: has 3 channels, expected 4"):
        read_image(encode(colour), channels=4, name="a.png")
    with pytest.raises(Unreadable, match="has 5 channels, expected 3"):
        read_image(npy(photo(channels=5)), channels=3)
    with pytest.raises(Unreadable, match="has 1 channel, expected 2"):
        read_image(npy(photo(channels=1)), channels=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
def test_npy_layouts(dtype: object) -> None:
    for channels in (1, 3, 4, 7):
        array = photo(channels=channels).astype(dtype)
        assert np.array_equal(read_image(npy(array)), array)
        assert np.array_equal(read_image(npy(np.asfortranarray(array))), array)
        assert read_image(npy(array)).dtype in (np.uint8, np.uint16)
        assert np.array_equal(read_image(npy(array.transpose(2, 0, 1))), array)
    assert np.array_equal(read_image(npy(array[:, :, 0])), array[:, :, :1])
    assert read_image(npy(np.zeros((2, 4000, 3), np.uint8))).shape == (2, 4000, 3)


def test_values_that_are_no_pixels_are_refused_with_what_was_found() -> None:
    assert read_image(npy(np.array([[0.0, 0.5], [1.0, 0.25]])))[:, :, 0].tolist() == [[0, 32768], [65535, 16384]]
    assert read_image(npy(np.array([[0, 300]], np.int64)))[:, :, 0].tolist() == [[0, 300]]
    assert read_image(npy(np.array([[True, False]])))[:, :, 0].tolist() == [[255, 0]]
    assert read_image(encode(Image.fromarray(np.array([[0.0, 1.0]], np.float32)), "TIFF"))[0, 1, 0] == 65535
    for array, reason in [
        (np.array([[-1.0, 2.0]]), r"float64 values from -1 to 2; floats are read from 0 \(black\) to 1 \(white\)"),
        (np.array([[0.0, 200.0]]), "from 0 to 200; floats are read from 0"),
        (np.array([[0.5, 2.0]]), "from 0.5 to 2"),
        (np.array([[0, 70000]]), r"from 0 to 70000; int64 is read from 0 \(black\) to 65535 \(white\)"),
        (np.array([[np.nan, 1]]), "not finite"),
        (np.array([[1j]]), "complex128"),
        (np.zeros((2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((0, 2), np.uint8), "no pixels"),
        (np.array([[object()]]), "Python objects"),
    ]:
        with pytest.raises(Unreadable, match=reason):
            read_image(npy(array))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 13])
def test_tiff_of_many_channels(dtype: type, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, channels)).astype(dtype)
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    grey = {"photometric": "minisblack"}
    for raw in (
        tiff(array, planarconfig="contig", **grey),
        tiff(array, planarconfig="contig", metadata=None, byteorder=">", **grey),
        tiff(array, planarconfig="contig", tile=(16, 16), **grey),
        tiff(planes, planarconfig="separate", **grey),
        tiff(planes, planarconfig="separate", compression="zlib", predictor=True, **grey),
        tiff(planes, **grey),  # tifffile spreads it over pages, and says so
    ):
        assert np.array_equal(read_image(raw, channels=channels), array)
    if channels == 3:
        assert np.array_equal(read_image(tiff(array, photometric="rgb")), array)


def test_compressed_tiffs_of_ordinary_kinds() -> None:
    for compression in ("tiff_lzw", "packbits", "tiff_deflate"):
        assert np.array_equal(read_image(encode(photo(), "TIFF", compression=compression)), photo())


# ---------------------------------------------------------------- shrinking


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 512))
def test_fit_size(height: int, width: int, side: int) -> None:
    new = fit_size(height, width, side)
    assert min(new) >= 1
    assert new[0] <= height
    assert new[1] <= width
    assert min(new) == min(side, height, width)
    assert max(new) == pytest.approx(max(height, width) * min(1, side / min(height, width)), abs=0.51)


@given(st.integers(1, 6000), st.integers(1, 6000), st.tuples(st.integers(1, 512), st.integers(1, 512)))
def test_fit_size_for_crops_that_are_not_square(height: int, width: int, crop: tuple[int, int]) -> None:
    """The largest crop of that shape has its resolution, if the original has it; the long side is at most twice the longest."""
    new = fit_size(height, width, crop)
    assert new[0] >= min(crop[0], height)
    assert new[1] >= min(crop[1], width)
    if max(new) > 2 * max(crop):  # only as long as the other side needs it
        scale = min(1, max(crop[0] / height, crop[1] / width))
        assert max(new) == pytest.approx(max(height, width) * scale, abs=0.51)


def test_shrinking_is_antialiased_and_exact_for_every_kind() -> None:
    large = photo(400, 600)
    expected = np.asarray(Image.fromarray(large).resize((150, 100), Image.Resampling.BICUBIC)).astype(int)
    for raw in (encode(large), npy(large), large, tiff(large)):
        assert abs(read_image(raw, shrink_to=100) - expected).max() <= 1
    wide = read_image(npy(large.astype(np.uint16) * 257), shrink_to=100)
    assert wide.dtype == np.uint16
    assert abs(wide / 257 - expected).max() <= 1
    assert read_image(encode(large), shrink_to=1000).shape == large.shape
    assert read_image(encode(np.zeros((1, 5000), np.uint8)), shrink_to=224).shape == (1, 896, 1)
    assert read_image(encode(np.zeros((5000, 1), np.uint8)), shrink_to=224).shape == (896, 1, 1)
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint16(65535)
    assert abs(read_image(checks.astype(np.uint16), shrink_to=8)[2:6, 2:6].astype(int) - 32768).max() < 600


def test_draft_decoding_stays_close_to_the_full_one() -> None:
    large = photo(800, 1200)
    raw = encode(large, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(raw)).resize((96, 64), Image.Resampling.BICUBIC)).astype(int)
    assert abs(read_image(raw, shrink_to=64) - full).max() <= 4


def test_the_limit_counts_what_is_decoded() -> None:
    large = photo(800, 1200)
    plain, progressive = encode(large, "JPEG"), encode(large, "JPEG", progressive=True)
    with pytest.raises(Unreadable, match="960,000 pixels, over the limit of 100,000"):
        read_image(plain, max_pixels=100_000)
    assert read_image(plain, max_pixels=100_000, shrink_to=64).shape == (64, 96, 3)
    with pytest.raises(Unreadable, match="over the limit"):  # all its coefficients stay in memory
        read_image(progressive, max_pixels=100_000, shrink_to=64)
    for raw in (encode(large), encode(large, "WEBP"), encode(large, "TIFF"), npy(large), tiff(large), large):
        with pytest.raises(Unreadable, match="960,000 pixels, over the limit of 100,000"):
            read_image(raw, max_pixels=100_000)
    with pytest.raises(Unreadable, match="over the limit"):
        read_image(Image.fromarray(large), max_pixels=100_000)


# ---------------------------------------------------------------- hostile and broken


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x01\x00\x00\x00\x00"
    row = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    (tmp_path / "108.png").write_bytes(png_header(12000, 9000))
    bits = (8999 | 8999 << 14).to_bytes(4, "little")
    (tmp_path / "81.webp").write_bytes(b"RIFF\x20\0\0\0WEBPVP8L\x12\0\0\0/" + bits + bytes(13))
    lying = io.BytesIO()
    np.lib.format.write_array_header_1_0(lying, {"descr": "|u1", "fortran_order": False, "shape": (7000, 7000)})
    (tmp_path / "lying.npy").write_bytes(lying.getvalue())
    # A strip that promises 100 bytes a channel and inflates to 200 MB.
    bomb = tiff(np.zeros((10, 10, 5), np.uint16), planarconfig="contig", photometric="minisblack", compression="zlib")
    packed = zlib.compress(bytes(200_000_000), 9)
    with tifffile.TiffFile(io.BytesIO(bomb)) as file:
        tags = file.pages[0].tags
        offsets, counts = tags[273], tags[279]
        kinds = {3: "H", 4: "I", 16: "Q"}
    raw = bytearray(bomb + packed)
    for tag, value in ((offsets, len(bomb)), (counts, len(packed))):
        size = {"H": 2, "I": 4, "Q": 8}[kinds[int(tag.dtype)]]
        if value >= 1 << 8 * size:  # widen the entry in place
            raw[tag.offset + 2 : tag.offset + 4] = (4).to_bytes(2, "little")
            size = 4
        raw[tag.valueoffset : tag.valueoffset + size] = value.to_bytes(size, "little")
    (tmp_path / "strip.tiff").write_bytes(raw)
    code = """
import sys
from pathlib import Path
from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
def peak():  # getrusage would tell the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, read_image(path).shape)
    except Unreadable as error:
        print(path.name, error)
print(peak() - before)
"""
    done = python(code, str(tmp_path))
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert lines[0] == "108.png 108,000,000 pixels, over the limit of 64,000,000"
    assert lines[1] == "81.webp 81,000,000 pixels, over the limit of 64,000,000"
    assert "truncated NPY" in lines[2]
    assert "decompresses to more than its size" in lines[3]
    assert int(lines[4]) < 40_000  # KiB


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_odd_images_as_pillow_reads_them_within_two_gigabytes() -> None:
    code = """
import json, resource, sys, tarfile
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
found = {}
with tarfile.open(sys.argv[1]) as tar:
    for member in tar:
        raw = tar.extractfile(member).read()
        try:
            found[member.name] = read_image(raw).shape
            read_image(raw, channels=3, shrink_to=32)
        except Unreadable as error:
            found[member.name] = str(error)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps([found, int(peak)]))
"""
    done = python(code, str(SHARED / "odd_images.tar"))
    assert done.stderr == ""
    found, peak = json.loads(done.stdout)
    assert peak < 400_000  # KiB
    expected = json.loads((SHARED / "expected_pillow.json").read_text())["files"]
    assert len(expected) > 50
    for name, facts in expected.items():
        if facts.get("load") != "ok" or name == "pillow/10ct_32bit_128.tiff":  # floats from -3.1 to 3.1
            assert isinstance(found[name], str), name
            assert "\n" not in found[name]
        elif facts["size"][0] * facts["size"][1] <= 64_000_000:
            turned = (facts["orientation"] or 1) > 4 and facts["format"] != "TIFF"
            assert found[name][:2] == (facts["size"] if turned else facts["size"][::-1]), name


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty file"),
        (b"\xff", "not an image"),
        (b"<html>404</html>", "not an image"),
        (encode(photo(300, 300), "JPEG")[:-1000], "truncated JPEG: image file is truncated"),
        (encode(photo())[:200], "truncated PNG"),
        (npy(photo())[:-1], "truncated NPY: 1 bytes are missing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_reasons(raw: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as caught:
        read_image(raw)
    assert reason in caught.value.reason


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="cannot be opened: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(Unreadable, match="not a file, but a folder"):
        read_image(tmp_path)


VALID = [
    *(encode(photo(16, 16), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "AVIF", "JPEG2000", "ICO")),
    *(encode(photo(16, 16), "TIFF", compression=each) for each in (None, "tiff_lzw", "jpeg", "tiff_deflate")),
    tiff(photo(16, 16, 5).astype(np.uint16), planarconfig="contig", photometric="minisblack", compression="zlib"),
    npy(photo(16, 16, 5)),
]


def outcome(raw: bytes, **options: int) -> str:
    try:
        return str(read_image(raw, **options).dtype)
    except Unreadable as error:
        return str(error)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_files_raise_unreadable_and_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.one_of(st.just(len(raw)), st.integers(1, len(raw))))
    assert "\n" not in outcome(bytes(raw[:end]), channels=3, shrink_to=8, max_pixels=10**6)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([raw[:size] for raw in VALID for size in (4, 12, 26)] + [b""]), st.binary(max_size=200))
def test_random_bytes_raise_unreadable_and_nothing_else(head: bytes, rest: bytes) -> None:
    assert "\n" not in outcome(head + rest, max_pixels=10**6)


def test_magic_needs_no_name() -> None:
    assert [image_format(raw[:32]) for raw in VALID[:5]] == ["JPEG", "PNG", "GIF", "WEBP", "BMP"]
    assert image_format(b"BMW and other cars, a list of them in text") is None


def test_threads_agree() -> None:
    raws = VALID * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda raw: read_image(raw, shrink_to=8), raws))
    for index, raw in enumerate(raws):
        assert np.array_equal(found[index], read_image(raw, shrink_to=8))


def test_pillows_settings_are_left_alone() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(Unreadable):
        read_image(png_header(12000, 9000))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert python("import sys, unveil.data.images; print('torch' in sys.modules)").stdout == "False\n"
