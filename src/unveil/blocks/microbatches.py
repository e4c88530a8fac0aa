"""Random numbers for the samples of a batch that do not depend on how many microbatches it is computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

_samples: Int[Tensor, " B"] | None = None  # the samples of this microbatch, by their place in the batch; None for a whole batch
_total = 0  # the number of samples in the batch


@contextmanager
def microbatch(number: int, count: int, size: int, device: torch.device) -> Iterator[None]:
    """A context that computes microbatch `number` of `count`, with `size` samples each; see `rand_rows`."""
    global _samples, _total
    if count > 1:
        _samples, _total = torch.arange(number * size, (number + 1) * size, device=device), count * size
    try:
        yield
    finally:
        _samples = None


def rand_rows(rows: int, device: torch.device) -> Float[Tensor, " rows"]:
    """`torch.rand(rows)`, in which a sample gets the same numbers in every microbatch that it can be in.

    In a microbatch, the numbers of the whole batch are drawn, and those of its samples returned. So each microbatch of a step must
    begin with the same state of the generator. Several views of the samples may follow each other.
    """
    if _samples is None or rows % len(_samples):
        return torch.rand(rows, device=device)
    views = rows // len(_samples)
    return torch.rand(views, _total, device=device)[:, _samples].flatten()
