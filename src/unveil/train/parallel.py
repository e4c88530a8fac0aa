"""Training on one device or many: the device, the processes and their precision, and what they send each other."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # torch does not list them in __all__
from torch.distributed.rendezvous import rendezvous

from unveil.errors import UnveilError

# torch.distributed.tensor is imported inside functions. It takes seconds to import, and a run on one process does not use it.


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """The hardware and how to use it. These options do not change the result, apart from rounding."""

    HIDDEN = ("compile_mode",)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on; auto uses a GPU if there is one."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    """Precision of matrix products; auto is float32 for embed, predict and similar, and else the fastest of bfloat16, float16 and
    float32 on this hardware. tf32: float32 whose factors are rounded to 10 bits on NVIDIA GPUs since Ampere."""
    compile: bool = False
    """Compile the training step with torch.compile. The start is slower, the steps are faster."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """How --compile compiles. reduce-overhead and max-autotune record CUDA graphs, for steps so short that the GPU waits for the
    host; max-autotune also measures several kernels for each product, which takes minutes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: DDP keeps a copy of the model on each process; FSDP2 shards a model that is too large for one device."""


@dataclass(frozen=True)
class World:
    """The device of this process, its rank, and the number of processes of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1
    store: Store | None = None
    """A key-value store that all processes share; None with one process."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and writes files for all."""
        return self.rank == 0


STORES: dict[str, Store] = {}
"""The store of the process group that `join_processes` has joined, for later calls until `shutdown`."""


def join_processes(config: HardwareConfig) -> World:
    """Chooses the device, and joins the process group if torchrun started this process.

    Raises:
        UnveilError: If the device does not exist, or the variables of torchrun are incomplete.
    """
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UnveilError("--device cuda was given, but torch finds no GPU: use --device cpu, or install torch with CUDA support")
    if config.precision == "tf32" and (kind != "cuda" or torch.cuda.get_device_capability()[0] < 8):
        raise UnveilError("--precision tf32 needs an NVIDIA GPU of the Ampere generation or later: use --precision float32")
    size = world_size()
    if size == 1:
        return World(torch.device(kind))
    if kind == "mps":
        raise UnveilError("torchrun cannot be used with an Apple GPU: use --device cpu, or a single process")
    device = torch.device(kind)
    if kind == "cuda":
        refuse_incomplete("LOCAL_RANK")
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise UnveilError(f"process {local} of this machine has no GPU: torch finds {count}, so use --nproc-per-node {count}")
        torch.cuda.set_device(device := torch.device(kind, local))
    if dist.is_initialized():  # by an earlier call, or by the caller, who then also has to destroy the group
        return World(device, dist.get_rank(), dist.get_world_size(), STORES.get("run"))
    refuse_incomplete("RANK", "MASTER_ADDR", "MASTER_PORT")
    shared, rank, size = next(rendezvous("env://"))
    store = fresh_store(shared, rank, size)
    backend, bound = ("nccl", device) if kind == "cuda" else ("gloo", None)
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, device_id=bound)
    STORES["run"] = store
    return World(device, rank, size, store)


def world_size() -> int:
    """The number of processes that torchrun started; 1 without it. Raises `UnveilError` if `WORLD_SIZE` is not a number."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isdecimal() and int(text)):
        raise UnveilError(f"WORLD_SIZE is {text!r} in the environment, expected a number of processes: unset it, or use torchrun")
    return int(text)


def refuse_incomplete(*names: str) -> None:
    """Raises `UnveilError` if variables of torchrun are missing, as in a job whose scheduler sets only WORLD_SIZE."""
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UnveilError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start with torchrun, or unset WORLD_SIZE for one process"
        )


def fresh_store(shared: Store, rank: int, size: int) -> Store:
    """A store with a prefix that is unique to the current start of the processes. Every process must call it.

    torchrun keeps one store across all restarts of its processes. After a restart, processes would find the addresses of dead
    processes in it, and try to connect to them (pytorch issues 135712 and 167288). Therefore each process announces a random
    name, and rank 0 answers each name with the random name of this start, which becomes the prefix of all keys.
    """
    mine = uuid.uuid4().hex
    if rank:
        shared.set(f"hello-{rank}", mine)
        start = shared.get(f"welcome-{mine}").decode()  # blocks until rank 0 answers
        shared.set(f"{start}-{rank}", "here")
        return PrefixStore(start, shared)
    awaited = set(range(1, size))
    while awaited:
        for other in sorted(awaited):
            if shared.check([f"hello-{other}"]):  # it may come from an earlier start, so poll until the live process replaces it
                shared.set(f"welcome-{shared.get(f'hello-{other}').decode()}", mine)
            if shared.check([f"{mine}-{other}"]):
                awaited.remove(other)
        time.sleep(0.02)
    return PrefixStore(mine, shared)


def shutdown(world: World) -> None:
    """Leaves the process group. Other ranks wait for rank 0, whose final evaluation may take longer than a collective's timeout."""
    if world.store is None:
        return
    if world.is_main:
        world.store.set("done", "")
    else:
        while not world.store.check(["done"]):  # a wait in C++ would not notice signals
            time.sleep(0.2)
    dist.barrier()  # rank 0 may host the store, so it must not exit before all have read it
    dist.destroy_process_group()
    STORES.clear()


