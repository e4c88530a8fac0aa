"""COCO panoptic: equal names in several folders, and what is wrong in a json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_mask_parts import panoptic, picture, png
from unveil.data.dataset import ImageDataset
from unveil.data.sources import open_parts
from unveil.data.targets import PixelTargets
from unveil.errors import UnveilError

CATEGORIES = [{"id": 1, "name": "sky"}, {"id": 2, "name": "road"}]


def write(root: Path, image: str, mask: str, category: int) -> None:
    ids = np.zeros((2, 3, 3), np.uint8)
    ids[..., 0] = 7
    for name, raw in ((image, picture(category, 2, 3)), (mask, png(ids))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)


def write_json(root: Path, name: str, categories: dict[str, int]) -> None:
    entries = [{"file_name": file, "segments_info": [{"id": 7, "category_id": each}]} for file, each in categories.items()]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps({"categories": CATEGORIES, "annotations": entries}))


def classes_of(root: Path, part: str) -> list[int]:
    source = open_parts(root, targets=PixelTargets).makers[part]()
    dataset = ImageDataset(source, side=None, memory=0)
    return [int(dataset.read_sample(i).classes[0, 0]) for i in range(len(source))]


@pytest.mark.parametrize(
    ("image", "mask", "file"),
    [
        ("images/{}/1.jpg", "panoptic/{}/1.png", "panoptic_{}.json"),
        ("{}2017/1.jpg", "annotations/panoptic_{}2017/1.png", "annotations/panoptic_{}2017.json"),
        ("{}/images/1.jpg", "{}/panoptic/1.png", "{}/panoptic.json"),
    ],
)
def test_equal_names_in_two_splits(image: str, mask: str, file: str, tmp_path: Path) -> None:
    for split, category in (("train", 1), ("val", 2)):
        write(tmp_path, image.format(split), mask.format(split), category)
        write_json(tmp_path, file.format(split), {"1.png": category})
    assert (classes_of(tmp_path, "train"), classes_of(tmp_path, "val")) == ([0], [1])


def test_equal_names_in_two_folders(tmp_path: Path) -> None:
    for city, category in (("bonn", 1), ("ulm", 2)):
        write(tmp_path, f"images/{city}/1.jpg", f"panoptic/{city}/1.png", category)
    write_json(tmp_path, "panoptic.json", {"bonn/1.png": 1, "ulm/1.png": 2})
    assert classes_of(tmp_path, "train") == [0, 1]
    write_json(tmp_path, "panoptic.json", {"1.png": 1})
    with pytest.raises(UnveilError, match=r"the mask 1\.png may be panoptic/bonn/1\.png or panoptic/ulm/1\.png"):
        classes_of(tmp_path, "train")


def test_a_mask_of_another_split_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, "images/train/1.jpg", "panoptic/train/1.png", 1)
    (tmp_path / "images/val").mkdir()
    (tmp_path / "images/val/1.jpg").write_bytes(picture(2, 2, 3))
    for split, category in (("train", 1), ("val", 2)):
        write_json(tmp_path, f"panoptic_{split}.json", {"1.png": category})
    assert open_parts(tmp_path, targets=PixelTargets).names == ["train"]
    assert classes_of(tmp_path, "train") == [0]
    write_json(tmp_path, "panoptic_more.json", {"1.png": 2})
    with pytest.raises(
        UnveilError, match=r"panoptic_more\.json and panoptic_train\.json differ in the segments of panoptic/train/1"
    ):
        classes_of(tmp_path, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"file_name": "5.png"}]}, "lacks the field 'segments_info'"),
        (
            {"annotations": [{"file_name": "5.png", "segments_info": [{"id": "x", "category_id": 1}]}]},
            "'id' of an entry is 'x', expected",
        ),
        ({"annotations": [{"file_name": "5.png", "segments_info": 3}]}, "no list 'segments_info'"),
        ({"categories": [{"id": None, "name": "sky"}]}, "'id' of an entry is 'None', expected a whole number"),
        ({"categories": [3]}, "an entry lacks the field 'id': 3"),
    ],
)
def test_broken_entries(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=rf"panoptic_train\.json.*{message}"):
        open_parts(panoptic(tmp_path, **changes), targets=PixelTargets)
    twice = '{"categories": [], "annotations": [], "categories": []}'
    (tmp_path / "panoptic_train.json").write_text(twice)
    with pytest.raises(UnveilError, match="the key 'categories' stands twice"):
        open_parts(tmp_path, targets=PixelTargets)
