"""Samples on their way to a loss."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, Self

import torch
from jaxtyping import Int
from torch import Tensor


class Samples(Protocol):
    """Some samples of a run: what a feed gives, and what the loop hands to a learner."""

    @property
    def keys(self) -> Int[Tensor, " B"]:
        """What is drawn at random for a sample is a function of its key: see `unveil.blocks.stateless_random`."""

    def to(self, device: torch.device) -> Self:
        """The same on another device; a GPU is not waited for, but what it sends to the processor is."""

    def first(self, count: int) -> Self:
        """The first so many samples."""

    def pinned(self) -> Self:
        """The same in page-locked memory, which a GPU copies from on its own; what is on a GPU already stays there."""


class Batch(NamedTuple):
    """Some images of a run: `Samples`."""

    images: Tensor
    """(B, C, H, W). Before augmentation: uint8 or uint16, each image in the upper left corner. After: float, normalised."""
    sizes: Int[Tensor, "B 2"]
    """Height and width of each image inside `images`."""
    keys: Int[Tensor, " B"]
    """What is drawn at random for a sample is a function of its key: see `unveil.blocks.stateless_random`."""
    labels: Tensor | None = None
    """(B,) classes, -1 where there is none; or (B, K) shares of classes after mixing."""

    def to(self, device: torch.device) -> "Batch":
        """See `Samples`."""
        return Batch(*moved(self, device))

    def first(self, count: int) -> "Batch":
        """See `Samples`."""
        return Batch(*each(self, lambda part: part[:count]))

    def pinned(self) -> "Batch":
        """See `Samples`."""
        return Batch(*page_locked(self))


Parts = Iterable[Tensor | None]


def each(parts: Parts, change: Callable[[Tensor], Tensor]) -> list[Any]:
    """The tensors of a batch, each changed; what is missing stays so."""
    return [None if part is None else change(part) for part in parts]


def moved(parts: Parts, device: torch.device) -> list[Any]:
    """The tensors of a batch on another device."""
    return each(parts, lambda part: part.to(device, non_blocking=device.type != "cpu"))


def page_locked(parts: Parts) -> list[Any]:
    """The tensors of a batch in page-locked memory, or on the GPU where they are."""
    return each(parts, lambda part: part if part.is_cuda else part.pin_memory())
