"""Average precision of boxes and masks as COCO computes it, by faster-coco-eval; precision-recall curves, and the confusion matrix.

A detection is correct if it overlaps an object of its class, that no better detection has taken, by at least some IoU. AP is the
mean precision over 101 recalls, over IoU from 0.5 to 0.95 and over classes (https://cocodataset.org/#detection-eval).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unveil.coco_results import run_lengths_of
from unveil.data.rle import Patch, encoded, encoded_patch
from unveil.data.targets import BoxTargets
from unveil.detections import Detections
from unveil.errors import UnveilError
from unveil.metrics import MAX_CONFUSION, Metric

RANGES = {"all": 0, "small": 1, "medium": 2, "large": 3}
"""Areas in COCO's order: below 32 x 32 pixels is small, above 96 x 96 is large."""
IOU50, IOU75 = 0, 5
"""Places of the IoU thresholds 0.5 and 0.75 among 0.5, 0.55, ..., 0.95."""
MATCH = 0.5
"""The IoU from which a detection is of an object, for the confusion matrix."""
UNKNOWN_THRESHOLD = 0.5
"""The lowest score of the detections in the confusion matrix, if none is correct, so that no score is better than others."""
Rle = dict[str, Any]


class _Found(NamedTuple):
    """Detections, or objects, of one image on the CPU."""

    boxes: NDArray[np.float64]
    """(n, 4) left, top, width, height."""
    labels: list[int]
    scores: list[float]
    crowd: list[bool]
    areas: list[float]
    mask_areas: list[float]
    masks: list[Rle | None] | None
    """None in place of the mask of an object that has only a box."""
    size: tuple[int, int]
    """Height and width of the masks."""


