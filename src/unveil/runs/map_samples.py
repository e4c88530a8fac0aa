"""A few test images of a segmentation with their true and predicted maps, for the report: some evenly spaced, and the worst."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.batch import Batch
from unveil.data.class_map_files import shown
from unveil.data.eval_transform import resize
from unveil.data.pixels import IGNORE, under_centres
from unveil.data.splits import Subset
from unveil.runs.labelled_data import write_arrays
from unveil.segmentation_metrics import iou_of_image

FILE = "maps.npz"
SIDE = 256
"""The long side of the pictures."""
WORST = 8


class Sample(NamedTuple):
    """A test image, shrunk."""

    number: int
    """Its place among the test images."""
    score: float
    """The mean IoU of its classes; NaN if no pixel has one."""
    image: NDArray[np.uint8]
    """(H, W, 3)."""
    true: NDArray[np.uint8]
    """(H, W)."""
    predicted: NDArray[np.uint8]


class MapSamples:
    """Keeps those images that the report shows.

    Args:
        classes: The number of classes.
        chosen: The images to show in any case.
    """

    def __init__(self, classes: int, chosen: Int[Tensor, " n"]) -> None:
        self.classes, self.chosen = classes, set(chosen.tolist())
        self.shown: list[Sample] = []
        self.worst: list[Sample] = []

    def add(self, batch: Batch, predictions: Int[Tensor, "B H W"], maps: Int[Tensor, "B H W"]) -> None:
        """Looks at whole images, their predictions and their true maps."""
        for row, (index, (height, width)) in enumerate(zip(batch.keys.tolist(), batch.sizes.tolist(), strict=True)):
            true, predicted = maps[row, :height, :width], predictions[row, :height, :width]
            score = iou_of_image(predicted, true, self.classes)
            is_bad = score is not None and (len(self.worst) < WORST or score < self.worst[-1].score)
            if index not in self.chosen and not is_bad:
                continue
            pixels: Any = batch.images[row, :, :height, :width].permute(1, 2, 0).cpu().numpy()
            sample = thumbnail(index, math.nan if score is None else score, pixels, true.cpu().numpy(), predicted.cpu().numpy())
            if index in self.chosen:
                self.shown.append(sample)
            if is_bad:
                self.worst = sorted([*self.worst, sample], key=lambda each: each.score)[:WORST]

    def write(self, folder: Path, subset: Subset, colours: Tensor) -> None:
        """Writes the images into a run folder.

        Args:
            folder: The folder.
            subset: The dataset of the images.
            colours: (K, 3) colour of each class.
        """
        samples = [*self.shown, *self.worst]
        if not samples:
            return
        height, width = (max(sample.image.shape[axis] for sample in samples) for axis in range(2))
        images = np.full((len(samples), height, width, 3), 255, np.uint8)
        maps = np.full((2, len(samples), height, width), IGNORE, np.uint8)
        for row, sample in enumerate(samples):
            rows, columns = sample.true.shape
            images[row, :rows, :columns] = sample.image
            maps[0, row, :rows, :columns], maps[1, row, :rows, :columns] = sample.true, sample.predicted
        arrays = {
            "images": images,
            "true": maps[0],
            "predicted": maps[1],
            "scores": np.array([sample.score for sample in samples]),
            "worst": np.arange(len(samples)) >= len(self.shown),
            "names": np.array(Subset(subset.dataset, torch.tensor([sample.number for sample in samples])).names),
            "colours": colours.cpu().numpy(),
        }
        write_arrays(folder / FILE, arrays)


def thumbnail(index: int, score: float, image: Any, true: NDArray[Any], predicted: NDArray[Any]) -> Sample:
    """A shrunk image and its maps, of which each pixel takes the class under its centre."""
    height, width = true.shape
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    rows, columns = under_centres(height, size[0]), under_centres(width, size[1])
    small: Any = resize(shown(image), size)
    maps = [each[rows[:, None], columns].astype(np.uint8) for each in (true, predicted)]
    return Sample(index, score, small, *maps)
