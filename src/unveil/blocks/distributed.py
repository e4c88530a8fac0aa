"""Collectives over the global batch: a differentiable all-gather, and batch norm across processes.

The loss must be a mean over samples: each process computes the mean over its own samples, and gradients are averaged over
processes. With one process, these functions are plain PyTorch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unveil.errors import UnveilError

_alone = ContextVar("_alone", default=False)


def world_size() -> int:
    """The number of processes; 1 within `alone`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """A context in which modules do not communicate with other processes, for work that only one process does."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def all_gather_with_grad(x: Float[Tensor, "B ..."]) -> Float[Tensor, "A ..."]:
    """Concatenates the rows of all processes, in the order of their ranks, with gradients. Every process must call it."""
    if world_size() == 1:
        return x
    out: Tensor = AllGather.apply(x)
    return out


def global_row_ids(rows: int, device: torch.device) -> Int[Tensor, " B"]:
    """The indices of this process's rows among the rows of all processes."""
    first = 0 if world_size() == 1 else dist.get_rank() * rows
    return torch.arange(first, first + rows, device=device)


class AllGather(torch.autograd.Function):
    """Forward: gathers the rows of all processes. Backward: sums the gradients of all processes for the rows of this process."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def at_least_two(rows: int) -> None:
    """Raises `UnveilError` if a batch norm would normalise fewer than two rows, all processes together."""
    if rows * world_size() < 2:
        raise UnveilError("batch norm needs at least 2 samples in a batch, but the batch has 1: use a larger --batch-size")


def moments_of_all_rows(x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and biased variance over the rows of all processes, with gradients. Every process must have the same number of rows."""
    variances, means = torch.var_mean(x, dim=0, correction=0)
    variances, means = all_gather_with_grad(torch.stack([variances, means])[None]).unbind(1)  # (processes, D)
    mean = means.mean(dim=0)
    # The variance of all rows: the mean of the variances, plus the variance of the means.
    return mean, (variances + (means - mean).square()).mean(dim=0)


class SyncBatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy, 2015) over the rows of all processes, in float32, without running statistics.

    For heads that are discarded after training. Every process must have the same number of rows.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        at_least_two(len(x))
        x = x.float()
        mean, variance = moments_of_all_rows(x)
        x = (x - mean) * variance.add(self.eps).rsqrt()
        return x if self.weight is None or self.bias is None else torch.addcmul(self.bias, x, self.weight)


class RunningBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` without parameters, over the rows of all processes, with running statistics for evaluation.

    For heads that are kept. Every process must have the same number of rows.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, affine=False, eps=eps)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if not self.training:
            return super().forward(x)
        at_least_two(len(x))
        if world_size() == 1:
            return super().forward(x)
        (mean, variance), rows = moments_of_all_rows(x), len(x) * world_size()
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
            self.num_batches_tracked += 1
        return (x - mean) * variance.add(self.eps).rsqrt()
