"""Masks of objects as class maps: by hand, against pycocotools, from every format, in splits, and in Python."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.data.object_files import CATEGORIES, annotation, coco, picture, write_coco_data, write_image
from unveil.data.dataset import ImageDataset
from unveil.data.mask_values import MaskConfig
from unveil.data.sources import open_parts
from unveil.data.targets import PixelTargets
from unveil.errors import UnveilError


def square(left: float, top: float, side: float) -> list[list[float]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def drawn_object(id_: int, left: int, top: int, side: int, **other: Any) -> dict[str, Any]:
    outline = {"segmentation": [[*square(left, top, side)[0], left, top + side - 1]]}  # five points: not just its box
    return annotation(id_, box=(left, top, side, side), **(outline | other))


def opened(
    data: Any, part: str = "train", like: Any = None, side: int | None = None, **options: Any
) -> tuple[list[np.ndarray], Any]:
    masks = MaskConfig(instances=True, **options)
    source = open_parts(data, targets=PixelTargets, masks=masks, like=like).makers[part]()
    dataset = ImageDataset(source, side=side, memory=0)
    return [dataset.read_sample(i).classes for i in range(len(source))], source


def test_small_objects_lie_on_large_ones_and_crowds_under_all(tmp_path: Path) -> None:
    crowd = {"size": [20, 30], "counts": [0, 20 * 4, 20 * 26]}  # four columns
    content = coco(
        [
            drawn_object(1, 8, 8, 4, category=90),
            drawn_object(2, 2, 4, 12, category=3),  # larger, and later in the file
            annotation(3, box=(0, 0, 4, 20), category=3, iscrowd=1, segmentation=crowd),
            annotation(4, box=(20, 1, 5, 6), category=3),  # only a box
        ]
    )
    (first, second), source = opened(write_coco_data(tmp_path, content))
    wanted = np.zeros((20, 30), np.uint8)
    wanted[:, :4] = 255
    wanted[1:7, 20:25] = 255
    wanted[4:16, 2:14] = 1
    wanted[8:12, 8:12] = 2
    assert np.array_equal(first, wanted)
    assert not second.any()  # an image without objects is background
    assert source.classes == ["background", "cat", "dog"]
    assert source.objects is None
    assert source.mask_values.stored == (0, 1, 2)
    assert any("1 object with only a box and 1 crowd have no class" in note for note in source.notes)


def test_masks_equal_those_of_pycocotools(tmp_path: Path) -> None:
    chance, entries = np.random.default_rng(0), []
    for i in range(40):
        points = chance.uniform(0, 1, (7, 2)) * (30, 20)
        low, high = points.min(axis=0), points.max(axis=0)
        polygons = [points.reshape(-1).tolist()]
        category = int(chance.choice([3, 90]))
        entries.append(annotation(i + 1, 1 + i % 2, (*low, *(high - low)), category, segmentation=polygons, iscrowd=0))
    data = write_coco_data(tmp_path, coco(entries))
    found, _ = opened(data)
    judge = COCO(str(data / "annotations.json"))
    for i, each in enumerate(found):
        masks = [(judge.annToMask(entry), entry) for entry in judge.loadAnns(judge.getAnnIds(imgIds=[i + 1]))]
        wanted = np.zeros((20, 30), np.uint8)
        for mask, entry in sorted(masks, key=lambda pair: -int(pair[0].sum())):
            wanted[mask > 0] = {3: 1, 90: 2}[entry["category_id"]]
        assert np.array_equal(each, wanted)


def test_options_and_other_classes(tmp_path: Path) -> None:
    content = coco([drawn_object(1, 2, 2, 6, category=90), drawn_object(2, 12, 2, 6, category=3)])
    data = write_coco_data(tmp_path / "a", content)
    found, source = opened(data, ignore=("cat",))
    assert source.classes == ["background", "dog"]
    assert source.mask_values.stored == (0, 2)
    assert [found[0][4, x] for x in (0, 4, 14)] == [0, 1, 255]
    found, source = opened(data, reduce_zero=True)
    assert source.classes == ["cat", "dog"]
    assert [found[0][4, x] for x in (0, 4, 14)] == [255, 1, 0]
    with pytest.raises(UnveilError, match=r"--ignore bird: .* has no such class"):
        opened(data, ignore=("bird",))
    called = coco(content["annotations"], categories=[{"id": 3, "name": "background"}, {"id": 90, "name": "dog"}])
    found, source = opened(write_coco_data(tmp_path / "b", called))
    assert source.classes == ["background", "dog"]
    assert [found[0][4, x] for x in (0, 4, 14)] == [0, 1, 0]
    many = coco(content["annotations"], categories=CATEGORIES + [{"id": 100 + i, "name": str(i)} for i in range(300)])
    with pytest.raises(UnveilError, match="302 classes of objects: expected at most 254"):
        opened(write_coco_data(tmp_path / "c", many))


def test_splits_and_test_sets_have_the_classes_of_the_train_set(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    swapped = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for root, split, categories in ((data, "train", CATEGORIES), (data, "val", swapped), (other, "train", swapped)):
        write_image(root / split / "1.png")
        entry = drawn_object(1, 2, 2, 6, category=categories[0]["id"])
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(coco([entry], images=1, categories=categories)))
    (train,), source = opened(data)
    (val,), val_source = opened(data, "val")
    (test,), test_source = opened(other, like=source)
    assert source.classes == val_source.classes == test_source.classes == ["background", "cat", "dog"]
    assert [int(each[4, 4]) for each in (train, val, test)] == [1, 2, 2]
    swapped[0]["name"] = "bird"
    (other / "annotations/instances_train.json").write_text(
        json.dumps(coco([drawn_object(1, 2, 2, 6, category=1)], images=1, categories=swapped))
    )
    with pytest.raises(UnveilError, match=r"has objects of the class 'bird', which .*data lacks"):
        opened(other, like=source)


@pytest.mark.parametrize("side", [None, 10])
@pytest.mark.parametrize("turned", [False, True])
def test_yolo_polygons_follow_their_image(side: int | None, turned: bool, tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png", 20, 40, orientation=6 if turned else 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.txt").write_text("1 0 0 0.5 0 0.5 0.5 0.25 0.5 0 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    (found,), _ = opened(tmp_path, side=side)
    height, width = (40, 20) if turned else (20, 40)  # YOLO's shares are of the upright image
    wanted = np.zeros((height, width), np.uint8)
    wanted[: height // 2, : width // 2] = 2
    assert np.array_equal(found, wanted if side is None else wanted[::2, ::2])


def test_a_png_for_each_object(tmp_path: Path) -> None:
    for i in range(2):
        write_image(tmp_path / f"set/{i}/images/{i}.png", seed=i)
        for name, (top, left, side) in {"a": (0, 0, 9), "b": (5, 5, 3), "c": (15, 25, 5)}.items():
            mask = np.zeros((20, 30), np.uint8)
            mask[top : top + side, left : left + side] = 255
            (tmp_path / f"set/{i}/masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / f"set/{i}/masks/{name}.png")
    (first, _), source = opened(tmp_path)
    assert source.classes == ["background", "object"]
    wanted = np.zeros((20, 30), np.uint8)
    wanted[:9, :9] = wanted[15:, 25:] = 1
    assert np.array_equal(first, wanted)


def test_python_and_data_without_masks(tmp_path: Path) -> None:
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 3:9, 4:8] = True
    target = {"boxes": np.array([[4, 3, 8, 9]]), "labels": ["cat"], "masks": mask}
    (found,), source = opened(([picture()], [target]))
    assert source.classes == ["background", "cat"]
    assert np.array_equal(found, mask[0])
    boxes = write_coco_data(tmp_path, coco([annotation(1)]))
    with pytest.raises(UnveilError, match="have boxes and no masks: --instances draws masks"):
        opened(boxes)
    with pytest.raises(UnveilError, match=r"no masks in .*With --instances, the masks of objects \(COCO json"):
        open_parts(boxes, targets=PixelTargets)
