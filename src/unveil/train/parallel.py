"""One device or many: a learner is written for one, and spread from outside."""

import os
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from unveil.blocks.transformer import Block
from unveil.data.batch import Samples
from unveil.errors import UnveilError
from unveil.learner import Learner


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
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
class World:
    """Where this process stands among all."""

    device: torch.device
    rank: int = 0
    size: int = 1
    store: Store | None = None
    """Words that the processes leave for each other; none where there is one process."""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


def join_processes(config: HardwareConfig) -> World:
    """Finds the device, and joins the other processes where torchrun started this one."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UnveilError("device cuda was asked for and torch sees no GPU: use --device cpu, or install torch for CUDA")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return World(torch.device(kind))
    if kind == "mps":
        raise UnveilError("many processes need GPUs of NVIDIA or the CPU: give --device cpu")
    device = torch.device(kind)
    if kind == "cuda":
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= found:
            raise UnveilError(f"process {local} of this machine has no GPU, for torch sees {found}: use --nproc-per-node {found}")
        torch.cuda.set_device(device := torch.device(kind, local))
    if dist.is_initialized():  # by our caller, who also ends it
        return World(device, dist.get_rank(), dist.get_world_size())
    shared, rank, world = next(rendezvous("env://"))
    store = fresh(shared, rank, world)
    backend, bound = ("nccl", device) if kind == "cuda" else ("gloo", None)
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=world, device_id=bound)
    return World(device, rank, world, store)


def fresh(shared: Store, rank: int, world: int) -> Store:
    """The part of a store that only the processes of this start know; every process must call it.

    The agent of torchrun keeps one store while it restarts its processes again and again. Those of the next start would find the
    addresses of the dead there, and try to reach them (pytorch issues 135712 and 167288). So each one brings a name that was never
    used before, and the lead answers it with the name of this start.
    """
    mine = uuid.uuid4().hex
    if rank:
        shared.set(f"hello-{rank}", mine)
        start = shared.get(f"welcome-{mine}").decode()  # waits for the lead
        shared.set(f"{start}-{rank}", "here")
        return PrefixStore(start, shared)
    awaited = set(range(1, world))
    while awaited:
        for other in sorted(awaited):
            if shared.check([f"hello-{other}"]):  # perhaps of an earlier start: asked until it answers
                shared.set(f"welcome-{shared.get(f'hello-{other}').decode()}", mine)
            if shared.check([f"{mine}-{other}"]):
                awaited.remove(other)
        time.sleep(0.02)
    return PrefixStore(mine, shared)


def shutdown(world: World) -> None:
    """Parts from the other processes; they wait for the lead, which may judge for longer than a collective may take."""
    if world.store is None:
        return
    if world.is_main:
        world.store.set("done", "")
    else:
        world.store.wait(["done"], timedelta(days=7))
    dist.barrier()  # the store may live in the lead: all have read it
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


def resolve_precision(config: HardwareConfig, world: World) -> HardwareConfig:
    """The same with nothing left to choose: a run that goes on elsewhere must not change its precision unseen."""
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(world.device) else "float32"
    return replace(config, precision=precision)


def autocast(config: HardwareConfig, world: World) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    half = resolve_precision(config, world).precision == "bfloat16"
    return torch.autocast(world.device.type, torch.bfloat16) if half else nullcontext()


def parallelize(learner: Learner, config: HardwareConfig, world: World, few: Samples) -> nn.Module:
    """What to call in place of the learner: copied or sharded over the processes, and compiled.

    One process compiles the learner as a whole. Many compile block by block, so that gradients (DDP) and weights (FSDP2) of one
    block travel while the next one computes, and the hooks that send them stay outside of what is compiled.

    Args:
        learner: On its device, with the weights to start from.
        config: How.
        world: Where.
        few: Some samples.
    """
    blocks = [module for module in learner.modules() if isinstance(module, Block)]
    model: nn.Module = learner
    if world.size > 1 and config.parallel == "ddp":
        model = replicate(learner, config, world, few)
    elif world.size > 1:
        shard(learner, blocks, resolve_precision(config, world).precision)
    if config.compile:
        learner.augment = torch.compile(learner.augment)  # type: ignore[method-assign]
        if world.size == 1:
            learner.compile()
        else:
            torch._dynamo.config.recompile_limit = 2 * len(blocks) + 8  # each rate of drop path is a graph of its own
            for block in blocks:
                block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
    return model


def replicate(learner: Learner, config: HardwareConfig, world: World, few: Samples) -> DistributedDataParallel:
    """The learner under DDP, which has seen in one backward pass in which order gradients come.

    It sums them in that order from its second pass on. Without this one, the first step of a run that goes on would be summed in
    another order than the same step of a run that was never stopped, and they would drift apart by rounding.
    """
    model = DistributedDataParallel(learner, gradient_as_bucket_view=True)
    model.broadcast_buffers = False  # they are the same everywhere; synced once, above
    kept = [buffer.clone() for buffer in learner.buffers()]
    with torch.no_grad():
        batch = learner.augment(few.first(2).to(world.device))
    with autocast(config, world):
        loss = model(batch).loss
    loss.backward()
    learner.zero_grad()
    for buffer, value in zip(learner.buffers(), kept, strict=True):
        buffer.copy_(value)
    return model


def shard(learner: Learner, blocks: list[Block], precision: str) -> Learner:
    """The learner with a share of each parameter here: a block's are gathered while it computes, all others during a step.

    Under autocast the matrices of blocks are gathered in bfloat16, which is what autocast would make of them: half of the bytes,
    and none of the copies that it would keep until the backward pass. Gradients are summed in float32. Where torch cannot leave
    norms out of this (before 2.15), float32 is gathered.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16" and "param_dtype_override_fn" in {field.name for field in fields(policy)}:
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
            param_dtype_override_fn=lambda parameter: None if parameter.ndim > 1 else parameter.dtype,
        )
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(learner)
    return learner


def no_sync_until_last(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around the parts of an accumulated step: DDP sums gradients over processes in the last one only.

    FSDP2 sums them in every part: to wait, it would have to keep whole gradients, which is what it is there to avoid.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensor_on_main(tensor: Tensor) -> Tensor:
    """All of a tensor, to be saved; every process must call it.

    One that is sharded goes to the lead's main memory and nowhere else: no device has to hold all of a model at once.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    full: Tensor = tensor.full_tensor().detach()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


def is_replicated(config: HardwareConfig, world: World) -> bool:
    """Whether this process holds all of the model, and can use it on its own."""
    return world.size == 1 or config.parallel == "ddp"


def shard_like(tensor: Tensor, world: Tensor) -> Tensor:
    """A whole tensor, sharded as `place` is, on its device."""
    if isinstance(world, DTensor):
        return distribute_tensor(tensor.to(world.device), world.device_mesh, world.placements)
    return tensor.to(world.device)


def mean_over_processes(values: Tensor, world: int) -> Tensor:
    """The mean of each value over all processes; every process must call it."""
    if world > 1:
        dist.all_reduce(values)
        values /= world
    return values


def broadcast_from_main(value: int, world: World) -> int:
    """The value that the lead process has; every process must call it."""
    if world.size == 1:
        return value
    box = torch.tensor(value, device=world.device)
    dist.broadcast(box, src=0)
    return int(box)


def any_process(flag: bool, world: World) -> bool:
    """Whether the flag is up on any process; every process must call it."""
    if world.size == 1:
        return flag
    box = torch.tensor(int(flag), device=world.device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return bool(box)
