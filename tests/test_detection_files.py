"""Folders of detections: a COCO dataset that COCO's tools read, a table, and overlays."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO

from unveil.data.rle import encoded
from unveil.detection_files import DetectionWriter, drawn
from unveil.detections import Detections

CLASSES = ["cell, red", "=1+1"]


def some_image(height: int = 30, width: int = 40, kind: type = np.uint8) -> np.ndarray:
    return np.full((height, width, 3), 100, kind)


def some_detections(height: int = 30, width: int = 40) -> Detections:
    masks = np.zeros((2, height, width), bool)
    masks[0, 5:15, 2:12] = masks[1, 20:28, 30:39] = True
    boxes = torch.tensor([[2.0, 5, 12, 15], [30, 20, 39, 28]])
    return Detections(boxes, torch.tensor([0.4, 0.9]), torch.tensor([1, 0]), encoded(masks))


def test_the_folder(tmp_path: Path) -> None:
    writer = DetectionWriter(tmp_path, classes=CLASSES, category_ids=[7, 3], overlays=True)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [])
    writer.add("b/2", some_image(), some_detections(), "b/2.PNG")
    writer.add("a", some_image(20, 20), nothing, "a.jpg")
    assert writer.has("a")
    assert not writer.has("b")
    assert writer.close() == "objects with a score of at least 0.5: cell, red 1, =1+1 0"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "detections.csv",
        "detections.json",
        "overlays/a.jpg",
        "overlays/b/2.jpg",
    ]
    dataset = COCO(str(tmp_path / "detections.json"))
    assert [image["file_name"] for image in dataset.loadImgs([1, 2])] == ["a.jpg", "b/2.PNG"]
    first, second = dataset.loadAnns(dataset.getAnnIds(imgIds=2))
    assert (first["category_id"], first["bbox"], first["area"]) == (7, [30, 20, 9, 8], 72)
    assert dataset.annToMask(second).sum() == 100
    assert [each["name"] for each in dataset.loadCats([7, 3])] == CLASSES
    assert b"\r" not in (tmp_path / "detections.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "detections.csv").open(encoding="utf-8")))
    assert [(row["file"], row["label"], float(row["score"]), float(row["left"])) for row in rows] == [
        ("b/2.PNG", "cell, red", 0.9, 30),
        ("b/2.PNG", "'=1+1", 0.4, 2),  # no formula
    ]
    assert json.loads((tmp_path / "detections.json").read_text())["annotations"][0]["id"] == 1


def test_the_sentence_says_when_overlays_are_empty(tmp_path: Path) -> None:
    for shown, overlays, sentence in (
        (
            0.95,
            True,
            "no object has a score of at least 0.95 (the best has 0.90), so overlays show none: --min-score sets what they show",
        ),
        (0.95, False, "no object has a score of at least 0.95 (the best has 0.90)"),
        (0.3, True, "objects with a score of at least 0.3: cell, red 1, =1+1 1"),
    ):
        out = tmp_path / f"{shown} {overlays}"
        writer = DetectionWriter(out, classes=CLASSES, category_ids=[7, 3], overlays=overlays, shown_score=shown)
        writer.add("a", some_image(), some_detections())
        assert writer.close() == sentence


def test_overlays_show_what_is_likely_in_the_right_place(tmp_path: Path) -> None:
    writer = DetectionWriter(tmp_path, classes=CLASSES, category_ids=[1, 2], overlays=True)
    writer.add("x", some_image(), some_detections())
    shown = np.asarray(Image.open(tmp_path / "overlays" / "x.jpg")).astype(int)
    changed = np.abs(shown - 100).max(axis=2) > 25
    assert changed[22:27, 32:37].all()
    assert not changed[6:14, 3:11].any()  # a score of 0.4


def test_a_drawing_of_a_large_or_deep_image_is_shrunk() -> None:
    found = some_detections()
    picture = drawn(some_image(kind=np.uint16) * 257, found, CLASSES, longest=20)
    assert picture.shape == (15, 20, 3)
    assert picture.dtype == np.uint8
    whole = drawn(some_image()[:, :, :1], found._replace(masks=None), CLASSES)
    assert whole.shape == (30, 40, 3)
