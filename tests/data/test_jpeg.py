"""JPEG files decoded by simplejpeg, byte for byte as by Pillow."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.test_crops import jpeg, photograph
from unveil.data import jpeg as module
from unveil.data.images import read_image
from unveil.data.pixels import CropSide, Unreadable, fit_size, shrink_class_map

pytest.importorskip("simplejpeg")


def by_both(raw: bytes, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[np.ndarray | str, np.ndarray | str]:
    """What both decoders give, or the reason why the image cannot be used."""
    found = []
    for decoder in (module.simplejpeg, None):
        with monkeypatch.context() as patch:
            patch.setattr(module, "simplejpeg", decoder)
            try:
                found.append(read_image(raw, **options))
            except Unreadable as error:
                found.append(str(error))
    return found[0], found[1]


def same(a: np.ndarray | str, b: np.ndarray | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and a == b
    return a.dtype == b.dtype and a.flags.c_contiguous and a.flags.writeable and np.array_equal(a, b)


@pytest.mark.parametrize("shrink_to", [None, 40, (30, 70), CropSide(40, 40), CropSide(100, 100), 1000])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 20}])
def test_colour_at_any_scale(shrink_to: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((101, 163), (320, 200), (97, 700)):
        raw = jpeg(photograph(*shape, 1), **options)
        for channels in (None, 3, 1, 4):
            assert same(*by_both(raw, monkeypatch, shrink_to=shrink_to, channels=channels))


@pytest.mark.parametrize("orientation", range(10))
def test_orientations(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    for image in (photograph(60, 90, 0), photograph(60, 90, 0)[:, :, 0]):
        for shrink_to in (None, 24):
            a, b = by_both(jpeg(image, exif=exif), monkeypatch, shrink_to=shrink_to)
            assert same(a, b)
            if shrink_to is None:
                assert not isinstance(a, str)
                assert a.shape[:2] == ((90, 60) if orientation in (5, 6, 7, 8) else (60, 90))


def test_grey_and_other_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = jpeg(photograph(60, 90, 0)[:, :, 0])
    stream = io.BytesIO()
    Image.fromarray(photograph(60, 90, 0)).convert("CMYK").save(stream, "JPEG")
    kept = io.BytesIO()
    Image.fromarray(photograph(60, 90, 0)).save(kept, "JPEG", keep_rgb=True)
    for raw in (grey, stream.getvalue(), kept.getvalue()):
        for channels in (None, 1, 3):
            for shrink_to in (None, 30):
                assert same(*by_both(raw, monkeypatch, channels=channels, shrink_to=shrink_to))


def test_damaged_files_are_reported_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, chance = jpeg(photograph(80, 90, 0)), np.random.default_rng(0)
    for end in range(0, len(raw), 97):
        assert same(*by_both(raw[:end], monkeypatch, channels=3))
    for _ in range(200):
        damaged = bytearray(raw)
        for place in chance.integers(2, len(raw), 3).tolist():
            damaged[place] = int(chance.integers(0, 256))
        assert same(*by_both(bytes(damaged), monkeypatch, channels=3))


def test_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else this file would compare Pillow with itself."""
    calls: list[int] = []
    real = module.simplejpeg.decode_jpeg
    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", lambda *given, **options: calls.append(1) or real(*given, **options))
    read_image(jpeg(photograph(60, 90, 0)), channels=3, shrink_to=30)
    assert calls == [1]


SCALED: list[Any] = [CropSide(83, 83), CropSide(124, 60), 37, (30, 70)]
"""How far images are shrunk, so that the decoder helps."""


@pytest.mark.parametrize("shrink_to", SCALED, ids=str)
def test_a_mask_has_the_size_of_its_image_at_any_scale(shrink_to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    for height, width in chance.integers(90, 900, (60, 2)).tolist():
        mask = shrink_class_map(np.zeros((height, width), np.uint8), shrink_to)
        for image in by_both(jpeg(np.full((height, width, 3), 90, np.uint8)), monkeypatch, shrink_to=shrink_to):
            assert not isinstance(image, str)
            assert image.shape[:2] == mask.shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink_to", SCALED, ids=str)
def test_an_image_decoded_at_a_scale_is_neither_stretched_nor_shifted(
    shrink_to: Any, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes leave one pixel over at each scale, which the decoder gives a row or column of its own."""
    exif = Image.Exif()
    exif[274] = orientation
    for height, width in ((665, 801), (1001, 505)):
        scene = np.asarray(Image.fromarray(photograph(30, 40, 5)).resize((width, height), Image.Resampling.BICUBIC))
        raw = jpeg(scene, exif=exif, quality=95)
        whole = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
        size = fit_size(whole.height, whole.width, shrink_to)
        expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        for found in by_both(raw, monkeypatch, shrink_to=shrink_to):
            assert not isinstance(found, str)
            difference = np.abs(found.astype(int) - expected)
            edges = [difference[:3].mean(), difference[-3:].mean(), difference[:, :3].mean(), difference[:, -3:].mean()]
            assert difference.mean() < 0.6
            assert max(edges) < 1.2
            assert (difference <= 2).mean() > 0.97