class DetectionMetric(Metric):
    """AP and AR of boxes and masks.

    Predictions and targets are in pixels of the original image: small and large objects are told apart by their area there.

    Args:
        classes: The number of classes.
        masks: Whether detections have masks, which are scored if the targets have masks as well. An object that has only a box is
            then ignored: a detection of it counts neither as right nor as wrong.
        max_dets: Detections of an image that are counted, those with the highest scores. COCO counts 100. Use more if images have
            more objects, since the rest of them cannot be found otherwise.
    """

    def __init__(self, classes: int, *, masks: bool = False, max_dets: int = 100) -> None:
        if max_dets < 1:
            raise UnveilError(f"max_dets is {max_dets}: expected 1 or more detections")
        self.classes, self.masks, self.max_dets = classes, masks, max_dets
        self.primary = self.primary_for(has_masks=True)
        self._objects: list[_Found] = []
        self._detections: list[_Found] = []

    def primary_for(self, *, has_masks: bool) -> str:
        """AP of masks if there are any to compare with, else of boxes."""
        return "mask_ap" if self.masks and has_masks else "box_ap"

    def update(self, predictions: Sequence[Detections], targets: BoxTargets) -> None:
        """Adds the detections and the objects of a batch of images.

        Raises:
            UnveilError: If a mask does not have the size of the image.
        """
        if len(predictions) != len(targets.labels):
            raise UnveilError(f"there are detections of {len(predictions)} images, and targets of {len(targets.labels)}")
        for row, found in enumerate(predictions):
            detections = _detections(found, self.masks)
            self._objects.append(_objects(targets, row, detections.size, self.masks))
            self._detections.append(detections)

    def compute(self) -> dict[str, Any]:
        """The numbers of COCO, and what a report draws.

        Returns:
            "box_ap", "box_ap50", "box_ap75", "box_ap_small", ..., and "box_ar", "box_ar_small", ...: the recall with `max_dets`
            detections, and "box_ar1" and "box_ar10" with one and with ten; the same for "mask". A number is missing if there are no
            such objects. "per_class" is the AP of each class, None for a class without objects. "pr_curves" has the precision at
            101 "recalls" for IoU 0.5 and 0.75, and for each class. "confusion" has the background as its last row and column, at
            IoU 0.5 and "score_threshold", the score with the highest F1, "best_f1".
        """
        kinds: list[Literal["box", "mask"]] = ["box"]
        has_masks = any(each.masks is not None for each in self._objects)
        self.primary = self.primary_for(has_masks=has_masks)
        if self.masks and has_masks:
            kinds.append("mask")
        found: dict[str, Any] = {}
        if not self._objects:
            return {"count": 0}
        tables = {kind: self._evaluate(kind) for kind in kinds}
        for kind, (precision, recall) in tables.items():
            found |= numbers(kind, precision, recall, self.max_dets)
        main = tables[kinds[-1]][0]
        found["per_class"] = _per_class(main)
        found["per_class_AP50"] = _per_class(main[IOU50 : IOU50 + 1])
        if len(kinds) > 1:
            found["per_class_box_AP"] = _per_class(tables["box"][0])
        found["pr_curves"] = curves(main)
        found |= self._confusion()
        return {key: value for key, value in found.items() if value is not None} | {"count": len(self._objects)}

    def _evaluate(self, kind: Literal["box", "mask"]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """COCO's tables: precision (IoU, recall, class, area, count), and recall (IoU, class, area, count); -1 without objects."""
        truth, found = (_dataset(each, self.classes, kind) for each in (self._objects, self._detections))
        judge = COCOeval_faster(truth, found, "bbox" if kind == "box" else "segm", print_function=lambda *_: None)
        judge.params.maxDets = sorted({1, min(10, self.max_dets), self.max_dets})
        judge.evaluate()
        judge.accumulate()
        return np.asarray(judge.eval["precision"]), np.asarray(judge.eval["recall"])

    def _confusion(self) -> dict[str, Any]:
        pairs = [(_of_best(found, self.max_dets), objects) for found, objects in zip(self._detections, self._objects, strict=True)]
        overlaps = [_ious(found, objects) for found, objects in pairs]
        threshold, f1 = best_threshold([(*pair, iou) for pair, iou in zip(pairs, overlaps, strict=True)])
        result: dict[str, Any] = {"score_threshold": threshold, "best_f1": f1}
        if self.classes <= MAX_CONFUSION and f1 is not None:
            counts = np.zeros((self.classes + 1, self.classes + 1), np.int64)
            for (found, objects), iou in zip(pairs, overlaps, strict=True):
                _count(counts, found, objects, iou, UNKNOWN_THRESHOLD if threshold is None else threshold)
            result |= {"confusion": counts.tolist(), "background": True, "unit": "objects"}
        return result


def _detections(found: Detections, with_masks: bool) -> _Found:
    boxes = corners_to_sides(found.boxes)
    masks: list[Rle | None] | None = None
    areas = mask_areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    size = (0, 0)
    if with_masks:
        if found.masks is None:
            raise UnveilError("detections without masks cannot be scored as masks: expected run lengths, or bool (n, H, W)")
        drawn = run_lengths_of(found.masks)
        mask_areas = [float(each) for each in coco_mask.area(drawn)] if drawn else []
        size = (drawn[0]["size"][0], drawn[0]["size"][1]) if drawn else size
        masks = list(drawn)
    scores, labels = found.scores.detach().double().cpu().tolist(), found.labels.cpu().tolist()
    return _Found(boxes, labels, scores, [False] * len(labels), areas, mask_areas, masks, size)


def _objects(targets: BoxTargets, row: int, size: tuple[int, int], with_masks: bool) -> _Found:
    """The objects of an image, whose masks have the size of those that were detected, if there are any."""
    real = targets.labels[row] >= 0
    boxes, labels = corners_to_sides(targets.boxes[row][real]), targets.labels[row][real].cpu().tolist()
    crowd = [False] * len(boxes) if targets.crowd is None else targets.crowd[row][real].cpu().tolist()
    areas = (boxes[:, 2] * boxes[:, 3]).tolist() if targets.area is None else targets.area[row][real].double().cpu().tolist()
    masks: list[Rle | None] | None = None
    if with_masks and targets.masks is not None:
        canvas = targets.masks.shape[2:]
        size = size if all(size) else (canvas[0], canvas[1])
        places = real.nonzero()[:, 0].tolist()  # one after the other: a copy of all masks of a large image takes gigabytes
        masks = [_run_lengths(targets.masks[row, place].cpu().numpy(), size) for place in places]
    return _Found(boxes, labels, [1.0] * len(labels), crowd, areas, areas, masks, size)


def _run_lengths(canvas: NDArray[np.bool_], size: tuple[int, int]) -> Rle | None:
    """A mask in the upper left corner of a canvas, with this height and width; None if it is empty."""
    height, width = size
    if height > canvas.shape[0] or width > canvas.shape[1] or canvas[height:].any() or canvas[:, width:].any():
        raise UnveilError(
            f"the detected masks have {width} x {height} pixels, which is not the size of their image: scale them to it"
        )
    mask = canvas[:height, :width]
    return encoded(mask[None])[0] if mask.any() else None


def corners_to_sides(boxes: Float[Tensor, "n 4"]) -> NDArray[np.float64]:
    """Boxes as COCO has them: left, top, width and height."""
    corners = boxes.detach().double().cpu().numpy().reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _dataset(images: Sequence[_Found], classes: int, kind: Literal["box", "mask"]) -> COCO:
    """Objects or detections as COCO holds them. Ids begin with 1, since 0 means no match there."""
    entries: list[dict[str, Any]] = []
    for image, found in enumerate(images, 1):
        for row, label in enumerate(found.labels):
            entry = {
                "id": len(entries) + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": found.boxes[row].tolist(),
                "iscrowd": int(found.crowd[row]),
                "area": found.areas[row] if kind == "box" else found.mask_areas[row],
                "score": found.scores[row],
            }
            if kind == "mask" and found.masks is not None:
                mask = found.masks[row]
                if mask is None:  # an object that has only a box: what lies in it is ignored, as in a crowd
                    entry["iscrowd"] = 1
                entry["segmentation"] = _rectangle(found, row) if mask is None else mask
            entries.append(entry)
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": number, "height": found.size[0], "width": found.size[1]} for number, found in enumerate(images, 1)],
        "annotations": entries,
        "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
    }
    dataset.createIndex()
    return dataset


