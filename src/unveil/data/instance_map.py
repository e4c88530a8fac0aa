"""Draws the masks of the objects of an image as a class map: from instance to semantic segmentation.

Of objects that overlap, the smaller one is on top, so that large ones do not hide it. Crowds, and objects that have only a box,
whose pixels are not known, lie under all of them and have no class. What belongs to no object is the background.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.from_pillow import upright_size
from unveil.data.objects import NO_MASK, Frame, Objects
from unveil.data.pixels import IGNORE, ClassMap


class InstanceMap(NamedTuple):
    """The class map of an image, which is drawn when the size of the image is known."""

    objects: Objects
    """Those of all images."""
    table: NDArray[np.uint8]
    """The class of an object by its label; `IGNORE` for none."""
    background: int
    image: int
    """Its index."""

    def drawn(self, frame: Frame) -> ClassMap:
        """The class of each pixel of the upright image (H, W).

        Raises:
            Unreadable: If the annotation does not fit the image, or a mask is damaged.
        """
        found = self.objects.of_image(self.image, frame, None)
        canvas: ClassMap = np.full(upright_size(frame.height, frame.width, frame.turn), self.background, np.uint8)
        masks = found.masks or [NO_MASK] * len(found.labels)
        areas = [int(mask.pixels.sum()) for mask in masks]
        unclear = [bool(crowd) or not area for crowd, area in zip(found.crowd, areas, strict=True)]
        for i in sorted(range(len(masks)), key=lambda i: (not unclear[i], -areas[i])):
            top, left, pixels = masks[i]
            if areas[i]:
                part = canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]]
                part[pixels] = IGNORE if unclear[i] else self.table[found.labels[i]]
            else:
                x, y, right, bottom = found.boxes[i].tolist()
                canvas[math.floor(y) : math.ceil(bottom), math.floor(x) : math.ceil(right)] = IGNORE
        return canvas
