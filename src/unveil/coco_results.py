"""Detections as COCO writes results: a list of boxes and masks with scores, which COCO's tools load beside the annotations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.atomic_files import replacing
from unveil.data.rle import as_text, encoded
from unveil.detections import Detections
from unveil.errors import UnveilError


def write_coco(path: Path, images: Iterable[tuple[Any, Detections]], category_ids: Sequence[Any]) -> None:
    """Writes the detections of images as a JSON list, which `COCO.loadRes` of pycocotools reads.

    Args:
        path: The file.
        images: The id of each image in the annotations, and its detections in pixels of the original.
        category_ids: The id of each class in the annotations: see `class_ids`.

    Raises:
        UnveilError: If a mask does not have the size of its image.
    """
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        separator = "["
        for image_id, found in images:
            for entry in coco_entries(image_id, found, category_ids):
                file.write(separator + "\n" + json.dumps(entry))
                separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def coco_entries(image_id: Any, found: Detections, category_ids: Sequence[Any]) -> list[dict[str, Any]]:
    """The detections of one image, the best first; for arguments and errors, see `write_coco`."""
    boxes, scores, labels = found.boxes.double().cpu(), found.scores.double().cpu(), found.labels.cpu().tolist()
    masks = None if found.masks is None else run_lengths_of(found.masks)
    entries = []
    for row in scores.argsort(descending=True, stable=True).tolist():
        left, top, right, bottom = boxes[row].tolist()
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[labels[row]],
            "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
            "score": round(float(scores[row]), 6),
        }
        entries.append(entry if masks is None else entry | {"segmentation": masks[row]})
    return entries


def class_ids(names: Sequence[str], category_ids: Mapping[str, Any]) -> list[Any]:
    """The id of each class by `Source.objects.category_ids`; for a class without one, the next free number."""
    free = max((id_ for id_ in category_ids.values() if isinstance(id_, int)), default=0) + 1
    found = []
    for name in names:
        if name in category_ids:
            found.append(category_ids[name])
        else:
            found.append(free)
            free += 1
    return found


def run_lengths_of(masks: Tensor | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Masks of detections as compressed run lengths, with their counts as text.

    Raises:
        UnveilError: If they are neither run lengths nor bool at the size of the image.
    """
    if not isinstance(masks, Tensor):
        return [{"size": [int(side) for side in each["size"]], "counts": as_text(each["counts"])} for each in masks]
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise UnveilError(f"masks are {masks.dtype} {tuple(masks.shape)}: expected bool (n, H, W) at the size of the image")
    return encoded(masks.cpu().numpy())
