"""AP and AR of boxes and masks against pycocotools, and what a report draws against a computation by hand."""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unveil.coco_results import class_ids, coco_entries, write_coco
from unveil.data.dataset import ImageDataset
from unveil.data.rle import encoded
from unveil.data.sources import open_parts
from unveil.data.targets import BoxTargets
from unveil.detection_metrics import DetectionMetric, best_threshold
from unveil.detections import Detections
from unveil.errors import UnveilError
from unveil.runs.labelled_images import LabelledImages

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
HEIGHT, WIDTH = 150, 200
CLASSES = 4
IDS = [1, 3, 7, 90]
"""Category ids with gaps, as COCO has them."""


def random_objects(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4), classes, and masks (n, H, W): ellipses in their boxes, some of them less than a pixel wide."""
    sides = np.exp(rng.uniform(np.log(4), np.log(130), (count, 2)))
    start = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - np.minimum(sides, [WIDTH, HEIGHT]))
    boxes = np.concatenate([start, np.minimum(start + sides, [WIDTH, HEIGHT])], axis=1).astype(np.float32).astype(np.float64)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    masks = np.stack(
        [((x - (a + c) / 2) / (c - a)) ** 2 + ((y - (b + d) / 2) / (d - b)) ** 2 <= 0.25 for a, b, c, d in boxes]
        or [np.zeros((HEIGHT, WIDTH), bool)]
    )[:count]
    return boxes, rng.integers(0, CLASSES - 1, count), masks  # the last class never occurs


class Scene:
    """Random images with objects and detections of them, as unveil and as COCO hold them."""

    def __init__(self, seed: int, images: int = 8, most: int = 40, crowds: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.targets, self.detections = [], []
        self.truth: dict[str, Any] = {
            "images": [{"id": 100 + i, "height": HEIGHT, "width": WIDTH} for i in range(images)],
            "categories": [{"id": id_, "name": str(id_)} for id_ in IDS],
            "annotations": [],
        }
        for i in range(images):
            count = 0 if i == 3 else int(rng.integers(1, most))
            boxes, labels, masks = random_objects(rng, count)
            crowd = (rng.uniform(size=count) < 0.15) & crowds
            areas = masks.sum(axis=(1, 2)).astype(np.float32).astype(float) if count else np.zeros(0)
            for box, label, mask, group, area in zip(boxes, labels, masks, crowd, areas, strict=True):
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                self.truth["annotations"].append(
                    {
                        "id": len(self.truth["annotations"]) + 1,
                        "image_id": 100 + i,
                        "category_id": IDS[label],
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": area,
                        "iscrowd": int(group),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
            self.targets.append((boxes, labels, crowd, areas, masks))
            wrong, wrong_labels, wrong_masks = random_objects(rng, 0 if i == 5 else int(rng.integers(0, most)))
            shift = rng.integers(-4, 5, (count, 2))
            moved = [np.roll(mask, (dy, dx), axis=(0, 1)) for mask, (dx, dy) in zip(masks, shift.tolist(), strict=True)]
            near = boxes + np.tile(shift, 2) * 1.3
            relabelled = np.where(rng.uniform(size=count) < 0.8, labels, rng.integers(0, CLASSES, count))
            found = np.concatenate([near, wrong]), np.concatenate([relabelled, wrong_labels])
            scores = np.round(rng.uniform(0, 1, len(found[0])), 2)  # some are equal
            pixels = np.stack([*moved, *wrong_masks]) if len(scores) else np.zeros((0, HEIGHT, WIDTH), bool)
            self.detections.append(
                Detections(
                    torch.from_numpy(found[0]), torch.from_numpy(scores), torch.from_numpy(found[1]), torch.from_numpy(pixels)
                )
            )

    def batch(self, rows: range, padding: int = 0) -> BoxTargets:
        """The objects of some images, padded to the largest number of them, on a canvas that may be larger."""
        most = max(len(self.targets[i][0]) for i in rows) + 1
        count = len(rows)
        boxes, labels = torch.zeros(count, most, 4), torch.full((count, most), -1)
        crowd, area = torch.zeros(count, most, dtype=torch.bool), torch.zeros(count, most)
        masks = torch.zeros(count, most, HEIGHT + padding, WIDTH + padding, dtype=torch.bool)
        for row, i in enumerate(rows):
            own = self.targets[i]
            n = len(own[0])
            boxes[row, :n], labels[row, :n] = torch.from_numpy(own[0]).float(), torch.from_numpy(own[1])
            crowd[row, :n], area[row, :n] = torch.from_numpy(own[2]), torch.from_numpy(own[3]).float()
            masks[row, :n, :HEIGHT, :WIDTH] = torch.from_numpy(own[4])
        return BoxTargets(boxes, labels, crowd, area, masks)

    def results(self, *, with_boxes: bool) -> list[dict[str, Any]]:
        """The detections in COCO's form. pycocotools takes the area of the box for that of the mask if there are both."""
        found = []
        for i, each in enumerate(self.detections):
            for box, score, label, mask in zip(*(x.numpy() for x in each), strict=True):
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                entry = {"image_id": 100 + i, "category_id": IDS[label], "score": float(score)}
                place = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]} if with_boxes else {"segmentation": rle}
                found.append(entry | place)
        return found