def _rectangle(found: _Found, row: int) -> Rle:
    left, top, width, height = found.boxes[row].round().astype(int).tolist()
    rows, columns = min(height, found.size[0] - top), min(width, found.size[1] - left)
    return encoded_patch(Patch(top, left, np.ones((max(0, rows), max(0, columns)), bool)), *found.size)


def numbers(kind: str, precision: NDArray[np.float64], recall: NDArray[np.float64], max_dets: int) -> dict[str, float | None]:
    """The named numbers of COCO from its tables, for the largest number of detections; None where there are no objects."""
    found = {
        f"{kind}_ap": _mean(precision[:, :, :, 0, -1]),
        f"{kind}_ap50": _mean(precision[IOU50, :, :, 0, -1]),
        f"{kind}_ap75": _mean(precision[IOU75, :, :, 0, -1]),
    }
    found |= {f"{kind}_ap_{name}": _mean(precision[:, :, :, place, -1]) for name, place in RANGES.items() if place}
    found |= {f"{kind}_ar1": _mean(recall[:, :, 0, 0]), f"{kind}_ar10": _mean(recall[:, :, 0, 1])} if max_dets > 10 else {}
    found[f"{kind}_ar"] = _mean(recall[:, :, 0, -1])
    return found | {f"{kind}_ar_{name}": _mean(recall[:, :, place, -1]) for name, place in RANGES.items() if place}


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _per_class(precision: NDArray[np.float64]) -> list[float | None]:
    return [_mean(precision[:, :, label, 0, -1]) for label in range(precision.shape[2])]


def curves(precision: NDArray[np.float64]) -> dict[str, Any]:
    """Precision at 101 recalls from 0 to 1: the mean over classes at IoU 0.5 and 0.75, and each class at 0.5."""

    def points(table: NDArray[np.float64]) -> list[float]:
        return [round(float(value), 4) for value in table]

    known = [label for label in range(precision.shape[2]) if precision[IOU50, 0, label, 0, -1] > -1]
    means = {
        name: points(precision[place][:, known, 0, -1].mean(axis=1)) if known else []
        for name, place in (("iou50", IOU50), ("iou75", IOU75))
    }
    of_class = [points(precision[IOU50, :, label, 0, -1]) if label in known else None for label in range(precision.shape[2])]
    return {"recalls": [round(i / 100, 2) for i in range(101)], **means, "per_class": of_class}


