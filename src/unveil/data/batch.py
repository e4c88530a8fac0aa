"""Pictures on their way to a loss."""

from collections.abc import Callable
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
        """The same on another device; a GPU is not waited for, but what it sends to the processor is."""
        return self._each(lambda part: part.to(device, non_blocking=device.type != "cpu"))

    def first(self, count: int) -> "Batch":
        """The first so many samples."""
        return self._each(lambda part: part[:count])

    def pinned(self) -> "Batch":
        """The same in page-locked memory, which a GPU copies from on its own; what is on a GPU already stays there."""
        return self._each(lambda part: part if part.is_cuda else part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        images, sizes, keys = map(change, self[:3])
        return Batch(images, sizes, keys, None if self.labels is None else change(self.labels))
