"""All images of a set are read by the same scale, whatever their own maximum: in arrays, files of every kind, and packs."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tests.data.tiff_files import write_tiff
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.sources import array_source, open_source
from unveil.errors import UnveilError


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def pgm(values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    return b"P5 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes()


WRITERS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "npy": ("npy", npy),
    "npy, big-endian": ("npy", lambda values: npy(values.astype(values.dtype.newbyteorder(">")))),
    "tiff": ("tif", lambda values: write_tiff(values, 1)),
    "tiff, lzw": ("tif", lambda values: write_tiff(values, 1, compression="lzw")),
    "png": ("png", png),
    "pgm": ("pgm", pgm),
}
WIDE = [("npy", np.int32), ("npy", np.int64), ("npy, big-endian", np.int32), ("tiff", np.int16), ("tiff", np.int32)]
WIDE += [("tiff", np.uint32), ("tiff, lzw", np.uint16), ("png", np.uint16), ("pgm", np.uint16), ("npy, big-endian", np.uint16)]


def ramp(top: int) -> np.ndarray:
    """Values from 0 to `top` (8, 8, 1)."""
    return np.rint(np.linspace(0, top, 64)).astype(np.int64).reshape(8, 8, 1)


def pixels_of(dataset: ImageDataset) -> np.ndarray:
    batch = dataset.readable(torch.arange(len(dataset)))
    assert batch is not None
    return batch.images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("writer", "dtype"), WIDE)
@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_dark_and_light_files_share_a_scale(writer: str, dtype: type, memory: int, tmp_path: Path) -> None:
    suffix, write = WRITERS[writer]
    tops = (200, 4000, 30000)
    for number, top in enumerate(tops):
        (tmp_path / f"{number}.{suffix}").write_bytes(write(ramp(top).astype(dtype)))
    dataset = ImageDataset(open_source(tmp_path), side=8, memory=memory)
    assert dataset.dtype == torch.uint16
    assert np.array_equal(pixels_of(dataset), [ramp(top) for top in tops])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_read_from_zero_to_one(dtype: type, tmp_path: Path) -> None:
    tops = (1, 200, 65535)
    for number, top in enumerate(tops):
        values = (ramp(top) / 65535).astype(dtype)
        (tmp_path / f"{number}.npy").write_bytes(npy(values))
        (tmp_path / f"{number}.tif").write_bytes(write_tiff(values, 1))
    (tmp_path / "3.npy").write_bytes(npy(ramp(255).astype(dtype)))  # contradicts the others
    dataset = ImageDataset(open_source(tmp_path), side=8)
    reason = "floats are read from 0 (black) to 1 (white): divide by the value of white"
    assert dataset.skipped == {"3.npy": f"holds {np.dtype(dtype)} values from 0 to 255; {reason}"}
    assert np.array_equal(pixels_of(dataset), [ramp(top) for top in tops for _ in range(2)])


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.float32, np.float64])
def test_the_range_of_an_array_decides_for_all_its_images(dtype: type) -> None:
    small = np.stack([ramp(1), ramp(40), ramp(255)]).astype(dtype)
    assert np.array_equal(pixels_of(ImageDataset(array_source(small), side=8)), small)
    assert ImageDataset(array_source(small), side=8).dtype == torch.uint8
    large = np.stack([ramp(1), ramp(200), ramp(4000)]).astype(dtype)
    dataset = ImageDataset(array_source(large), side=8)
    assert dataset.dtype == torch.uint16
    assert np.array_equal(pixels_of(dataset), large)
    for wrong in (large - 1, large * 8.5 if dtype(0.5) else large.astype(np.int64) * 100):
        with pytest.raises(UnveilError, match="expected floats from 0 to 1, or whole numbers from 0 to 65535"):
            array_source(wrong)


def test_depths_are_mixed_by_their_types(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(ramp(255).astype(np.uint8)))
    (tmp_path / "1.png").write_bytes(png(ramp(300).astype(np.uint16)))
    (tmp_path / "2.tif").write_bytes(write_tiff(ramp(65535).astype(np.int32), 1))
    (tmp_path / "3.npy").write_bytes(npy((ramp(65535) / 65535).astype(np.float32)))
    wanted = [ramp(255) * 257, ramp(300), ramp(65535), ramp(65535)]
    assert abs(pixels_of(ImageDataset(open_source(tmp_path), side=8)).astype(int) - wanted).max() <= 0
    shallow = ImageDataset(open_source(tmp_path), side=8, dtype=torch.uint8)
    assert np.array_equal(pixels_of(shallow), [x // 256 if i else ramp(255) for i, x in enumerate(wanted)])


def test_a_pack_has_the_same_scale(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, top in enumerate((200, 4000, 30000)):
        (tmp_path / "data" / f"{number}.npy").write_bytes(npy(ramp(top).astype(np.int32)))
    unveil.pack(tmp_path / "data", tmp_path / "pack", store="raw")
    found = pixels_of(ImageDataset(open_source(tmp_path / "pack"), side=8))
    assert np.array_equal(found, pixels_of(ImageDataset(open_source(tmp_path / "data"), side=8)))


def test_files_that_may_be_eight_bits_in_long_integers_are_refused(tmp_path: Path) -> None:
    """By their type they would be nearly black; as 8 bits, the scale would follow from their maximum."""
    for number in range(3):
        (tmp_path / f"{number}.npy").write_bytes(npy(ramp(255).astype(np.int64)))
    with pytest.raises(UnveilError, match=r"hold int64 values up to 255.*save them as uint8 if 255 is white, or as uint16"):
        ImageDataset(open_source(tmp_path), side=8)
    (tmp_path / "3.npy").write_bytes(npy(ramp(4000).astype(np.int64)))
    assert ImageDataset(open_source(tmp_path), side=8).dtype == torch.uint16
    for number in range(4):  # uint16 leaves no doubt
        (tmp_path / f"{number}.npy").write_bytes(npy(ramp(255).astype(np.uint16)))
    assert ImageDataset(open_source(tmp_path), side=8).dtype == torch.uint16


@pytest.mark.parametrize("shape", [(20, 3, 32, 32), (20, 1, 32, 40), (5, 4, 8, 9), (6, 13, 64, 64)])
def test_channels_first_arrays_are_refused_by_their_axes(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.uint8)
    with pytest.raises(UnveilError, match=r"seems to have the axes \(N, C, H, W\).*expected \(N, H, W\) or \(N, H, W, C\)"):
        array_source(array)
    assert len(array_source(array.transpose(0, 2, 3, 1))) == len(array)
    with pytest.raises(UnveilError, match=r"seems to be one image \(H, W, C\)"):
        array_source(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("shape", [(20, 32, 32, 3), (4, 9, 9, 200), (3, 16, 24, 103), (2, 3, 4, 5), (7, 32, 32), (2, 2, 40, 3)])
def test_other_arrays_are_read_as_they_are(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = array_source(array)
    assert np.array_equal(np.stack([source.read(i) for i in range(len(source))]), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_integers_0_and_1_are_refused(dtype: type, tmp_path: Path) -> None:
    """As a mask or a drawing; as images they would be nearly black."""
    drawing = (ramp(63)[..., 0] > 30).astype(dtype)
    with pytest.raises(UnveilError, match="hold 0 and 1 only, of"):
        ImageDataset(array_source(np.stack([drawing] * 4)), side=8)
    (tmp_path / "0.npy").write_bytes(npy(drawing))
    with pytest.raises(UnveilError, match=r"hold 0 and 1 only, of \d+ for white, so they are nearly black: save them as booleans"):
        ImageDataset(open_source(tmp_path), side=8)
    dataset = ImageDataset(array_source(np.stack([drawing] * 4).astype(bool)), side=8)
    assert set(pixels_of(dataset).ravel().tolist()) == {0, 255}
    Image.fromarray(drawing.astype(np.uint8) * 255).convert("1").save(tmp_path / "0.png")
    (tmp_path / "0.npy").unlink()
    assert set(pixels_of(ImageDataset(open_source(tmp_path), side=8)).ravel().tolist()) == {0, 255}


def test_masked_values_are_refused() -> None:
    images = np.ma.masked_greater(np.zeros((4, 8, 8), dtype=np.uint8), 9)
    assert pixels_of(ImageDataset(open_source(images), side=8)).shape == (4, 8, 8, 1)  # none is masked
    images[0, 0, 0] = np.ma.masked
    with pytest.raises(UnveilError, match=r"an array with masked values: choose what they should be, such as array\.filled"):
        open_source(images)
