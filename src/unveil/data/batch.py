"""Pictures on their way to a loss."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Batch(NamedTuple):
    """Some samples of a run."""

    images: Tensor
    """(B, C, H, W). Before augmentation: uint8 or uint16, each picture in the upper left corner. After: float, normalised."""
    sizes: Int[Tensor, "B 2"]
    """Height and width of each picture inside `images`."""
    keys: Int[Tensor, " B"]
    """What is drawn at random for a sample is a function of its key: see `unveil.blocks.chance`."""
    labels: Tensor | None = None
    """(B,) classes, -1 where there is none; or (B, K) shares of classes after mixing."""

    def to(self, device: torch.device) -> "Batch":
        """The same on another device, without waiting for the copy."""
        images, sizes, keys = (part.to(device, non_blocking=True) for part in self[:3])
        return Batch(images, sizes, keys, None if self.labels is None else self.labels.to(device, non_blocking=True))

    def first(self, count: int) -> "Batch":
        """The first so many samples."""
        labels = None if self.labels is None else self.labels[:count]
        return Batch(self.images[:count], self.sizes[:count], self.keys[:count], labels)

    def pinned(self) -> "Batch":
        """The same in page-locked memory, which a GPU copies from on its own."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return Batch(self.images.pin_memory(), self.sizes.pin_memory(), self.keys.pin_memory(), labels)
