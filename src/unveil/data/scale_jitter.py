"""Scale jitter: images are enlarged or shrunk at random, cropped to one size, and padded where they are smaller.

Large-scale jitter for detection draws the scale from 0.1 to 2 of the size at which the image fits (Ghiasi et al., 2020, "Simple
Copy-Paste", section 3). The crop is a box in the stored image, which may reach over its edge. Then the image is at the upper left,
and the rest is the mean colour, which is 0 after normalisation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.blocks.stateless_random import Stream, uniform
from unveil.data.augment import standardise
from unveil.data.batch import Batch
from unveil.data.resize import crop_resize
from unveil.data.targets import Geometry
from unveil.errors import UnveilError

Fit = Literal["inside", "pixels"]
"""What scale 1 is: the whole image fits into the result, or a pixel of the image is a pixel of the result."""


@dataclass(frozen=True, kw_only=True)
class ScaleJitter:
    """Augments a batch by a random scale, a random crop of one size and a flip.

    `draw` is a function of the keys of the samples, so it is the same in a run that was resumed, and with any number of processes.
    """

    image_size: Size
    """Height and width of the result."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scales: tuple[float, float] = (0.1, 2.0)
    """The smallest and the largest scale; each between them is as likely. 1 and 1 draw none."""
    fit: Fit = "inside"
    flip: bool = True
    """Whether half of the images are mirrored left to right."""
    change: Callable[[Tensor, Tensor], Tensor] | None = None
    """What else happens to images (B, C, S, T) between 0 and 1, or uint8, with the keys of their samples, such as a distortion."""

    def __post_init__(self) -> None:
        low, high = self.scales
        if not 0 < low <= high:
            raise UnveilError(f"the scales are {low:g} to {high:g}: expected two numbers above 0, the smaller one first")

    def draw(self, sizes: Int[Tensor, "B 2"], keys: Int[Tensor, " B"]) -> Geometry:
        """Draws the crop and the flip of each image.

        Args:
            sizes: Height and width of each image.
            keys: The keys of the samples.
        """
        boxes = jittered_boxes(sizes.float(), keys, self.image_size, self.scales, self.fit)
        if not self.flip:
            return Geometry(boxes, self.image_size)
        flips = uniform(keys, 1, stream=Stream.FLIP)[:, 0] < 0.5
        over = (boxes[:, 1] + boxes[:, 3] - sizes[:, 1]).clamp(min=0)  # to the right of the image
        boxes[:, 1] -= torch.where(flips, over, 0.0)  # so that the padding is on the right of a flipped image as well
        return Geometry(boxes, self.image_size, flips)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with normalised images (B, C, S, T), the `sizes` of what is not padding, and the targets."""
        return self.apply(batch, self.draw(batch.sizes, batch.keys))

    def apply(self, batch: Batch, geometry: Geometry) -> Batch:
        """`__call__` with a geometry that was drawn."""
        canvas = batch.images.shape[2:]
        unit = max(each / side for each, side in zip(canvas, self.image_size, strict=True)) if self.fit == "inside" else 1.0
        most = unit / self.scales[0] + 1 / min(self.image_size)  # boxes are rounded to pixels
        images = crop_resize(batch.images, geometry.boxes, batch.sizes, geometry.size, geometry.flip, most)
        if self.change is not None:
            images = self.change(images, batch.keys)
        seen = inside(geometry, batch.sizes)
        images = standardise(images, self.mean, self.std).masked_fill_(~seen[:, None], 0.0)
        targets = None if batch.targets is None else batch.targets.transformed(geometry)
        sizes = torch.stack([seen.any(dim=2).sum(dim=1), seen.any(dim=1).sum(dim=1)], dim=1)
        return Batch(images, sizes, batch.keys, targets)


def jittered_boxes(
    sizes: Float[Tensor, "B 2"], keys: Int[Tensor, " B"], image_size: Size, scales: tuple[float, float], fit: Fit = "inside"
) -> Float[Tensor, "B 4"]:
    """Boxes (top, left, height, width), whole numbers, for results of `image_size` at a random scale and place.

    A box that is larger than the image begins at its upper left corner; any other lies at a random place inside of it.
    """
    u = uniform(keys, 3, stream=Stream.CROP)
    result = torch.tensor(image_size, dtype=torch.float32, device=sizes.device)
    each = sizes / result  # pixels of the image for a pixel of the result, by which its height, or its width, fits
    unit = each.amax(dim=1) if fit == "inside" else torch.ones_like(each[:, 0])
    step = unit / (scales[0] + (scales[1] - scales[0]) * u[:, 0])
    sides = (result * step[:, None]).round().clamp(min=1)
    start = (u[:, 1:] * ((sizes - sides).clamp(min=0) + 1)).floor()
    return torch.cat([torch.minimum(start, (sizes - sides).clamp(min=0)), sides], dim=1)


def inside(geometry: Geometry, sizes: Int[Tensor, "B 2"]) -> Bool[Tensor, "B S T"]:
    """Which pixels of the results have their centre in the image; `crop_resize` makes the others black."""
    masks = []
    for axis in range(2):
        count = geometry.size[axis]
        start, length = geometry.boxes[:, axis, None], geometry.boxes[:, axis + 2, None]
        centre = start + (torch.arange(count, device=start.device) + 0.5) * (length / count)
        masks.append((centre > 0) & (centre < sizes[:, axis, None]))
    rows, columns = masks
    if geometry.flip is not None:
        columns = torch.where(geometry.flip[:, None], columns.flip(1), columns)
    return rows[:, :, None] & columns[:, None, :]