def by_pycocotools(truth: dict[str, Any], results: list[Any], kind: str, max_dets: int) -> dict[str, float]:
    """The numbers of pycocotools, from its tables: its own summary gives -1 for another number of detections than 100."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = json.loads(json.dumps(truth))
        data.createIndex()
        judge = COCOeval(data, data.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
        judge.params.maxDets = [1, 10, max_dets]
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]

    def mean(table: np.ndarray) -> float:
        return float(table[table > -1].mean()) if (table > -1).any() else -1.0

    areas = {"": 0, "_small": 1, "_medium": 2, "_large": 3}
    found = {f"{kind}_ap{name}": mean(precision[..., place, 2]) for name, place in areas.items()}
    found |= {f"{kind}_ar{name}": mean(recall[..., place, 2]) for name, place in areas.items()}
    found |= {f"{kind}_ap50": mean(precision[0, ..., 0, 2]), f"{kind}_ap75": mean(precision[5, ..., 0, 2])}
    found |= {f"{kind}_ar1": mean(recall[..., 0, 0]), f"{kind}_ar10": mean(recall[..., 0, 1])}
    found["classes"] = [mean(precision[:, :, k, 0, 2]) for k in range(len(IDS))]
    if max_dets == 100:  # here the summary itself can be compared
        with contextlib.redirect_stdout(io.StringIO()):
            judge.summarize()
        names = (
            "ap",
            "ap50",
            "ap75",
            "ap_small",
            "ap_medium",
            "ap_large",
            "ar1",
            "ar10",
            "ar",
            "ar_small",
            "ar_medium",
            "ar_large",
        )
        assert [found[f"{kind}_{name}"] for name in names] == pytest.approx(judge.stats.tolist(), abs=1e-12)
    return found


@pytest.mark.parametrize("max_dets", [11, 100, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_equal_pycocotools(seed: int, max_dets: int) -> None:
    scene = Scene(seed, most=150 if max_dets == 300 and seed else 40)
    metric = DetectionMetric(CLASSES, masks=True, max_dets=max_dets)
    for rows, padding in ((range(3), 0), (range(3, 4), 7), (range(4, 8), 3)):
        metric.update(scene.detections[rows.start : rows.stop], scene.batch(rows, padding))
    found = metric.compute()
    for kind in ("box", "mask"):
        expected = by_pycocotools(scene.truth, scene.results(with_boxes=kind == "box"), kind, max_dets)
        classes = expected.pop("classes")
        ours = found["per_class"] if kind == "mask" else found["per_class_box_AP"]
        assert [-1 if value is None else value for value in ours] == pytest.approx(classes, abs=1e-6)
        for name, value in expected.items():
            assert found.get(name, -1.0) == pytest.approx(value, abs=1e-6), name
        assert 0.01 < found[f"{kind}_ap"] < 0.95
    assert found["per_class"][-1] is None
    assert found["count"] == 8
    json.dumps(found)


def test_more_detections_find_more_than_a_hundred_objects() -> None:
    """Nuclei: 300 objects in an image, all found. With 100 detections, a third of them counts."""
    x, y = torch.meshgrid(torch.arange(20.0) * 10, torch.arange(15.0) * 10, indexing="ij")
    boxes = torch.stack([x, y, x + 8, y + 8], dim=-1).reshape(1, -1, 4)
    targets = BoxTargets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64))
    detections = [Detections(boxes[0], torch.linspace(1, 0.5, 300), torch.zeros(300, dtype=torch.int64))]
    for max_dets, expected in ((100, 1 / 3), (300, 1.0)):
        metric = DetectionMetric(1, max_dets=max_dets)
        metric.update(detections, targets)
        found = metric.compute()
        assert found["box_ar"] == pytest.approx(expected, abs=1e-9)
        assert found["box_ap"] == pytest.approx(34 / 101 if expected < 1 else 1.0, abs=1e-9)  # recalls 0 to 0.33
        assert found["box_ap_small"] == found["box_ap"]
        assert "box_ap_large" not in found


def test_results_load_in_pycocotools_and_score_the_same(tmp_path: Path) -> None:
    scene = Scene(2)
    write_coco(tmp_path / "found.json", ((100 + i, each) for i, each in enumerate(scene.detections)), IDS)
    (tmp_path / "truth.json").write_text(json.dumps(scene.truth))
    metric = DetectionMetric(CLASSES, masks=True)
    metric.update(scene.detections, scene.batch(range(8)))
    found = metric.compute()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert judge.stats[0] == pytest.approx(found["mask_ap"], abs=2e-3)  # equal scores are in another order, and boxes are rounded
    entries = json.loads((tmp_path / "found.json").read_text())
    assert {entry["category_id"] for entry in entries} <= set(IDS)
    assert isinstance(entries[0]["segmentation"]["counts"], str)
    write_coco(tmp_path / "none.json", [], IDS)
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_an_entry_by_hand() -> None:
    found = Detections(
        torch.tensor([[1.0, 2, 4, 8], [0, 0, 2, 2]]), torch.tensor([0.25, 0.75]), torch.tensor([3, 1]), torch.zeros(2, 9, 9).bool()
    )
    first, second = coco_entries("a", found, IDS)
    assert first == {
        "image_id": "a",
        "category_id": 3,
        "bbox": [0, 0, 2, 2],
        "score": 0.75,
        "segmentation": {"size": [9, 9], "counts": first["segmentation"]["counts"]},
    }
    assert (second["category_id"], second["bbox"]) == (90, [1, 2, 3, 6])


def test_ids_of_classes() -> None:
    assert class_ids(["dog", "emu", "cat", "elk"], {"cat": 3, "dog": 90}) == [90, 91, 3, 92]
    assert class_ids(["cat"], {}) == [1]


def objects(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> BoxTargets:
    return BoxTargets(torch.tensor([boxes]), torch.tensor([labels]), None if crowd is None else torch.tensor([crowd]))


def found_in(boxes: list[list[float]], scores: list[float], labels: list[int]) -> list[Detections]:
    return [Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))]


def test_confusion_by_hand() -> None:
    truth = objects([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 40, 60, 60]], [0, 1, 0, 0], [False, False, False, True])
    detections = found_in(
        [[0, 0, 10, 9], [20, 0, 30, 10], [70, 0, 80, 10], [5, 42, 9, 50], [0, 0, 10, 10]],
        [0.9, 0.8, 0.6, 0.7, 0.55],
        [0, 0, 1, 0, 1],
    )
    metric = DetectionMetric(2)
    metric.update(detections, truth)
    found = metric.compute()
    # The best threshold takes one detection, which is right: 2 * 1 / (1 + 3). With all of them it is 2 / (4 + 3).
    assert found["score_threshold"] == pytest.approx(0.9)
    assert found["best_f1"] == pytest.approx(0.5)
    assert found["confusion"] == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    metric = DetectionMetric(2)
    metric.update(detections, truth)
    counts = np.zeros((3, 3), np.int64)
    from unveil.detection_metrics import _count, _ious, _of_best

    best = _of_best(metric._detections[0], 100)
    _count(counts, best, metric._objects[0], _ious(best, metric._objects[0]), 0.0)
    # The exact box has the larger IoU with the first object, though its class is wrong; the one in the crowd is ignored.
    assert counts.tolist() == [[0, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_equal_scores_are_above_or_below_a_threshold_together() -> None:
    truth = objects([[0, 0, 10, 10]], [0])
    metric = DetectionMetric(1)
    metric.update(found_in([[0, 0, 10, 10], [50, 50, 60, 60], [70, 70, 80, 80]], [0.5, 0.5, 0.5], [0, 0, 0]), truth)
    found = metric.compute()
    assert (found["score_threshold"], found["best_f1"]) == (0.5, 0.5)  # 2 * 1 / (3 + 1)
    assert found["confusion"] == [[1, 0], [2, 0]]
    assert best_threshold([]) == (None, None)


def test_no_score_is_best_if_no_detection_is_correct() -> None:
    metric = DetectionMetric(1)
    metric.update(found_in([[50, 50, 60, 60], [70, 70, 80, 80]], [0.7, 0.3], [0, 0]), objects([[0, 0, 10, 10]], [0]))
    found = metric.compute()
    assert "score_threshold" not in found
    assert found["best_f1"] == 0
    assert found["confusion"] == [[0, 1], [1, 0]]  # of the detection with a score of at least 0.5


def test_images_without_objects_or_detections() -> None:
    empty = BoxTargets(torch.zeros(1, 1, 4), torch.full((1, 1), -1))
    metric = DetectionMetric(2)
    assert metric.compute() == {"count": 0}
    metric.update(found_in([], [], []), empty)
    found = metric.compute()
    assert found["count"] == 1
    assert "box_ap" not in found
    assert found["per_class"] == [None, None]
    metric.update(found_in([], [], []), objects([[0, 0, 4, 4]], [1]))
    found = metric.compute()
    assert (found["box_ap"], found["box_ar"], found["per_class"]) == (0.0, 0.0, [None, 0.0])
    metric.update(found_in([[0, 0, 4, 4]], [0.9], [1]), objects([[0, 0, 4, 4]], [1]))
    assert metric.compute()["box_ap"] == pytest.approx(51 / 101)  # half of the objects are found


def test_an_object_without_a_mask_is_ignored_where_masks_are_scored() -> None:
    masks = torch.zeros(1, 2, 20, 20, dtype=torch.bool)
    masks[0, 0, 2:8, 2:8] = True
    targets = objects([[2, 2, 8, 8], [10, 10, 18, 18]], [0, 0])._replace(masks=masks)
    drawn = torch.zeros(2, 20, 20, dtype=torch.bool)
    drawn[0, 2:8, 2:8], drawn[1, 10:18, 10:18] = True, True
    metric = DetectionMetric(1, masks=True)
    metric.update([found_in([[2, 2, 8, 8], [10, 10, 18, 18]], [0.5, 0.9], [0, 0])[0]._replace(masks=drawn)], targets)
    found = metric.compute()
    assert (found["mask_ap"], found["box_ap"]) == (1.0, 1.0)


@pytest.mark.parametrize("with_masks", [False, True])
def test_the_primary_number_is_one_that_is_there(with_masks: bool) -> None:
    """A model with masks may be tested on boxes alone."""
    masks = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    masks[0, 0, 2:8, 2:8] = True
    metric = DetectionMetric(1, masks=True)
    targets = objects([[2, 2, 8, 8]], [0])._replace(masks=masks if with_masks else None)
    metric.update([found_in([[2, 2, 8, 8]], [0.5], [0])[0]._replace(masks=masks[0])], targets)
    assert metric.compute()[metric.primary] == 1.0
    assert metric.primary == metric.primary_for(has_masks=with_masks) == ("mask_ap" if with_masks else "box_ap")


def test_a_run_names_the_primary_number_of_its_data() -> None:
    def subset(segments: Any) -> Any:
        return SimpleNamespace(dataset=SimpleNamespace(source=SimpleNamespace(objects=SimpleNamespace(segments=segments))))

    labelled: Any = SimpleNamespace(test_set=subset(None), validation_set=subset([]))
    metric = DetectionMetric(1, masks=True)
    assert LabelledImages.primary_of(labelled, metric) == "box_ap"
    assert LabelledImages.primary_of(labelled, metric, validation=True) == "mask_ap"
    labelled.validation_set = None  # then the test set is validated on
    assert LabelledImages.primary_of(labelled, metric, validation=True) == "box_ap"


def test_masks_are_encoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the masks of 300 objects in an image of 1500 x 1500 takes 640 MB."""
    masks = torch.zeros(1, 3, 40, 50, dtype=torch.bool)
    masks[:, :2, 5:9, 5:9] = True
    targets = BoxTargets(torch.tensor([[[5.0, 5, 9, 9]] * 3]), torch.tensor([[0, 0, -1]]), masks=masks)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [])
    seen = list[int]()
    monkeypatch.setattr("unveil.detection_metrics.encoded", lambda each: seen.append(each.nbytes) or encoded(each))
    DetectionMetric(1, masks=True).update([nothing], targets)
    assert seen == [40 * 50, 40 * 50]