def _of_best(found: _Found, count: int) -> _Found:
    """The `count` detections of an image with the highest scores, the best first."""
    order = np.argsort([-score for score in found.scores], kind="stable")[:count]
    return found._replace(
        boxes=found.boxes[order], labels=[found.labels[i] for i in order], scores=[found.scores[i] for i in order], masks=None
    )


def _ious(found: _Found, objects: _Found) -> NDArray[np.float64]:
    """The IoU of each detection with each object; with a crowd, the share of the detection that lies in it."""
    if not found.labels or not objects.labels:
        return np.zeros((len(found.labels), len(objects.labels)))
    return np.asarray(coco_mask.iou(found.boxes, objects.boxes, [int(each) for each in objects.crowd]))


def hits_of_image(found: _Found, objects: _Found, iou: NDArray[np.float64]) -> list[bool | None]:
    """Whether each detection, the best first, shows an object of its class that no better one shows; None if it is in a crowd."""
    crowd, taken = np.array(objects.crowd, bool), np.zeros(len(objects.labels), bool)
    labels, hits = np.array(objects.labels), list[bool | None]()
    for row, label in enumerate(found.labels):
        fits = (labels == label) & (iou[row] >= MATCH) if len(labels) else np.zeros(0, bool)
        free = fits & ~taken & ~crowd
        if free.any():
            taken[np.where(free, iou[row], -1.0).argmax()] = True
        hits.append(None if not free.any() and (fits & crowd).any() else bool(free.any()))
    return hits


def errors_of_image(found: Detections, targets: BoxTargets, row: int) -> tuple[int, int]:
    """The objects of image `row` of a batch that no detection shows, and the detections of no object, by boxes at IoU 0.5."""
    detections, objects = _detections(found, False), _objects(targets, row, (0, 0), False)
    detections = _of_best(detections, len(detections.labels))
    hits = hits_of_image(detections, objects, _ious(detections, objects))
    return objects.crowd.count(False) - hits.count(True), hits.count(False)


def best_threshold(images: Sequence[tuple[_Found, _Found, NDArray[np.float64]]]) -> tuple[float | None, float | None]:
    """The score with the highest F1 over all classes, when detections of at least this score are taken; and this F1.

    Both are None if there are no objects or no detections; the score is None as well if no detection is correct.
    """
    scores, correct, total = list[float](), list[bool](), 0
    for found, objects, iou in images:
        total += objects.crowd.count(False)
        for score, is_hit in zip(found.scores, hits_of_image(found, objects, iou), strict=True):
            if is_hit is not None:
                scores.append(score)
                correct.append(is_hit)
    if not scores or not total:
        return None, None
    order = np.argsort([-score for score in scores], kind="stable")
    hits = np.cumsum(np.array(correct)[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + total)
    ranked = np.array(scores)[order]
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # equal scores are taken together
    best = int(f1.argmax())
    return (float(ranked[best]), float(f1[best])) if f1[best] > 0 else (None, 0.0)


def _count(counts: NDArray[np.int64], found: _Found, objects: _Found, iou: NDArray[np.float64], threshold: float) -> None:
    """Adds an image to the confusion matrix. Pairs are made of any classes, those with the largest IoU first."""
    background = len(counts) - 1
    taken = [score >= threshold for score in found.scores]
    pairs = [
        (-iou[i, j], found.labels[i] != objects.labels[j], i, j)
        for i, j in np.argwhere(iou >= MATCH).tolist()
        if taken[i] and not objects.crowd[j]
    ]
    matched, seen = set[int](), set[int]()
    for _, _, i, j in sorted(pairs):
        if i not in matched and j not in seen:
            matched.add(i)
            seen.add(j)
            counts[objects.labels[j], found.labels[i]] += 1
    for j, label in enumerate(objects.labels):
        if j not in seen and not objects.crowd[j]:
            counts[label, background] += 1
    for i, label in enumerate(found.labels):
        in_crowd = any(objects.crowd[j] and iou[i, j] >= MATCH for j in range(len(objects.labels)))
        if taken[i] and i not in matched and not in_crowd:
            counts[background, label] += 1
