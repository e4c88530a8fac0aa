"""In how many parts a step has to be computed to fit the memory: measured, before the first step, on a few samples."""

import copy
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unveil.data.batch import Batch
from unveil.data.feed import share_size
from unveil.learner import Learner
from unveil.train.parallel import Place, SpreadConfig, autocast


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive; `peak` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
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


def bytes_of_step(learner: Learner, batch: Batch, hardware: SpreadConfig, place: Place) -> int:
    """The most memory that a forward and a backward pass of a batch take at one time, in bytes, beside what the model itself does.

    The learner is left as it was: a copy of it is tried.
    """
    trial = copy.deepcopy(learner).to(place.device).train()
    with torch.random.fork_rng(devices=[]), Live() as live:
        with torch.no_grad():
            batch = trial.augment(batch.to(place.device))
        with autocast(hardware, place):
            loss = trial(batch).loss
        loss.backward()
    peak: int = live.peak
    return peak


def parts_of_step(
    learner: Learner, few: Batch, batch_size: int, asked: int, hardware: SpreadConfig, place: Place, memory: int | None = None
) -> int:
    """In how many equal parts to compute a step: as many as asked for, or (0) as few as fit the memory.

    Only fixed numbers go in (the size of the machine, not what is free right now), so that a run that goes on takes the same
    parts. Activations grow with the samples, so two small batches tell the slope.

    Args:
        learner: What is trained; left as it was.
        few: Some samples.
        batch_size: Samples of a step, over all processes.
        asked: The number of parts, or 0.
        hardware: For the precision.
        place: For the device, and the number of processes.
        memory: Bytes that there are; by default those of the device.

    Raises:
        UnveilError: When the batch does not divide.
    """
    share = share_size(batch_size, place.world * max(asked, 1))
    sizes = [size for size in (2, 6) if size <= min(share, len(few.images))]
    if asked or len(sizes) < 2:
        return max(asked, 1)
    low, high = (bytes_of_step(learner, few.first(size), hardware, place) for size in sizes)
    each = max(0, high - low) / (sizes[1] - sizes[0])
    model = 4 * sum(p.numel() * p.element_size() for p in learner.parameters())     # weights, gradients, two moments
    room = (memory_of(place.device) if memory is None else memory) * 0.6 - model
    return next((n for n in range(1, share + 1) if share % n == 0 and share // n * each <= room), share)


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device; for a CPU, those that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):                              # Windows
        return 8 * 2**30
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):                                          # no limit: there is no file, or it says "max"
            continue
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))               # processes of torchrun share it
