"""What a step costs, tried on a few samples before the first one: memory, so that it fits, and FLOPs, so that the log can judge."""

import copy
import os
import time
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from unveil.data.batch import Samples
from unveil.data.loader import share_size
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.parallel import HardwareConfig, World, autocast


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive (`peak` is the most at any time), and FLOPs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=made)
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known and id(storage) not in given:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage.nbytes())
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


class Measured(NamedTuple):
    """What a batch costs, forward and backward."""

    memory: float
    """The most bytes of tensors at one time, beside the model itself."""
    kept: float
    """Bytes that the forward pass keeps for the backward pass."""
    flops: float
    """FLOPs of matrix products that are really run."""


class MemoryTrial(NamedTuple):
    """What came out."""

    parts: int
    """In how many parts a step fits the memory."""
    flops: float
    """FLOPs of a sample, forward and backward; 0 where it was not tried."""


def cost_of(learner: Learner, batch: Samples, hardware: HardwareConfig, world: World) -> Measured:
    """What a forward and a backward pass of a batch cost. The learner is left as it was: a copy of it is tried."""
    trial = copy.deepcopy(learner).to(world.device).train()
    with torch.random.fork_rng(devices=[]), Live() as live:
        with torch.no_grad():
            batch = trial.augment(batch.to(world.device))
        with autocast(hardware, world):
            loss = trial(batch).loss
        kept = live.now
        loss.backward()
    return Measured(live.peak, kept, live.flops)


def fit_batch_in_memory(
    learner: Learner, few: Samples, batch_size: int, asked: int, hardware: HardwareConfig, world: World, memory: int | None = None
) -> MemoryTrial:
    """In how many equal parts to compute a step: as many as asked for, or (0) as few as fit the memory; and its FLOPs.

    Only fixed numbers go in (the size of the machine, not what is free right now), so that a run that goes on takes the same
    parts. Costs grow with the samples, so two small batches tell the slope.

    Args:
        learner: What is trained; left as it was.
        few: Some samples.
        batch_size: Samples of a step, over all processes.
        asked: The number of parts, or 0.
        hardware: For the precision.
        world: For the device, and the number of processes.
        memory: Bytes that there are; by default those of the device.

    Raises:
        UnveilError: When the batch does not divide, or parts are asked for that would change the loss.
    """
    if learner.needs_whole_batch:
        if asked > 1:
            raise UnveilError(
                f"{type(learner).__name__} compares the samples of a batch with each other, so no step can be computed in {asked} "
                f"parts: leave --accumulate out, and take a smaller --batch-size or more processes"
            )
        asked = 1
    share = share_size(batch_size, world.size * max(asked, 1))
    sizes = [size for size in (2, 6) if size <= min(share, len(few.keys))]
    if len(sizes) < 2:
        return MemoryTrial(max(asked, 1), 0.0)
    low, high = (cost_of(learner, few.first(size), hardware, world) for size in sizes)
    each = Measured(*(max(0.0, more - less) / (sizes[1] - sizes[0]) for less, more in zip(low, high, strict=True)))
    model = 4 * sum(p.numel() * p.element_size() for p in learner.parameters())  # weights, gradients, two moments
    room = (memory_of(world.device) if memory is None else memory) * 0.6 - model
    sample = max(each.memory, each.kept)  # of few samples, the peak is in the gradients alone
    fitting = (n for n in range(1, share + 1) if share % n == 0 and share // n * sample <= room)
    return MemoryTrial(asked or next(fitting, share), each.flops)


@cache
def matrix_peak(device: torch.device, precision: str) -> float:
    """FLOPs a second of a large product of two matrices: what this device can do at best, measured in a moment."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device; for a CPU, those that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 8 * 2**30
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no limit: there is no file, or it says "max"
            continue
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of torchrun share it
