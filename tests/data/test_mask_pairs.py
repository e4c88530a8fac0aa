"""Which mask belongs to which image: one kind for all, names in capitals, lists of VOC, sizes before shrinking, test sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_mask_parts import picture, png, write
from unveil.data.dataset import ImageDataset
from unveil.data.mask_values import UNKNOWN, MaskConfig, MaskValues
from unveil.data.sources import open_parts
from unveil.data.targets import PixelTargets
from unveil.errors import UnveilError


def put(root: Path, files: dict[str, Any], size: int = 8) -> Path:
    """Files by their names: a number is a mask of this value with one row of 0, None an image."""
    for number, (name, value) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.full((size, size), value if isinstance(value, int) else 0, np.uint8)
        mask[0] = 0
        path.write_bytes(picture(number, size, size, "PNG") if value is None else value if isinstance(value, bytes) else png(mask))
    return root


def value_of(data: Path, part: str = "train", **options: Any) -> tuple[dict[str, int], Any]:
    """The class of the last pixel of each image."""
    source = open_parts(data, targets=PixelTargets, masks=MaskConfig(**options)).makers[part]()
    dataset = ImageDataset(source, side=None, memory=0)
    return {name.rpartition("/")[2]: int(dataset.read_sample(i).classes[-1, -1]) for i, name in enumerate(source.names)}, source


@pytest.mark.parametrize(("trained", "wanted"), [(1, 26), (2, 13)])
def test_all_masks_have_one_suffix(trained: int, wanted: int, tmp_path: Path) -> None:
    """The training ids of Cityscapes, if most images have them: else, half of the set would be numbered otherwise."""
    files: dict[str, Any] = {}
    for i in range(3):
        files |= {f"leftImg8bit/train/{i}_leftImg8bit.png": None, f"gtFine/train/{i}_gtFine_labelIds.png": 26}
        files |= {f"gtFine/train/{i}_gtFine_color.png": 1}
    files |= {f"gtFine/train/{i}_gtFine_labelTrainIds.png": 13 for i in range(trained)}
    found, source = value_of(put(tmp_path, files))
    assert set(found.values()) == {wanted}
    assert len(found) == (3 if wanted == 26 else 2)
    assert not any("mask without an image" in note for note in source.notes)
    assert source.skipped["gtFine/train/0_gtFine_color.png"] == "another mask of its image"


def test_names_that_differ_in_capitals(tmp_path: Path) -> None:
    both = {"images/A.png": None, "images/a.png": None, "masks/a.png": 2, "masks/A.png": 1}
    assert value_of(put(tmp_path / "both", both))[0] == {"A.png": 1, "a.png": 2}
    one = {"images/A.png": None, "images/a.png": None, "masks/a.png": 2}
    found, source = value_of(put(tmp_path / "one", one))
    assert found == {"a.png": 2}
    assert any("left out 1 image without a mask: images/A.png" in note for note in source.notes)
    assert value_of(put(tmp_path / "other", {"images/B.JPG.png": None, "masks/b.jpg.png": 2}))[0] == {"B.JPG.png": 2}


def test_two_folders_of_masks_are_noted(tmp_path: Path) -> None:
    data = put(tmp_path, {"images/1.png": None, "masks/1.png": 1, "annotations/1.png": 4})
    found, source = value_of(data)
    assert found == {"1.png": 1}
    assert "took the masks in masks/, and not the 1 mask of the same images in annotations/" in source.notes[0]


@pytest.mark.parametrize("folder", ["pngimages", "inputs", "img"])
@pytest.mark.parametrize("masks", ["Ground_Truth", "semantic", "SegmentationClassAug"])
def test_other_names_of_folders(folder: str, masks: str, tmp_path: Path) -> None:
    assert value_of(put(tmp_path, {f"{folder}/1.png": None, f"{masks}/1.png": 1}))[0] == {"1.png": 1}


def test_lists_of_voc(tmp_path: Path) -> None:
    files: dict[str, Any] = {}
    for i in range(4):
        files |= {f"VOC/JPEGImages/{i}.png": None, f"VOC/SegmentationClass/{i}.png": i + 1, f"VOC/SegmentationObject/{i}.png": 9}
    lists = {"train": b"0\n1\n", "val": b"2\n", "trainval": b"0\n1\n2\n"}
    files |= {f"VOC/ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()}
    files["VOC/ImageSets/Main/train.txt"] = b"3\n"
    data = put(tmp_path, files)
    found, source = value_of(data)
    assert found == {"0.png": 1, "1.png": 2}
    assert value_of(data, "val")[0] == {"2.png": 3}
    assert any("left out 1 image that no list in ImageSets/Segmentation has: VOC/JPEGImages/3.png" in note for note in source.notes)
    assert not any("without a mask" in note for note in source.notes)
    assert source.skipped["VOC/SegmentationObject/0.png"] == "another kind of mask"
    for text, message in ((b"2\n", "2 is in several lists"), (b"x\n", "have none of its images")):
        for name in ("train", "val"):
            (data / f"VOC/ImageSets/Segmentation/{name}.txt").write_bytes(text)
        with pytest.raises(UnveilError, match=message):
            open_parts(data, targets=PixelTargets)


@pytest.mark.parametrize("side", [None, 5])
def test_sizes_are_compared_before_images_are_shrunk(side: int | None, tmp_path: Path) -> None:
    data = put(tmp_path, {"images/1.png": None}, size=20)
    put(data, {"masks/1.png": 1}, size=10)
    with pytest.raises(UnveilError, match="mask of 10 x 10 pixels, which is not the size of its image, 20 x 20"):
        ImageDataset(open_parts(data, targets=PixelTargets).source(), side=side)
    put(data, {"masks/1.png": 1}, size=20)
    assert ImageDataset(open_parts(data, targets=PixelTargets).source(), side=side).read_sample(0).classes[-1, -1] == 1


def test_a_test_set_is_read_with_the_values_of_the_train_set(tmp_path: Path) -> None:
    some = np.zeros((9, 7), np.uint8)
    some[0], some[1] = 1, 255
    train = open_parts(write(tmp_path / "train", [png(some)]), targets=PixelTargets).source()
    test = write(tmp_path / "test", [png(np.where(some == 1, 0, some))] * 2)  # only 0 and 255, which alone are two classes
    found = open_parts(test, targets=PixelTargets, like=train).source()
    assert found.classes == train.classes == ["0", "1"]
    assert set(np.unique(ImageDataset(found, side=None).read_sample(0).classes)) == {0, 255}
    for i in range(2):
        (test / f"annotations/train/{i}.png").write_bytes(png(np.full((9, 7), 7, np.uint8)))
    with pytest.raises(UnveilError, match=r"train/0\.png has the value 7, which is none of the 2 classes of .*train"):
        open_parts(test, targets=PixelTargets, like=train)
    colours = write(tmp_path / "colours", [png(np.eye(9, 7, dtype=np.uint8)[..., None] * np.array([1, 2, 3], np.uint8))])
    with pytest.raises(UnveilError, match=r"colours, but those of .*train are values"):
        open_parts(colours, targets=PixelTargets, like=train)


def test_a_test_set_of_grey_colours(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 255, 255], [9, 0, 0]], np.uint8)
    train = open_parts(write(tmp_path / "a", [png(colours[np.arange(63).reshape(9, 7) % 3])]), targets=PixelTargets).source()
    test = write(tmp_path / "b", [png(colours[np.arange(63).reshape(9, 7) % 2])])
    found = open_parts(test, targets=PixelTargets, like=train).source()
    assert found.classes == train.classes
    assert set(np.unique(ImageDataset(found, side=None).read_sample(0).classes)) == {
        train.classes.index(x) for x in ("#000000", "#ffffff")
    }


def test_unknown_is_no_class() -> None:
    values = MaskValues(tuple(range(255)), tuple((i, 0, 7) for i in range(255)), True, ())
    assert values.classes_of(np.array([[[254, 0, 7]]], np.uint8)).tolist() == [[254]]
    assert UNKNOWN < 0
