"""The detections of a test set: all of them as COCO writes results, and pictures of a few images for the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unveil.coco_results import class_ids, write_coco
from unveil.data.batch import Batch
from unveil.data.splits import Subset
from unveil.data.targets import BoxTargets
from unveil.detection_files import SHOWN_SCORE, drawn
from unveil.detection_metrics import errors_of_image
from unveil.detections import Detections
from unveil.runs.labelled_data import write_arrays

FILE, RESULTS = "boxes.npz", "predictions.json"
SIDE = 400
"""The long side of the pictures."""
WORST = 8


class Sample(NamedTuple):
    """A test image with its objects, shrunk."""

    place: int
    """Among the test images."""
    missed: int
    """Objects that no detection shows."""
    wrong: int
    """Detections of no object."""
    true: NDArray[np.uint8]
    """(H, W, 3) the image with its objects."""
    predicted: NDArray[np.uint8]
    """The image with what was detected."""
    classes: NDArray[np.bool_]
    """(K,) the classes of either."""


class BoxSamples:
    """Keeps the detections of all test images, and the pictures of those that the report shows.

    Args:
        classes: The names of the classes.
        chosen: The images to show in any case.
    """

    def __init__(self, classes: Sequence[str], chosen: Int[Tensor, " n"]) -> None:
        self.classes, self.chosen = classes, set(chosen.tolist())
        self.shown: list[Sample] = []
        self.worst: list[Sample] = []
        self.found: list[tuple[int, Detections]] = []

    def add(self, batch: Batch, predictions: Sequence[Detections], targets: BoxTargets) -> None:
        """Looks at whole images, with what was detected and their objects."""
        for row, (index, (height, width)) in enumerate(zip(batch.keys.tolist(), batch.sizes.tolist(), strict=True)):
            found = predictions[row]
            self.found.append((index, found))
            best = found.above(SHOWN_SCORE)
            missed, wrong = errors_of_image(best, targets, row)
            is_bad = missed + wrong > 0 and (len(self.worst) < WORST or missed + wrong > errors(self.worst[-1]))
            if index not in self.chosen and not is_bad:
                continue
            pixels: Any = batch.images[row, :, :height, :width].permute(1, 2, 0).cpu().numpy()
            true = true_objects(targets, row, height, width)
            pictures = tuple(drawn(pixels, each, self.classes, longest=SIDE, names=False) for each in (true, best))
            has = np.zeros(len(self.classes), bool)
            has[torch.cat([true.labels, best.labels]).numpy()] = True
            sample = Sample(index, missed, wrong, pictures[0], pictures[1], has)
            if index in self.chosen:
                self.shown.append(sample)
            if is_bad:
                self.worst = sorted([*self.worst, sample], key=errors, reverse=True)[:WORST]

    def write(self, folder: Path, subset: Subset) -> None:
        """Writes the detections and the pictures into a run folder. Does nothing if there are none.

        Args:
            folder: The folder.
            subset: The dataset of the images.
        """
        objects = subset.dataset.source.objects
        if not self.found or objects is None:
            return
        ids = class_ids(self.classes, objects.category_ids)
        write_coco(folder / RESULTS, ((objects.image_ids[index], found) for index, found in self.found), ids)
        samples = [*self.shown, *self.worst]
        if not samples:
            return
        height, width = (max(sample.true.shape[axis] for sample in samples) for axis in range(2))
        pictures = np.full((2, len(samples), height, width, 3), 255, np.uint8)
        for place, sample in enumerate(samples):
            for kind, picture in enumerate((sample.true, sample.predicted)):
                pictures[kind, place, : picture.shape[0], : picture.shape[1]] = picture
        arrays = {
            "true": pictures[0],
            "predicted": pictures[1],
            "missed": np.array([sample.missed for sample in samples]),
            "wrong": np.array([sample.wrong for sample in samples]),
            "classes": np.array([sample.classes for sample in samples]),
            "worst": np.arange(len(samples)) >= len(self.shown),
            "names": np.array(Subset(subset.dataset, torch.tensor([sample.place for sample in samples])).names),
        }
        write_arrays(folder / FILE, arrays)


def errors(sample: Sample) -> int:
    """How many objects and detections of an image do not match."""
    return sample.missed + sample.wrong


def true_objects(targets: BoxTargets, row: int, height: int, width: int) -> Detections:
    """The objects of an image as if they had been detected with certainty."""
    real = targets.labels[row] >= 0
    boxes, labels = targets.boxes[row][real].cpu(), targets.labels[row][real].cpu()
    masks = None if targets.masks is None else targets.masks[row][real][:, :height, :width].cpu()
    return Detections(boxes, torch.ones(len(labels)), labels, masks)