HALVES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions that are computed under autocast."""
FLAGS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "fphp"}}
"""The flags of processors with fast matrix products in a precision."""


def is_fast(precision: str, device: torch.device) -> bool:
    """Whether the matrix products of a device are faster in "bfloat16" or "float16" than in float32."""
    if device.type == "cuda":  # tensor cores: float16 since Volta and Turing (V100, T4), bfloat16 since Ampere
        return torch.cuda.get_device_capability(device)[0] >= (8 if precision == "bfloat16" else 7)
    return device.type == "cpu" and not _cpu_flags().isdisjoint(FLAGS[precision])


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        line = ""
    return frozenset(line.split())


def resolve_precision(config: HardwareConfig, world: World) -> HardwareConfig:
    """Replaces "auto" by a precision. run.json records it, so that resuming on other hardware does not change it silently."""
    precision = config.precision
    if precision == "auto":
        if is_fast("bfloat16", world.device):
            precision = "bfloat16"
        else:  # float16 needs a loss scale, so it is chosen only where it is several times as fast
            precision = "float16" if world.device.type == "cuda" and is_fast("float16", world.device) else "float32"
    return replace(config, precision=precision)


def autocast(config: HardwareConfig, world: World) -> AbstractContextManager[object]:
    """The context of a forward pass in the chosen precision."""
    precision = resolve_precision(config, world).precision
    if precision in HALVES:
        return torch.autocast(world.device.type, HALVES[precision])
    return float32_products(precision, world.device)


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """A context in which float32 products of a GPU are exact for "float32", and fast for "tf32".

    By default, torch multiplies matrices exactly and convolves in TF32. `torch.set_float32_matmul_precision` sets its older and its
    newer flags alike; the newer flags alone would raise an error in torch.compile, which reads the older ones. A host program that
    has used the newer ones keeps its choice.
    """
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # older and newer flags differ
        before = None
    if device.type != "cuda" or precision in HALVES or before is None:
        yield
        return
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`. Avoids the import of that class for plain tensors."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    whole: Any = tensor
    return whole.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a tensor that may be sharded. Every process must call it."""
    whole: Any = tensor
    return whole.full_tensor() if is_sharded(tensor) else tensor


def full_tensor_on_main(tensor: Tensor) -> Tensor:
    """The full tensor on rank 0, for a checkpoint. Every process must call it.

    A sharded tensor is gathered, moved to the CPU memory of rank 0, and freed on other ranks, so no device has to hold a full
    model.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    full = full_tensor(tensor).detach()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


def is_replicated(config: HardwareConfig, world: World) -> bool:
    """Whether each process has a full copy of the model, so that one process can use it alone."""
    return world.size == 1 or config.parallel == "ddp"


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Moves a full tensor to the device of `other`, and shards it in the same way."""
    if not is_sharded(other):
        return tensor.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    return distribute_tensor(tensor.to(other.device), like.device_mesh, like.placements)


def mean_over_processes(values: Tensor, size: int) -> Tensor:
    """The mean of each value over all processes. Every process must call it."""
    if size > 1:
        dist.all_reduce(values)
        values /= size
    return values


def gather(values: Float[Tensor, " n"], size: int) -> Float[Tensor, "size n"]:
    """The values of all processes, in the order of their ranks. Every process must call it."""
    found = [torch.empty_like(values) for _ in range(size)]
    if size == 1:
        return values[None]
    dist.all_gather(found, values)
    return torch.stack(found)


def max_over_processes(values: Int[Tensor, " n"], world: World) -> Int[Tensor, " n"]:
    """The maximum of each value over all processes, in place. Every process must call it."""
    if world.size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def first_over_processes(text: str | None, world: World) -> str | None:
    """The text of the first process that has one. Every process must call it."""
    texts: list[str | None] = [text] * world.size
    if world.size > 1:
        dist.all_gather_object(texts, text)
    return next((each for each in texts if each is not None), None)


def broadcast_from_main(value: int, world: World) -> int:
    """The value of rank 0. Every process must call it."""
    if world.size == 1:
        return value
    box = torch.tensor(value, device=world.device)
    dist.broadcast(box, src=0)
    return int(box)
