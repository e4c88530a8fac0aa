"""The common base of all batches: of images, of texts and of targets."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor


class TensorBatch:
    """A mixin for named tuples of tensors, of other batches, or None. The first axis of every tensor is the batch axis."""

    __slots__ = ()

    def to(self, device: torch.device) -> Self:
        """Copies to another device. A copy to a GPU does not block; a copy to the CPU does."""
        return self._map(lambda x: x.to(device, non_blocking=device.type != "cpu"), lambda x: x.to(device))

    def first(self, count: int) -> Self:
        """Keeps the first `count` samples."""
        return self._map(lambda x: x[:count], lambda x: x.first(count))

    def rows(self, start: int, stop: int) -> Self:
        """Keeps the samples from `start` to `stop` - 1."""
        return self._map(lambda x: x[start:stop], lambda x: x.rows(start, stop))

    def chunks(self, count: int) -> list[Self]:
        """Cuts the samples into `count` equal batches, in their order."""
        parts = [
            (x,) * count if x is None else x.chunk(count) if isinstance(x, Tensor) else x.chunks(count)
            for x in cast(tuple[Any, ...], self)
        ]
        return [type(self)(*(None if x[i] is None else x[i] for x in parts)) for i in range(count)]

    def pinned(self) -> Self:
        """Copies to page-locked memory, from which a GPU copies without blocking. Tensors on a GPU stay there."""
        # An expanded tensor has several elements in one place, and cannot be pinned as it is.
        return self._map(lambda x: x if x.is_cuda else x.contiguous().pin_memory(), lambda x: x.pinned())

    def record_stream(self, stream: torch.cuda.Stream) -> Self:
        """Tells the allocator of a GPU that a stream other than that of their copy uses the tensors."""

        def used(x: Tensor) -> Tensor:
            x.record_stream(stream)
            return x

        return self._map(used, lambda x: x.record_stream(stream))

    def _map(self, change: Callable[[Tensor], Tensor], recurse: Callable[[Any], Any]) -> Self:
        fields = cast(tuple[Any, ...], self)
        return type(self)(*(x if x is None else change(x) if isinstance(x, Tensor) else recurse(x) for x in fields))
