"""An augmentation after which a frozen teacher adds its features of the images to the batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from unveil.data.batch import Batch
from unveil.data.targets import Draw


class Taught:
    """The augmentation of a method, and a teacher that sees each augmented image as a whole.

    Args:
        augmentation: The augmentation.
        teacher: Maps normalised images (B, C, H, W) to features of each patch (B, N, F), which become `Batch.features`.
    """

    def __init__(self, augmentation: Any, teacher: Callable[[Tensor], Tensor]) -> None:
        self.augmentation, self.teacher = augmentation, teacher

    @property
    def config(self) -> Any:
        """The options of the augmentation."""
        return self.augmentation.config

    @property
    def draw_early(self) -> Draw | None:
        """That of the augmentation."""
        found: Draw | None = self.augmentation.draw_early
        return found

    def __call__(self, batch: Batch) -> Batch:
        augmented = self.augmentation(batch)
        images, sizes, keys, targets = augmented.images, augmented.sizes, augmented.keys, augmented.targets
        return Batch(images, sizes, keys, targets, self.teacher(images))
