"""Lists of masks in Python: paths, Pillow images and arrays are read as files are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.object_files import picture
from unveil.data.dataset import ImageDataset
from unveil.data.mask_values import MaskConfig
from unveil.data.sources import open_parts
from unveil.data.targets import PixelTargets
from unveil.errors import UnveilError

MASKS = [np.array([[0, 1, 255]] * 2, np.uint8), np.array([[2, 1]] * 3, np.uint8)]
IMAGES = [picture(2, 3), picture(3, 2, seed=1)]


def given(kind: str, folder: Path) -> list[Any]:
    if kind == "arrays":
        return [each.astype(np.int64) for each in MASKS]
    if kind == "tensors":
        return [torch.from_numpy(each) for each in MASKS]
    if kind == "array":
        return [Image.fromarray(MASKS[0]), MASKS[1]]
    found = []
    for i, each in enumerate(MASKS):
        image = Image.fromarray(each)
        image.putpalette([7 * i % 256 for i in range(768)])
        image.save(folder / f"{i}.png")
        found.append(str(folder / f"{i}.png") if kind == "paths" else image)
    return found


def maps_of(data: Any, like: Any = None, **options: Any) -> tuple[list[np.ndarray], Any]:
    source = open_parts(data, targets=PixelTargets, masks=MaskConfig(**options), like=like).source()
    dataset = ImageDataset(source, side=None)
    batch = dataset.readable(torch.arange(len(source)))
    return [each.numpy() for each in batch.targets.maps], source


@pytest.mark.parametrize("kind", ["arrays", "tensors", "array", "paths", "Pillow"])
def test_a_mask_for_each_image(kind: str, tmp_path: Path) -> None:
    found, source = maps_of((IMAGES, given(kind, tmp_path)))
    assert source.classes == ["0", "1", "2"]
    assert np.array_equal(found[0][:2, :3], MASKS[0])
    assert np.array_equal(found[1][:3, :2], MASKS[1])
    found, source = maps_of((IMAGES, given(kind, tmp_path)), reduce_zero=True)
    assert source.classes == ["1", "2"]
    assert np.array_equal(found[0][:2, :3], [[255, 0, 255]] * 2)
    again = maps_of((IMAGES, given(kind, tmp_path)), reduce_zero=True)[1]
    assert again.fingerprint == source.fingerprint


def test_colours_options_and_test_sets() -> None:
    colours = np.array([[9, 9, 9], [0, 8, 0], [0, 0, 7], *[[0, 0, 0]] * 253], np.uint8)
    masks = [colours[np.where(each == 255, 0, each)] for each in MASKS]
    _, train = maps_of((IMAGES, masks))
    assert train.mask_values.in_colour
    assert len(train.classes) == 3
    (found,), test = maps_of((IMAGES[:1], [Image.fromarray(masks[0])]), like=train)
    assert test.classes == train.classes
    assert found[0, 0] == train.classes.index("#090909")
    arrays = (np.stack([IMAGES[0]] * 2), np.stack([MASKS[0]] * 2))
    assert maps_of(arrays)[1].classes == ["0", "1"]
    with pytest.raises(UnveilError, match="only one class, 1"):
        maps_of(arrays, reduce_zero=True)  # the option is not ignored for arrays


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (MASKS[:1], "there is 1 mask for 2 images"),
        ([MASKS[0], 3], "the mask of image-000001 is a int: expected a path, a Pillow image"),
        ([MASKS[0], MASKS[1] / 2], r"is a ndarray of float64 \(3, 2\): expected"),
        ([MASKS[0], np.full((3, 2), 300)], "the mask of image-000001: mask with values from 300 to 300"),
        ([MASKS[0], Image.new("CMYK", (2, 3))], "of the mode CMYK: expected one of"),
    ],
)
def test_other_masks_are_refused(masks: Any, message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        maps_of((IMAGES, masks))


def test_a_mask_of_another_size_is_named() -> None:
    with pytest.raises(UnveilError, match="mask of 2 x 3 pixels, which is not the size of its image, 3 x 2"):
        maps_of((IMAGES[:1], MASKS[1:]))
