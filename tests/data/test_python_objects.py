"""Images with boxes that are given in Python: pairs, and Datasets as those of torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

from tests.data.object_files import annotation, coco, picture, write_coco_data, write_image
from unveil.data.dataset import ImageDataset
from unveil.data.sources import open_parts, open_roles
from unveil.data.targets import BoxTargets
from unveil.errors import UnveilError


def targets(count: int = 3) -> list[dict[str, object]]:
    """Labels from 1 on, as torchvision's detectors take them."""
    return [
        {"boxes": torch.tensor([[1.0, 2, 9, 8], [i, 0, i + 5, 20]]), "labels": torch.tensor([1, 2 + i % 2])} for i in range(count)
    ]


def read(source, indices: list[int]) -> BoxTargets:
    return ImageDataset(source, side=64).readable(torch.tensor(indices)).targets


@pytest.mark.parametrize("form", ["arrays", "array", "tensor", "Pillow"])
def test_pairs(form: str) -> None:
    pixels = np.stack([picture(seed=i) for i in range(3)])
    images = {
        "arrays": list(pixels),
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "Pillow": [Image.fromarray(each) for each in pixels],
    }[form]
    source = open_roles((images, targets()), targets=BoxTargets).train
    assert source.classes == ["1", "2", "3"]
    assert source.objects.category_ids == {"1": 1, "2": 2, "3": 3}
    found = read(source, [1, 2])
    assert found.boxes.tolist() == [[[1, 2, 9, 8], [1, 0, 6, 20]], [[1, 2, 9, 8], [2, 0, 7, 20]]]
    assert found.labels.tolist() == [[0, 2], [0, 1]]
    assert found.masks is None
    other = targets()
    other[0]["boxes"] = other[0]["boxes"] + 1
    assert open_roles((images, other), targets=BoxTargets).train.fingerprint != source.fingerprint


def test_masks_crowds_areas_and_names() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.uint8)
    masks[0, 2:8, 1:9] = 1
    first = {
        "boxes": [[1, 2, 9, 8], [0, 0, 5, 5]],
        "labels": ["cat", "dog"],
        "masks": masks,
        "iscrowd": torch.tensor([0, 1]),
        "area": np.array([48.0, 25]),
    }
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 20, 30)}
    source = open_roles(([picture(), picture(seed=1), picture(seed=2)], [first, empty, None]), targets=BoxTargets).train
    assert source.classes == ["cat", "dog"]
    found = read(source, [0, 1, 2])
    assert torch.equal(found.masks[0].to(torch.uint8), masks)
    assert found.crowd.tolist() == [[False, True], [False, False], [False, False]]
    assert found.area[0].tolist() == [48, 25]
    assert found.labels[1:].tolist() == [[-1, -1]] * 2


class Boxes:
    """A map-style Dataset as torchvision's."""

    classes = ("__background__", "cat", "dog")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, object]]:
        boxes = tv_tensors.BoundingBoxes([[2, 3, 10, 8]], format="XYWH", canvas_size=(20, 30))
        return Image.fromarray(picture(seed=index)), {"boxes": boxes, "labels": torch.tensor([1 + index % 2])}


def test_datasets(tmp_path: Path) -> None:
    source = open_roles(Boxes(), targets=BoxTargets).train
    assert source.classes == ["cat", "dog"]
    assert source.objects.category_ids == {"cat": 1, "dog": 2}
    assert read(source, [0, 1]).boxes.tolist() == [[[2, 3, 12, 11]]] * 2
    assert read(source, [0, 1]).labels.tolist() == [[0], [1]]
    drawn = {"segmentation": [[2, 3, 12, 3, 12, 9]], "area": 25.0, "iscrowd": 0}
    entries = [annotation(1, 1, **drawn), annotation(2, 2, (0, 0, 5, 5), 90, **drawn)]
    data = write_coco_data(tmp_path, coco(entries, 3), 3)
    plain = CocoDetection(str(data / "images"), str(data / "annotations.json"))
    expected = read(open_roles(data, targets=BoxTargets).train, [0, 1])
    for dataset in (
        plain,
        torch.utils.data.Subset(plain, range(2)),
        wrap_dataset_for_transforms_v2(plain, target_keys=("boxes", "labels", "masks")),
    ):
        source = open_roles(dataset, targets=BoxTargets).train
        found = read(source, [0, 1])
        assert torch.equal(found.boxes, expected.boxes)
        assert source.classes == ["cat", "dog"]
        assert source.objects.category_ids == {"cat": 3, "dog": 90}
        assert torch.equal(found.masks[0], expected.masks[0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": [[1, 2, 9, 8]], "labels": [1, 2]}, "the target of .* has 1 box, and 2 labels"),
        ({"boxes": [[1, 2, 9]], "labels": [1]}, r"has boxes \(1, 3\): expected \(n, 4\)"),
        ({"bbox": [1, 2, 9, 8]}, "has the keys bbox: expected a dictionary with boxes and labels"),
        (7, "is a int: expected a dictionary"),
        ([{"label": 3}], "is a list whose entry 0 is no annotation of COCO"),
        ({"boxes": [[1, 2, 9, 8]], "labels": [1.5]}, "has the label 1.5: expected whole numbers or names"),
        (
            {"boxes": [[1, 2, 9, 8]], "labels": [1], "masks": np.zeros((2, 20, 30))},
            r"has masks \(2, 20, 30\): expected \(1, H, W\)",
        ),
        ({"boxes": [[1, 2, 9, 8]], "labels": [1], "iscrowd": [0, 1]}, "has 2 values of iscrowd: expected 1"),
        ({"boxes": [[9, 2, 1, 8]], "labels": [1]}, "box 0 has a box of negative width or height"),
        ({"boxes": [[float("nan"), 2, 1, 8]], "labels": [1]}, "box 0 has a box with numbers that are not finite"),
        ([annotation(1, box=(1, 2, 3))], r"the target of image-000000: bbox of annotation 1 is \[1, 2, 3\]: expected \[left, top"),
        (
            [annotation(1, segmentation=[[1, 2, 9, 2, 9, 9, 3]])],
            r"segmentation of annotation 1 is .*: expected polygons of numbers",
        ),
        ([annotation(1, segmentation={"size": [20, 30]})], "segmentation.counts of annotation 1 is missing"),
        ([annotation(1, category=1.5)], "category_id of annotation 1 is 1.5: expected a whole number or a text"),
        ({"boxes": [[1, 2, 9, 8], [40, 2, 49, 8]], "labels": [1, 1]}, "box 1 has a box outside of the image"),
        ({"boxes": [[20, 12, 19, 19]] * 4, "labels": [1] * 4}, "negative width or height"),
        ({"boxes": [[9, 9, 28, 28]] * 4, "labels": [1] * 4}, "4 of 4 boxes reach beyond their images"),
        ({"boxes": [], "labels": []}, "has no boxes: BoxTargets need"),
    ],
)
def test_what_does_not_fit(target: object, message: str) -> None:
    with pytest.raises(UnveilError, match=message) as error:
        open_parts(([picture()], [target]), targets=BoxTargets)
    assert "\n" not in str(error.value)


