"""COCO json: layouts, what is read, and a sentence for everything that is wrong."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from tests.data.object_files import annotation, coco, objects_of, write_coco_data, write_image
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.sources import open_parts, open_roles
from unveil.data.targets import BoxTargets
from unveil.errors import UnveilError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
POLYGON = [[2.0, 3.0, 12.0, 3.0, 12.0, 11.0, 7.0, 5.0]]


def refused(data: Path, message: str) -> str:
    with pytest.raises(UnveilError, match=message) as error:
        open_parts(data, targets=BoxTargets)
    assert "\n" not in str(error.value)
    return str(error.value)


def notes_of(data: Path) -> str:
    return "\n".join(open_parts(data, targets=BoxTargets).roles().train.notes)


def test_boxes_classes_and_ids_by_hand(tmp_path: Path) -> None:
    """xywh becomes xyxy; ids with gaps become 0, 1, ... and back; an image without annotations has boxes (0, 4)."""
    data = write_coco_data(
        tmp_path, coco([annotation(7, 2, (2, 3, 10, 8), 90, area=55.5), annotation(9, 2, (0.5, 0, 4, 20), 3, iscrowd=1)], 3), 3
    )
    source = open_roles(data, targets=BoxTargets).train
    found = source.objects
    assert source.names == ["images/1.png", "images/2.png", "images/3.png"]
    assert source.classes == ["cat", "dog"]
    assert found.starts.tolist() == [0, 0, 2, 2]
    assert found.boxes.tolist() == [[2, 3, 12, 11], [0.5, 0, 4.5, 20]]
    assert found.labels.tolist() == [1, 0]
    assert found.crowd.tolist() == [False, True]
    assert found.areas.tolist()[0] == 55.5
    assert np.isnan(found.areas[1])
    assert found.category_ids == {"cat": 3, "dog": 90}
    assert list(found.image_ids) == [1, 2, 3]
    batch = ImageDataset(source, side=64).readable(torch.tensor([0, 1]))
    assert batch.targets.boxes.shape == (2, 2, 4)
    assert batch.targets.labels.tolist() == [[-1, -1], [1, 0]]
    assert batch.targets.area.tolist() == [[0, 0], [55.5, 80]]  # the area of the box, where none is written
    assert batch.targets.crowd.tolist() == [[False, False], [False, True]]
    assert batch.targets.masks is None
    only = ImageDataset(source, side=64).readable(torch.tensor([0])).targets
    assert only.boxes[0][only.labels[0] >= 0].shape == (0, 4)


def layouts(root: Path) -> dict[str, list[str]]:
    """Folders of images and annotation files for train and val, in the layouts that people have."""
    return {
        "annotations beside splits": ["train/{}.png", "annotations/instances_train.json"],
        "COCO": ["train2017/{}.png", "annotations/instances_train2017.json"],
        "files beside splits": ["train/{}.png", "instances_train.json"],
        "Roboflow": ["train/{}.png", "train/_annotations.coco.json"],
        "images in a folder": ["images/train/{}.png", "annotations/train.json"],
        "in one folder": ["images/train_{}.png", "train.json"],
    }


@pytest.mark.parametrize("name", layouts(Path()))
@pytest.mark.parametrize("form", ["folder", "tar", "tars beside"])
def test_layouts(name: str, form: str, tmp_path: Path) -> None:
    images, file = layouts(tmp_path)[name]
    for split, seed in (("train", 0), ("val", 5)):
        content = coco([annotation(1, 1, (int(split == "val"), 0, 5, 5), 3), annotation(2, 2, (1, 1, 5, 5), 90)])
        for entry in content["images"]:
            path = images.replace("train", split).format(entry["id"])
            write_image(tmp_path / "data" / path, seed=seed + entry["id"])
            entry["file_name"] = Path(path).name
        target = tmp_path / "data" / file.replace("train", split)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
    data = tmp_path / "data"
    if form == "tar":
        with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
            tar.add(data, "some/folder")
        data = tmp_path / "data.tar.gz"
    elif form == "tars beside":
        for folder in [each for each in data.iterdir() if each.is_dir() and "annotations" not in each.name]:
            with tarfile.open(data / f"{folder.name}.tar", "w") as tar:
                tar.add(folder, folder.name)
            shutil.rmtree(folder)
    roles = open_roles(data, targets=BoxTargets)
    assert [Path(name).stem[-1] for name in roles.train.names] == ["1", "2"]
    assert [Path(name).stem[-1] for name in roles.test.names] == ["1", "2"]
    assert roles.train.objects.boxes[0].tolist() == [0, 0, 5, 5]
    assert roles.test.objects.boxes[0].tolist() == [1, 0, 6, 5]
    assert roles.train.fingerprint != roles.test.fingerprint
    assert roles.sentence.endswith("(2 images) for training; val/ (2 images) as the test set")
    first = ImageDataset(roles.test, side=64).readable(torch.tensor([0])).images
    folder_image = ImageDataset(roles.train, side=64).readable(torch.tensor([0])).images
    assert not torch.equal(first, folder_image)  # each split has its own image 1


def test_paths_in_names_and_files_of_other_tasks(tmp_path: Path) -> None:
    content = coco([annotation(1)], 2)
    content["images"][0]["file_name"] = "C:\\work\\images\\1.png"
    content["images"][1]["file_name"] = "/content/data/images/2.png"
    data = write_coco_data(tmp_path, content, file="annotations/instances_train.json")
    (tmp_path / "annotations" / "captions_train.json").write_text("not even json")
    (tmp_path / "annotations" / "person_keypoints_train.json").write_text("{}")
    assert len(open_roles(data, targets=BoxTargets).train) == 2
    write_image(tmp_path / "b" / "images" / "1.png")
    assert len(open_roles(data, targets=BoxTargets).train) == 2  # the nearest is meant
    write_image(tmp_path / "b" / "3.png")
    write_image(tmp_path / "c" / "3.png")
    content["images"][0]["file_name"] = "3.png"
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    refused(data, r"annotations/instances_train.json names the image 3.png, which may be b/3.png and c/3.png")


def test_masks_equal_pycocotools_for_polygons_and_run_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blob = rng.uniform(size=(20, 30)) < 0.5
    plain = [int(x) for x in np.diff(np.flatnonzero(np.diff(np.r_[2, blob.T.reshape(-1).astype(int), 2])))]
    plain = plain if not blob.T.reshape(-1)[0] else [0, *plain]
    packed = coco_mask.encode(np.asfortranarray(blob.astype(np.uint8)))["counts"].decode()
    several = [POLYGON[0], [20, 10, 28.5, 10.2, 25, 19.7], [1, 1, 2, 2]]  # the last is a line, and has no pixels
    segments: list[Any] = [
        POLYGON,
        several,
        {"size": [20, 30], "counts": plain},
        {"size": [20, 30], "counts": packed},
        None,
        [[-3.5, -2, 12, 4, 40, 9, 5, 25]],  # reaches over the edges
    ]
    entries = [annotation(i, segmentation=segment, box=(0, 0, 9 + i, 9)) for i, segment in enumerate(segments, 1)]
    data = write_coco_data(tmp_path, coco(entries, 1), 1)
    targets = ImageDataset(open_roles(data, targets=BoxTargets).train, side=64).readable(torch.tensor([0])).targets
    assert targets.masks.shape == (1, 6, 20, 30)
    for ours, segment in zip(targets.masks[0], segments, strict=True):
        if segment is None:
            assert not ours.any()
            continue
        if isinstance(segment, list):
            theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([p for p in segment if len(p) > 4], 20, 30)))
        else:
            theirs = blob
        assert np.array_equal(ours.numpy(), theirs.astype(bool))
    assert targets.area[0].tolist() == [int(mask.sum()) or 14 * 9 for mask in targets.masks[0]]
    assert "1 of 6 objects has no mask, and only a box" in notes_of(data)


@pytest.mark.parametrize("name", ["coco_mini", "nuclei_dsb2018/nuclei.tar.gz"])
@pytest.mark.parametrize("memory", [0, MEMORY])
def test_real_masks_and_boxes_equal_pycocotools(name: str, memory: int, tmp_path: Path) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is absent")
    from pycocotools.coco import COCO

    source = open_parts(SHARED / name, targets=BoxTargets).makers["val"]()
    if name.endswith("gz"):
        with tarfile.open(SHARED / name) as tar:
            (member,) = [each for each in tar if each.name.endswith("instances_val.json")]
            (tmp_path / "instances_val.json").write_bytes(tar.extractfile(member).read())
    file = tmp_path / "instances_val.json" if name.endswith("gz") else SHARED / name / "instances_val.json"
    truth, kept = COCO(str(file)), list(range(0, len(source), 16))
    part = source.taken(kept)
    targets = ImageDataset(part, side=4096, memory=memory).readable(torch.arange(len(part))).targets
    names = {i: name for name, i in part.objects.category_ids.items()}
    for row, id_ in enumerate(part.objects.image_ids):
        entries = truth.loadAnns(truth.getAnnIds(imgIds=id_))
        count = int((targets.labels[row] >= 0).sum())
        assert count == len(entries)
        for place, entry in enumerate(entries):
            mask = truth.annToMask(entry)
            assert np.array_equal(targets.masks[row, place, : mask.shape[0], : mask.shape[1]].numpy(), mask.astype(bool))
            assert part.classes[targets.labels[row, place]] == names[entry["category_id"]]
            left, top, width, height = entry["bbox"]
            assert targets.boxes[row, place].tolist() == pytest.approx([left, top, left + width, top + height], abs=1e-3)
            assert targets.area[row, place] == pytest.approx(entry["area"])
            assert bool(targets.crowd[row, place]) == bool(entry["iscrowd"])


def test_boxes_as_polygons_are_no_masks(tmp_path: Path) -> None:
    box = [2, 3, 12, 3, 12, 11, 2, 11]
    data = write_coco_data(tmp_path, coco([annotation(1, segmentation=[box]), annotation(2, 2, segmentation=[[*box, 2, 3]])]))
    assert objects_of(data).segments is None
    assert "each mask is the rectangle of its box, so there are boxes and no masks" in notes_of(data)


def test_what_is_no_object_is_left_out_and_said(tmp_path: Path) -> None:
    good = [annotation(100 + i, 1 + i % 2, (i / 10, 1, 5, 5)) for i in range(60)]
    odd = [
        annotation(1, box=(5, 5, -3, 4)),
        annotation(2, box=(5, 5, 0, 4)),
        annotation(3, box=(31, 5, 4, 4)),
        annotation(4, box=(-4, -6, 10, 12)),  # negative coordinates: cut at the edge
        annotation(5, box=(28, 5, 2.4, 4)),  # reaches over by less than a pixel: cut without a word
        good[7] | {"id": 6},
        annotation(7, 5),
        good[9] | {"id": 101, "bbox": [9, 9, 3, 3]},  # the id of another one
    ]
    content = coco(good + odd)
    content["images"].append(content["images"][0])
    data = write_coco_data(tmp_path, content)
    found = objects_of(data)
    assert len(found.boxes) == 63
    assert [0, 0, 6, 6] in found.boxes.tolist()
    assert [28, 5, 30, 9] in found.boxes.tolist()
    notes = notes_of(data)
    where = f"{data}: annotations.json: "
    for sentence in [
        "left out 1 object: annotation 1 has a bbox of negative width or height (5, 5, 2, 9 as left, top, right, bottom)",
        "left out 1 object: annotation 2 has a bbox without area",
        "left out 1 object: annotation 3 has a bbox outside of the image",
        "left out 1 object: annotation 6 is an exact copy of another object",
        "cut 1 of 63 boxes at the edge of the image",
        "left out 1 of 68 annotations, whose image_id is the id of no image: annotation 7",
        "1 annotation with the id of another one: all are used",
        "1 image listed twice in the same way, and read once",
    ]:
        assert where + sentence in notes


def test_images_that_are_missing_or_not_listed(tmp_path: Path) -> None:
    data = write_coco_data(tmp_path, coco([annotation(1), annotation(2, 3)], 4), 2)
    write_image(tmp_path / "images" / "extra.png")
    source = open_roles(data, targets=BoxTargets).train
    assert len(source) == 2
    assert f"{data}: annotations.json: left out 2 of 4 images, whose files are missing: 3.png, 4.png" in source.notes
    assert f"{data}: left out 1 image that is not in the annotations: images/extra.png" in source.notes
    assert source.skipped["images/extra.png"] == "it is in no annotation file"
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "images" / "2.png").unlink()
    refused(
        data, r"none of the 4 images of annotations.json is there: expected a file that ends with 1.png \(the field file_name\)"
    )


def write_listing(root: Path, file: str, *names: str, **other: Any) -> None:
    """A json with an image of each name, with an object each."""
    entries = [annotation(i, i, (i, 1, 5, 5)) for i in range(1, len(names) + 1)]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names, 1)]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(coco(entries) | {"images": images} | other))


def write_images(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_image(root / name, seed=seed)


@pytest.mark.parametrize(
    ("files", "listed", "found"),
    [
        (["a/1.png"], ["a/1.png", "b/1.png"], ["a/1.png"]),
        (["a/img/1.png", "a/img/2.png"], ["a/img/1.png", "b/img/1.png"], ["a/img/1.png"]),
        (["a/1.png", "b/1.png"], ["a/1.png", "c/1.png"], ["a/1.png"]),
        (["x/1.png", "1.png"], ["b/1.png", "x/1.png"], ["1.png", "x/1.png"]),  # in no folder, which contradicts nothing
        (["x/1.png", "x/2.png"], ["/home/me/a/1.png", "/home/me/a/2.png"], ["x/1.png", "x/2.png"]),  # moved
    ],
)
def test_an_image_in_another_folder_is_another_image(files: list[str], listed: list[str], found: list[str], tmp_path: Path) -> None:
    """Frames of sequences have the same names in each of them."""
    write_images(tmp_path, *files)
    write_listing(tmp_path, "instances.json", *listed)
    source = open_roles(tmp_path, targets=BoxTargets).train
    assert source.names == found
    moved = "instances.json has other folders than the images: /home/me/a/1.png is taken to be x/1.png"
    assert (moved in "\n".join(source.notes)) == (listed[0][0] == "/")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["1.png", "a/1.png"], r"a/1.png is the image of two entries: 1.png in instances_train.json, and a/1.png in instances_tr"),
        (["b/1.png", "c/1.png"], r"a/1.png is the image of two entries: b/1.png in instances_train.json, and c/1.png in"),
        (["b/2.png"], r"none of the 1 image of instances_train.json is there: expected a file that ends with b/2.png"),
    ],
)
def test_one_image_has_one_entry(listed: list[str], message: str, tmp_path: Path) -> None:
    write_images(tmp_path, "a/1.png")
    write_listing(tmp_path, "instances_train.json", *listed)
    refused(tmp_path, message)


def test_images_of_a_missing_split_are_not_those_of_another(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "train/2.png")
    for split in ("train", "val"):
        write_listing(tmp_path, f"annotations/instances_{split}.json", "1.png", "2.png")
    message = (
        r"none of the 2 images of annotations/instances_val.json is there: .* train/1.png is in another folder: if it is meant"
    )
    refused(tmp_path, message)
    write_images(tmp_path, "val/2.png")
    roles = open_roles(tmp_path, targets=BoxTargets)
    assert (roles.train.names, roles.test.names) == (["train/1.png", "train/2.png"], ["val/2.png"])
    assert "instances_val.json: left out 1 of 2 images, whose files are missing: 1.png" in "\n".join(roles.train.notes)
    write_listing(tmp_path, "annotations/instances_val.json", "train/1.png")  # said in so many words, but train has it
    refused(tmp_path, r"train/1.png is the image of two entries: 1.png in annotations/instances_train.json, and train/1.png in")
    write_listing(tmp_path, "annotations/instances_train.json", "2.png")
    assert open_roles(tmp_path, targets=BoxTargets).test.names == ["train/1.png"]


@pytest.mark.parametrize("folder", ["trainval/", "train_val_images/", "images/", ""])
@pytest.mark.parametrize("file", ["val.json", "train/val.json"])
def test_folders_that_images_of_two_splits_share(folder: str, file: str, tmp_path: Path) -> None:
    """A folder of both splits, or one that the annotations are in as well."""
    below = "train/" if file.startswith("train/") else ""
    write_images(tmp_path, f"{below}{folder}1.png", f"{below}{folder}2.png")
    write_listing(tmp_path, f"{below}train.json", "1.png")
    write_listing(tmp_path, file, "2.png")
    assert open_roles(tmp_path, targets=BoxTargets).test.names == [f"{below}{folder}2.png"]


def test_files_of_other_names_have_other_splits(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "val/2.png", "test/3.png")
    write_listing(tmp_path, "annotations/instances_train.json", "1.png")
    write_listing(tmp_path, "annotations/val.json", "2.png")
    (tmp_path / "test.json").write_text("{}")
    assert open_parts(tmp_path, targets=BoxTargets).names == ["train", "val"]
    write_listing(tmp_path, "my_val.json", "3.png")
    refused(tmp_path, r"annotations/val.json and my_val.json are both annotations of the split val")


def test_a_byte_order_mark(tmp_path: Path) -> None:
    data = write_coco_data(tmp_path, "\ufeff" + json.dumps(coco([annotation(1)])))
    assert len(objects_of(data).boxes) == 1


def test_an_orientation_without_a_size(tmp_path: Path) -> None:
    """It cannot be known whether boxes are of the turned image. An image without boxes is read."""
    for number, orientation in enumerate((1, 3, 6, 6), 1):
        write_image(tmp_path / "images" / f"{number}.jpg", 30, 30, seed=number, orientation=orientation)
    write_listing(
        tmp_path, "annotations.json", *(f"{i}.jpg" for i in range(1, 5)), annotations=[annotation(i, i) for i in (1, 2, 3)]
    )
    dataset = ImageDataset(open_roles(tmp_path, targets=BoxTargets).train, side=64)
    assert dataset.readable(torch.arange(4)).keys.tolist() == [0, 3]
    assert all("is turned by its EXIF orientation" in reason for reason in dataset.skipped.values())


def test_a_box_outside_of_an_image_without_a_size(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    entries = [annotation(1), annotation(2), annotation(3, 2), annotation(4, 2, (40, 2, 9, 9))]
    write_listing(tmp_path, "annotations.json", "1.png", "2.png", annotations=entries)
    dataset = ImageDataset(open_roles(tmp_path, targets=BoxTargets).train, side=64)
    reason = "has 30 x 20 pixels, and 1 of its 2 boxes outside of them, such as 40, 2, 49, 11 (left, top, right, bottom)"
    assert dataset.skipped == {"2.png": reason}


def changed(**fields: Any) -> dict[str, Any]:
    return coco([annotation(17) | fields])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"annotations.json is damaged: it is not valid JSON"),
        ("[]", r"annotations.json is damaged: it holds a JSON list, expected an object"),
        ('{"images": [1e999]}', r"the number 1e999 is too large"),
        ('{"images": [NaN]}', r"NaN is not a number of JSON"),
        ("[" * 100_000, r"more than 64 deep"),
        ({"annotations": [], "categories": []}, r"annotations.json: the field images is missing. Expected COCO json with images"),
        ({"shapes": [], "imagePath": "1.png"}, r"the field images is missing.*; found the fields imagePath, shapes"),
        (coco([]) | {"images": {}}, r"images is no list"),
        (coco([]) | {"annotations": [3]}, r"entry 0 of annotations is no object"),
        (coco([], categories=[]), r"the field categories is empty"),
        (coco([], images=0), r"the field images is empty"),
        (
            changed(bbox=[5, 5, -3, 4]),
            r"annotation 17 has a bbox of negative width or height \(5, 5, 2, 9 as .*\)\. Expected bbox as",
        ),
        (changed(bbox=[40, 5, 3, 4]), r"annotation 17 has a bbox outside of the image"),
        (changed(bbox=[1, 2, 3]), r"bbox of annotation 17 is \[1, 2, 3\]: expected \[left, top, width, height\]"),
        (changed(bbox=[1, 2, 3, "4"]), r"bbox of annotation 17 is"),
        (changed(bbox=None), r"bbox of annotation 17 is missing"),
        (changed(bbox=[1, 2, 10**400, 3]), r"bbox of annotation 17 is \[1, 2, 1000"),
        (changed(area=10**400), r"area of annotation 17 is 1000"),
        (coco([]) | {"images": [{"id": 1, "file_name": "1.png", "width": 10**30}]}, r"width of image 1 \(1.png\) is 1000"),
        (changed(category_id=1), r"category_id of annotation 17 is 1: expected an id that is listed in categories \(3, 90\)"),
        (changed(image_id=None), r"image_id of annotation 17 is missing"),
        (changed(image_id="1"), r"image_id of each annotation is the id of no image: annotation 17 has '1', and images have ids"),
        (changed(area=-1), r"area of annotation 17 is -1"),
        (changed(iscrowd=2), r"iscrowd of annotation 17 is 2: expected 0 or 1"),
        (changed(segmentation=[[1, 2, 3]]), r"segmentation of annotation 17 is \[1, 2, 3\]: expected polygons of numbers"),
        (changed(segmentation=7), r"segmentation of annotation 17 is 7: expected polygons"),
        (changed(segmentation={"counts": "a"}), r"segmentation.size of annotation 17 is missing: expected \[height, width\]"),
        (changed(segmentation={"size": [20, 30]}), r"segmentation.counts of annotation 17 is missing"),
        (coco([], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), r"two categories have the id 1: a and b"),
        (coco([], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), r"two categories have the name a"),
        (coco([], categories=[{"id": 1}]), r"name of category 1 is missing"),
        (coco([]) | {"images": [{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}]}, r"two images have the id 1"),
        (coco([]) | {"images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "1.png"}]}, r"1.png is listed twice"),
        (coco([]) | {"images": [{"id": 1, "file_name": "1.png", "width": -3}]}, r"width of image 1 \(1.png\) is -3"),
        (coco([]) | {"images": [{"id": 1.0}]}, r"id of entry 0 of images is 1.0: expected a whole number or a text"),
        (coco([]) | {"images": [{"id": 1}]}, r"file_name of image 1 is missing"),
        (coco([annotation(i, box=(10, 8, 28, 18)) for i in range(6)]), r"6 of 6 boxes reach beyond their images: the bbox of"),
    ],
)
def test_a_sentence_names_the_file_and_the_field(content: Any, message: str, tmp_path: Path) -> None:
    found = refused(write_coco_data(tmp_path, content), message)
    assert found.startswith(f"{tmp_path}: annotations.json")


def test_files_that_may_be_meant(tmp_path: Path) -> None:
    data = write_coco_data(tmp_path, coco([annotation(1)]), file="annotations/a.json")
    (tmp_path / "annotations" / "b.json").write_text("{}")
    assert len(open_roles(data, targets=BoxTargets).train) == 2  # b.json is something else
    (tmp_path / "annotations" / "b.json").write_text(json.dumps(coco([annotation(1)])))
    refused(data, r"annotations/a.json is called after no split: rename it, as in instances_train.json")
    for name in ("a", "b"):
        (tmp_path / "annotations" / f"{name}.json").rename(tmp_path / "annotations" / f"train_{name}.json")
    refused(data, r"annotations/train_a.json and annotations/train_b.json are both annotations of the split train")
    with pytest.raises(UnveilError, match=r"is a file of annotations: give the folder that has it"):
        open_parts(tmp_path / "annotations" / "train_a.json", targets=BoxTargets)
    write_image(tmp_path / "plain" / "1.png")
    refused(tmp_path / "plain", r"no boxes in .*: expected annotations in COCO json .*VOC xml.*YOLO txt")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no images")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("told", ["stored", "upright"])
def test_boxes_and_masks_turn_with_the_image_or_not_at_all(orientation: int, told: str, tmp_path: Path) -> None:
    """An image with a white object, turned by EXIF. The size in the json is that of the stored pixels, or of the upright image."""
    from PIL import Image, ImageOps

    stored = np.zeros((20, 30, 3), np.uint8)
    stored[3:8, 4:16] = 255
    exif = Image.Exif()
    exif[274] = orientation
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "1.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "images" / "1.png")))
    shown = stored if told == "stored" else upright
    rows, columns = np.nonzero(shown[..., 0])
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    polygon = [[int(v) for v in (left, top, right, top, right, bottom, left, bottom)]]
    mask = coco_mask.encode(np.asfortranarray((shown[..., 0] > 0).astype(np.uint8)))
    segment = {"size": list(shown.shape[:2]), "counts": mask["counts"].decode()}
    box = [int(v) for v in (left, top, right - left, bottom - top)]
    content = coco([annotation(1, box=box, segmentation=segment), annotation(2, box=box, category=90, segmentation=polygon)], 1)
    content["images"][0] |= {"height": shown.shape[0], "width": shown.shape[1]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    source = open_roles(tmp_path, targets=BoxTargets).train
    if orientation in (2, 3, 4):  # the sizes are the same: it cannot be known which one is meant
        with pytest.raises(UnveilError, match=r"turned by its EXIF orientation, and its annotation does not say"):
            ImageDataset(source, side=64)
        return
    for memory in (0, MEMORY):
        batch = ImageDataset(source, side=64, memory=memory).readable(torch.tensor([0]))
        white = batch.images[0, 0] > 0
        assert torch.equal(batch.targets.masks[0, 0], white)
        assert torch.equal(batch.targets.masks[0, 1], white)
        x0, y0, x1, y1 = batch.targets.boxes[0, 0].int().tolist()
        expected = torch.zeros_like(white)
        expected[y0:y1, x0:x1] = True
        assert torch.equal(white, expected)


def test_a_json_of_another_size_than_the_image(tmp_path: Path) -> None:
    content = coco([annotation(1), annotation(2, 2)], 2)
    content["images"][1] |= {"height": 30, "width": 40}
    source = open_roles(write_coco_data(tmp_path, content), targets=BoxTargets).train
    dataset = ImageDataset(source, side=64)
    assert dataset.skipped == {"images/2.png": "has 30 x 20 pixels, but its annotation says 40 x 30 pixels"}
    del content["images"][1]["height"], content["images"][1]["width"]  # not told: then it is that of the image
    source = open_roles(write_coco_data(tmp_path, content), targets=BoxTargets).train
    assert not ImageDataset(source, side=64).skipped


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        ({"size": [20, 31], "counts": [620]}, r"segmentation of size \[20, 31\] \(height, width\), but its image has \[20, 30\]"),
        ({"size": [20, 30], "counts": [700]}, "run lengths of 700 pixels in all, expected 600"),
        ({"size": [20, 30], "counts": [-5, 605]}, "counts that are no whole numbers"),
        ({"size": [20, 30], "counts": [1.5, 598.5]}, "counts that are no whole numbers"),
        ({"size": [20, 30], "counts": [2**62, 2**62]}, "counts that are no whole numbers"),
        ({"size": [20, 30], "counts": "\u00e9"}, "no compressed run lengths"),
        ({"size": [20, 30], "counts": "oooooooooooooooooooo"}, "no compressed run lengths"),
        ({"size": [20, 30], "counts": "1" * 5000}, "run lengths of"),
        ([[1e7, 0, 5, 5, 9, 1]], "a polygon far outside of its image of 30 x 20 pixels"),
    ],
)
@pytest.mark.parametrize("memory", [0, MEMORY])
def test_a_damaged_mask_leaves_its_image_out(segment: Any, reason: str, memory: int, tmp_path: Path) -> None:
    data = write_coco_data(tmp_path, coco([annotation(1), annotation(2, 2, segmentation=segment)]))
    dataset = ImageDataset(open_roles(data, targets=BoxTargets).train, side=64, memory=memory)
    assert dataset.readable(torch.arange(2)).keys.tolist() == [0]
    assert re.search(reason, dataset.skipped["images/2.png"])


def test_an_image_with_crowds_only_is_not_trained_on(tmp_path: Path) -> None:
    data = write_coco_data(
        tmp_path, coco([annotation(1, 1, iscrowd=1), annotation(2, 2), annotation(3, 2, (0, 0, 3, 3), iscrowd=1)], 3), 3
    )
    assert open_roles(data, targets=BoxTargets).train.has_label.tolist() == [False, True, True]


def test_classes_of_a_test_set_are_found_by_name(tmp_path: Path) -> None:
    other = [{"id": 1, "name": "dog"}, {"id": 2, "name": "bird"}, {"id": 3, "name": "cat"}]
    train = write_coco_data(tmp_path / "a", coco([annotation(1), annotation(2, 2, category=90)]))
    entries = [annotation(1, category=1), annotation(2, 2, category=2), annotation(3, 2, category=3)]
    test = write_coco_data(tmp_path / "b", coco(entries, categories=other))
    classes = open_roles(train, targets=BoxTargets).train.classes
    found = open_roles(test, targets=BoxTargets).train.with_classes(classes)
    assert found.classes == ["cat", "dog"]
    assert found.objects.labels.tolist() == [1, 0]
    assert found.objects.starts.tolist() == [0, 1, 2]
    assert found.unscored == "bird: 1 is a class of test objects that the train set does not have, so the model has no score for it"


def test_parts_are_joined_and_taken(tmp_path: Path) -> None:
    for split in ("train", "val"):
        content = coco([annotation(1, 1, (int(split == "val"), 0, 5, 5)), annotation(2, 2, (1, 1, 5, 5), 90, segmentation=POLYGON)])
        (tmp_path / split).mkdir()
        for i in (1, 2):
            write_image(tmp_path / split / f"{i}.png", seed=i)
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    both = open_parts(tmp_path, targets=BoxTargets).roles("train+val").train
    assert len(both) == 4
    assert both.objects.boxes[:, 0].tolist() == [0, 1, 1, 1]
    part = both.taken([3, 0])
    assert part.objects.labels.tolist() == [1, 0]
    assert part.objects.segments == [POLYGON, None]
    assert list(part.objects.image_ids) == ["val/2.png", "train/1.png"]  # both have images with the ids 1 and 2
    assert ImageDataset(part, side=64).readable(torch.tensor([0])).targets.masks[0, 0].any()


def test_annotations_change_the_fingerprint(tmp_path: Path) -> None:
    data = write_coco_data(tmp_path, coco([annotation(1)]))
    before = open_roles(data, targets=BoxTargets).train
    assert open_roles(data, targets=BoxTargets).train.fingerprint == before.fingerprint
    write_coco_data(tmp_path, coco([annotation(1, box=(2, 3, 10, 8.5))]))
    assert open_roles(data, targets=BoxTargets).train.fingerprint != before.fingerprint


def test_roboflow_lists_its_project_as_a_category(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "red", "supercategory": "cells"}]
    data = write_coco_data(tmp_path, coco([annotation(1, category=1)], categories=categories))
    assert open_roles(data, targets=BoxTargets).train.classes == ["red"]


def test_a_category_may_be_its_own_supercategory(tmp_path: Path) -> None:
    """As person is in COCO. It stays, used or not, and so does the supercategory of another class that is used."""
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "rider", "supercategory": "person"}]
    data = write_coco_data(tmp_path, coco([annotation(1, category=2)], categories=categories))
    assert open_roles(data, targets=BoxTargets).train.classes == ["person", "rider"]


def test_ids_of_joined_parts_are_distinct(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "val/2.png")
    for split, file, name in (("train", "1.png", "cat"), ("val", "2.png", "dog")):
        write_listing(tmp_path, f"instances_{split}.json", file, categories=[{"id": 3, "name": name}])
    both = open_parts(tmp_path, targets=BoxTargets).roles("train+val").train
    assert both.objects.category_ids == {"cat": 1, "dog": 2}
    assert both.objects.image_ids == ["train/1.png", "val/2.png"]
    assert "joined parts have the same category id for different classes" in "\n".join(both.notes)
