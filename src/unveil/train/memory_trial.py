"""Measures the cost of a step on a few samples before training: memory, to choose the microbatches, and FLOPs, for the log."""

import copy
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unveil.data.batch import Samples
from unveil.data.loader import share_size
from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.train.parallel import HALVES, HardwareConfig, World, autocast, broadcast_from_main, float32_products, is_fast


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all live tensors that were created in this mode, their maximum (`peak`), and FLOPs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Skips a wrapper whose first call imports torch._dynamo, which takes seconds. Nothing is compiled in this mode."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        from torch.utils.flop_counter import flop_registry  # imported here, since it imports triton

        self._flops_of = flop_registry
        self.now = self.peak = self.flops = 0
        self._counted: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket in self._flops_of:
            self.flops += self._flops_of[func.overloadpacket](*args, **kwargs, out_val=output)
        inputs = {id(tensor.untyped_storage()) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(output):
            storage = tensor.untyped_storage()
            if storage not in self._counted and id(storage) not in inputs:
                self._counted.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return output

    def _freed(self, size: int) -> None:
        self.now -= size


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in the arguments or the results of an operator: faster than `tree_leaves`, which took half of the trial."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


class StepCost(NamedTuple):
    """The cost of a forward and a backward pass of a batch."""

    memory: float
    """Peak bytes of tensors, without the model."""
    kept: float
    """Bytes that are kept from the forward pass for the backward pass."""
    flops: float
    """FLOPs of all matrix products, including those that gradient checkpointing repeats."""


class MemoryTrial(NamedTuple):
    """The result of `fit_batch_in_memory`."""

    accum_steps: int
    """Number of microbatches per step."""
    flops: float
    """FLOPs per sample of a forward and a backward pass; 0 if they were not measured."""


def checked_step(learner: Learner, result: object) -> Step:
    """What `forward` returned, before anything is trained by it. Raises `UnveilError` if it is no step, as of a plug-in."""
    name = f"{type(learner).__name__}.forward"
    if not isinstance(result, Step):
        raise UnveilError(f"{name} returned {type(result).__name__}, expected unveil.learner.Step(loss, metrics)")
    loss = result.loss
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"of the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"that is a {type(loss).__name__}"
        raise UnveilError(f"{name} returned a loss {found}, expected a tensor with one number, such as a mean")
    if not loss.requires_grad:
        raise UnveilError(f"{name} returned a loss without a gradient: compute it from parameters that require one, without detach")
    for key, value in result.metrics.items():
        if key == "loss" or not isinstance(value, Tensor) or value.numel() != 1:
            wrong = "the name of the loss itself" if key == "loss" else "no tensor with one number"
            raise UnveilError(f"{name} returned the metric {key!r}, which is {wrong}")
    return result


def cost_of(learner: Learner, batch: Samples, hardware: HardwareConfig, world: World) -> StepCost:
    """The cost of a forward and a backward pass of a batch, measured on a copy of the learner."""
    trial = copy.deepcopy(learner).to(world.device).train()
    with torch.random.fork_rng(devices=[]), LiveTensors() as live:
        with torch.no_grad():
            batch = trial.augment(batch.to(world.device))
        with autocast(hardware, world):
            loss = checked_step(trial, trial(batch)).loss
        kept = live.now
        loss.backward()
    return StepCost(live.peak, kept, live.flops)


def fit_batch_in_memory(
    learner: Learner,
    examples: Samples,
    batch_size: int,
    accum_steps: int,
    hardware: HardwareConfig,
    world: World,
    memory: int | None = None,
) -> MemoryTrial:
    """Chooses the number of microbatches per step, and measures the FLOPs per sample.

    The choice depends on the total memory, and not on the free memory, so a resumed run uses the same microbatches. Costs grow
    linearly with the number of samples, so two small batches are enough to measure the slope. Every process must call it; all of
    them use the choice of rank 0.

    Args:
        learner: The learner. It does not change.
        examples: Some samples.
        batch_size: Samples per step, over all processes.
        accum_steps: The number of microbatches, or 0 for the fewest that fit into memory.
        hardware: For the precision.
        world: For the device and the number of processes.
        memory: Bytes of memory; by default those of the device.

    Raises:
        UnveilError: If the batch size is not divisible, or if microbatches would change the loss of this learner.
    """
    if learner.needs_whole_batch:
        if accum_steps > 1:
            raise UnveilError(
                f"{type(learner).__name__} compares or normalises the samples of a batch together, so a step cannot be computed in "
                f"{accum_steps} microbatches: leave --accum-steps out, and use a smaller --batch-size or more processes"
            )
        accum_steps = 1
    share = share_size(batch_size, world.size * max(accum_steps, 1))
    sizes = [size for size in (2, 6) if size <= min(share, len(examples.keys))]
    if len(sizes) < 2:
        return MemoryTrial(max(accum_steps, 1), 0.0)
    low, high = (cost_of(learner, examples.first(size), hardware, world) for size in sizes)
    each = StepCost(*(max(0.0, more - less) / (sizes[1] - sizes[0]) for less, more in zip(low, high, strict=True)))
    model = 4 * sum(p.numel() * p.element_size() for p in learner.parameters())  # weights, gradients, two moments of AdamW
    room = (memory_of(world.device) if memory is None else memory) * 0.6 - model
    sample = max(each.memory, each.kept)  # with few samples, the peak may lie in the gradients alone
    fitting = (n for n in range(1, share + 1) if share % n == 0 and share // n * sample <= room)
    return MemoryTrial(accum_steps or broadcast_from_main(next(fitting, share), world), each.flops)


@cache
def matrix_peak(device: torch.device, precision: str) -> float:
    """FLOPs per second of a large matrix product, measured once. This is about the peak speed of the device.

    On a CPU, it is that of all threads when no other program runs, since it is measured in CPU time.
    """
    in_software = precision in HALVES and not is_fast(precision, device)  # takes seconds
    side = 8192 if device.type == "cuda" else 256 if in_software else 1024
    dtype = HALVES.get(precision, torch.float32)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        with float32_products(precision, device):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    return 2 * side**3 / best * (torch.get_num_threads() if device.type == "cpu" else 1)


def memory_of(device: torch.device) -> int:
    """The memory of a device in bytes; on a CPU, the memory that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 8 * 2**30
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # without a limit, the file is missing or contains "max"
            continue
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # the processes of torchrun share it