def test_curves_by_hand() -> None:
    metric = DetectionMetric(2)
    metric.update(
        found_in([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]], [0.9, 0.8, 0.7], [0, 0, 0]),
        objects([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0]),
    )
    curves = metric.compute()["pr_curves"]
    assert curves["recalls"][::50] == [0.0, 0.5, 1.0]
    assert curves["iou50"] == curves["iou75"] == curves["per_class"][0]
    assert curves["iou50"][50] == 1.0
    assert curves["iou50"][51] == pytest.approx(2 / 3, abs=1e-4)
    assert curves["per_class"][1] is None


def test_masks_that_cannot_be_scored() -> None:
    targets = objects([[0, 0, 4, 4]], [0])._replace(masks=torch.ones(1, 1, 4, 4, dtype=torch.bool))
    one = found_in([[0, 0, 4, 4]], [0.9], [0])[0]
    for masks, message in [
        (None, "detections without masks"),
        (torch.rand(1, 28, 28), r"masks are torch.float32 \(1, 28, 28\): expected bool"),
        (torch.ones(1, 2, 2, dtype=torch.bool), "the detected masks have 2 x 2 pixels, which is not the size"),
    ]:
        with pytest.raises(UnveilError, match=message):
            DetectionMetric(1, masks=True).update([one._replace(masks=masks)], targets)
    with pytest.raises(UnveilError, match="detections of 2 images, and targets of 1"):
        DetectionMetric(1).update([one, one], targets)
    with pytest.raises(UnveilError, match="max_dets is 0"):
        DetectionMetric(1, max_dets=0)


