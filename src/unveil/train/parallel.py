"""One device or many: a learner is written for one, and spread from outside."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from unveil.blocks.transformer import Block
from unveil.errors import UnveilError
from unveil.learner import Learner


@dataclass(frozen=True, kw_only=True)
class SpreadConfig:
    """The hardware, and how to use it. Nothing here changes what is learned beyond rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute: a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 autocast where the hardware multiplies it in hardware, or float32."""
    compile: bool = False
    """Compile the step with torch.compile: slow to start, then faster."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: a copy of the model on each process (DDP), or a share of it (FSDP2) where it is too large for one."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among all."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def lead(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


def join(config: SpreadConfig) -> Place:
    """Finds the device, and joins the other processes where torchrun started this one."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UnveilError("device cuda was asked for and torch sees no GPU: use --device cpu, or install torch for CUDA")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Place(torch.device(kind))
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=device if kind == "cuda" else None)
    return Place(device, dist.get_rank(), world)


def leave(place: Place) -> None:
    """Waits for the other processes, and parts from them."""
    if place.world > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        return not _cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))
    return False


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        line = ""
    return frozenset(line.split())


def settled(config: SpreadConfig, place: Place) -> SpreadConfig:
    """The same with nothing left to choose: a run that goes on elsewhere must not change its precision unseen."""
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(place.device) else "float32"
    return replace(config, precision=precision)


def autocast(config: SpreadConfig, place: Place) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    half = settled(config, place).precision == "bfloat16"
    return torch.autocast(place.device.type, torch.bfloat16) if half else nullcontext()


def spread(learner: Learner, config: SpreadConfig, place: Place) -> nn.Module:
    """What to call in place of the learner: compiled, and copied or sharded over the processes."""
    if config.compile:
        learner.compile()
        learner.augment = torch.compile(learner.augment)  # type: ignore[method-assign]
    if place.world == 1:
        return learner
    if config.parallel == "ddp":
        return DistributedDataParallel(learner, broadcast_buffers=False, gradient_as_bucket_view=True)
    for module in learner.modules():
        if isinstance(module, Block):
            fully_shard(module)
    fully_shard(learner)
    return learner


def last_of(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around the parts of an accumulated step: gradients travel between processes in the last one only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_here(config: SpreadConfig, place: Place) -> bool:
    """Whether this process holds all of the model, and can use it on its own."""
    return place.world == 1 or config.parallel == "ddp"


def like(tensor: Tensor, place: Tensor) -> Tensor:
    """A whole tensor, sharded as `place` is, on its device."""
    if isinstance(place, DTensor):
        return distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
    return tensor.to(place.device)


def mean_over_processes(values: Tensor, world: int) -> Tensor:
    """The mean of each value over all processes; every process must call it."""
    if world > 1:
        dist.all_reduce(values)
        values /= world
    return values


def agree(value: int, place: Place) -> int:
    """The value that the lead process has; every process must call it."""
    if place.world == 1:
        return value
    box = torch.tensor(value, device=place.device)
    dist.broadcast(box, src=0)
    return int(box)


def any_process(flag: bool, place: Place) -> bool:
    """Whether the flag is up on any process; every process must call it."""
    if place.world == 1:
        return flag
    box = torch.tensor(int(flag), device=place.device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return bool(box)