def test_what_is_no_data_with_boxes() -> None:
    for data, message in [
        ([picture()], "DATA is a list without boxes: BoxTargets need"),
        (([picture()], targets(2)), "DATA has 1 image, and a list of 2 targets"),
        (([picture()], "boxes"), "DATA has 1 image, and no list of targets"),
        ("digits", "digits has no boxes: BoxTargets need"),
    ]:
        with pytest.raises(UnveilError, match=message):
            open_parts(data, targets=BoxTargets)
    sized = ([picture()], [{"boxes": [[1, 2, 9, 8]], "labels": [1], "masks": np.ones((1, 9, 9))}])
    with pytest.raises(UnveilError, match="has 30 x 20 pixels, but its annotation says 9 x 9"):
        ImageDataset(open_roles(sized, targets=BoxTargets).train, side=64)


@pytest.mark.parametrize(
    ("segmentation", "pixels"),
    [
        ([[]], None),
        ([[1, 1, 9, 9]], None),  # a line, which pycocotools takes for a box
        ([2, 3, 12, 3, 12, 9, 2, 8], 55),  # without the list around it
        ([np.array([2.0, 3, 12, 3, 12, 9, 2, 8])], 55),
        ({"size": (20, 30), "counts": np.array([23, 4, 573])}, 4),
        (coco_mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8))), 20),
    ],
)
def test_segmentations_are_those_of_files(segmentation: object, pixels: int | None) -> None:
    source = open_roles(
        ([picture()], [[annotation(1, box=np.array([2.0, 3, 10, 8]), segmentation=segmentation)]]), targets=BoxTargets
    )
    found = read(source.train, [0])
    assert found.boxes[0].tolist() == [[2, 3, 12, 11]]
    assert (found.masks is None) == (pixels is None)
    assert found.masks is None or int(found.masks.sum()) == pixels


def test_categories_that_share_a_name() -> None:
    dataset = Boxes()
    dataset.classes = None
    dataset.coco = type("COCO", (), {"cats": {i: {"id": i, "name": "cat"} for i in (1, 2)}})
    with pytest.raises(
        UnveilError, match="the categories of the Boxes: two categories have the name cat: those with the ids 1 and 2"
    ):
        open_parts(dataset, targets=BoxTargets)


def test_an_image_without_boxes_may_have_masks_of_any_shape() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0)}
    full = {"boxes": [[1, 1, 5, 5]], "labels": [1], "masks": np.ones((1, 20, 30))}
    assert open_roles(([picture()] * 2, [empty, full]), targets=BoxTargets).train.objects.counts.tolist() == [0, 1]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("form", ["list", "dataset", "paths"])
def test_images_that_are_turned(orientation: int, form: str, tmp_path: Path) -> None:
    """torchvision does not turn images, and unveil does: boxes alone do not say which is meant."""
    write_image(tmp_path / "a.jpg", orientation=orientation)
    write_image(tmp_path / "b.jpg")
    images = [Image.open(tmp_path / f"{name}.jpg").convert("RGB") for name in "ab"]
    dataset = [(image, targets(1)[0]) for image in images]
    data = {
        "list": (images, targets(2)),
        "dataset": torch.utils.data.Subset(dataset, [0, 1]),
        "paths": ([str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")], targets(2)),
    }[form]
    found = ImageDataset(open_roles(data, targets=BoxTargets).train, side=64)
    assert found.readable(torch.arange(2)).keys.tolist() == [1]
    assert "its annotation does not say whether its boxes are of the turned image" in next(iter(found.skipped.values()))
