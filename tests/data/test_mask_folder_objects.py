"""A PNG for each object: its box, area and mask, splits, and layouts that are something else."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.object_files import objects_of, png, write_image
from unveil.data.rle import decoded
from unveil.data.sources import open_parts
from unveil.data.targets import BoxTargets, PixelTargets
from unveil.errors import UnveilError


def write(root: Path, image: str, masks: dict[str, np.ndarray]) -> None:
    write_image(root / image / "images" / f"{Path(image).name}.png")
    (root / image / "masks").mkdir(exist_ok=True)
    for name, mask in masks.items():
        (root / image / "masks" / f"{name}.png").write_bytes(png(mask))


def blob(top: int, left: int, value: int = 255, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top : top + 4, left : left + 6] = value
    return mask


def test_each_mask_is_an_object(tmp_path: Path) -> None:
    colour = np.repeat(blob(9, 20)[:, :, None], 3, axis=2)
    colour[0, 0] = (0, 0, 9)
    write(tmp_path, "stage1_train/a", {"x": blob(1, 2), "y": blob(9, 20, value=1), "empty": blob(0, 0, value=0)})
    write(tmp_path, "stage1_train/b", {"z": colour})
    write_image(tmp_path / "stage1_test/c/images/c.png")
    found = objects_of(tmp_path)
    assert found.counts.tolist() == [2, 1]
    assert found.boxes.tolist() == [[2, 1, 8, 5], [20, 9, 26, 13], [0, 0, 26, 13]]
    assert found.areas.tolist() == [24, 24, 25]
    assert found.category_ids == {"object": 1}
    assert found.segments is not None
    assert np.array_equal(decoded(found.segments[1], 20, 30), blob(9, 20) > 0)
    source = open_parts(tmp_path, targets=BoxTargets).source()
    assert source.skipped["stage1_test/c/images/c.png"] == "it has no folder masks/"
    with pytest.raises(UnveilError, match="a PNG for each object"):
        open_parts(tmp_path, targets=PixelTargets)


def test_masks_that_are_something_else(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "classes", name, {name: blob(1, 2)})  # one mask of classes for each image
    with pytest.raises(UnveilError, match="no boxes in"):
        objects_of(tmp_path / "classes")
    assert open_parts(tmp_path / "classes", targets=PixelTargets).names
    write(tmp_path / "sizes", "a", {"x": blob(1, 2), "y": blob(1, 2, shape=(20, 31))})
    with pytest.raises(UnveilError, match=r"a/masks/y\.png has another size than the other masks"):
        objects_of(tmp_path / "sizes")
    write(tmp_path / "empty", "a", {"x": blob(1, 2, value=0)})
    with pytest.raises(UnveilError, match="none of the masks of 1 image has a pixel that is not 0"):
        objects_of(tmp_path / "empty")
    (tmp_path / "empty/a/masks/x.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(UnveilError, match=r"a/masks/x\.png: "):
        objects_of(tmp_path / "empty")