@pytest.mark.parametrize("name", ["coco_mini", "nuclei_dsb2018/nuclei.tar.gz"])
def test_the_objects_themselves_as_detections_score_one(name: str) -> None:
    """From the files on: every AP and AR of real objects, found where they are, is 1."""
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is absent")
    source = open_parts(SHARED / name, targets=BoxTargets).makers["val"]()
    source = source.taken(list(range(0, len(source), 12)))
    dataset = ImageDataset(source, side=4096, memory=0)
    metric = DetectionMetric(len(source.classes), masks=True, max_dets=500)
    for rows in torch.arange(len(source)).split(4):
        batch = dataset.readable(rows)
        found = []
        for i, (height, width) in enumerate(batch.sizes.tolist()):
            real = (batch.targets.labels[i] >= 0) & ~batch.targets.crowd[i]
            masks = batch.targets.masks[i][real, :height, :width]
            found.append(
                Detections(batch.targets.boxes[i][real], torch.ones(int(real.sum())), batch.targets.labels[i][real], masks)
            )
        metric.update(found, batch.targets)
    score = metric.compute()
    assert score["box_ap"] == score["mask_ap"] == score["mask_ap_small"] == score["box_ar"] == score["mask_ar"] == 1.0
    assert {value for value in score["per_class"] if value is not None} == {1.0}
    confusion = np.array(score["confusion"])
    assert (confusion == np.diag(confusion.diagonal())).all()
    assert confusion.sum() == int((~source.objects.crowd).sum())
