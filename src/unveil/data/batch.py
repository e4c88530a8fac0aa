"""A batch of images."""

from typing import NamedTuple, Protocol, Self

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.targets import Targets
from unveil.data.tensor_batch import TensorBatch


class Samples(Protocol):
    """Any batch, of images or of texts, that a loader returns and a learner takes."""

    @property
    def keys(self) -> Int[Tensor, " B"]:
        """The key of each sample, which determines its random numbers: see `unveil.blocks.stateless_random`."""

    def to(self, device: torch.device) -> Self:
        """See `TensorBatch`."""

    def first(self, count: int) -> Self:
        """See `TensorBatch`."""

    def rows(self, start: int, stop: int) -> Self:
        """See `TensorBatch`."""

    def pinned(self) -> Self:
        """See `TensorBatch`."""

    def record_stream(self, stream: torch.cuda.Stream) -> Self:
        """See `TensorBatch`."""


class _Batch(NamedTuple):
    images: Tensor
    sizes: Int[Tensor, "B 2"]
    keys: Int[Tensor, " B"]
    targets: Targets | None = None
    features: Tensor | None = None


class Batch(_Batch, TensorBatch):
    """A batch of images.

    Attributes:
        images: (B, C, H, W). Before augmentation, uint8 or uint16, each image in the upper left corner of a canvas. After
            augmentation, normalised floats.
        sizes: Height and width of each image on its canvas.
        keys: The key of each sample, which determines its random numbers: see `unveil.blocks.stateless_random`.
        targets: The labels of a task; None if the data has no labels.
        features: What a frozen teacher makes of each patch, (B, N, F); None without a teacher.

    Code that is compiled calls `Batch(...)` in place of `_replace`, which returns an empty tuple when torch 2.11 compiles it.
    """

    __slots__ = ()


class Cropped(Batch):
    """A batch whose images the loader has cropped, resized and flipped already: uint8 (B, C, S, T). Targets have followed."""

    __slots__ = ()
