"""Prepares a learner for many processes and for torch.compile: DDP, FSDP2, and what is compiled in which mode."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unveil.blocks.transformer import Block
from unveil.data.batch import Samples
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train import overlap
from unveil.train.parallel import HALVES, HardwareConfig, World, autocast, resolve_precision

# torch.distributed.fsdp is imported inside a function. It takes seconds to import, and a run on one process does not use it.


def parallelize(learner: Learner, config: HardwareConfig, world: World, examples: Samples) -> nn.Module:
    """Prepares a learner for several processes and for torch.compile. Call the result in place of the learner.

    On one process, the learner is compiled as a whole. On several, it is compiled block by block, so that the gradients (DDP) or
    weights (FSDP2) of a block are communicated while the next block computes. Run the result within `compile_limits`.

    Args:
        learner: On its device, with its initial weights.
        config: The hardware.
        world: The processes.
        examples: Some samples before augmentation.
    """
    blocks = [module for module in learner.modules() if isinstance(module, Block)]
    model: nn.Module = learner
    if world.size > 1 and config.parallel == "ddp":
        model = replicate(learner, config, world, examples)
    elif world.size > 1:
        shard(learner, blocks, resolve_precision(config, world).precision)
    if config.compile:
        if world.size > 1 and config.compile_mode in GRAPHS:
            raise UnveilError(
                f"--compile-mode {config.compile_mode} records the CUDA graphs of a whole model, but with several processes each "
                "block is compiled by itself: use default or max-autotune-no-cudagraphs"
            )
        for module in blocks if world.size > 1 else [learner]:
            module.compile(mode=None if config.compile_mode == "default" else config.compile_mode)
    return model


GRAPHS = ("reduce-overhead", "max-autotune")
"""The modes of torch.compile that record CUDA graphs."""


def records_graphs(config: HardwareConfig, world: World) -> bool:
    """Whether a step replays CUDA graphs, whose results and gradients lie in memory that the next replay overwrites."""
    return config.compile and config.compile_mode in GRAPHS and world.device.type == "cuda"


@contextmanager
def compile_limits(learner: Learner, config: HardwareConfig, world: World) -> Iterator[None]:
    """A context in which torch.compile may make enough graphs for a model that is compiled block by block.

    All blocks share one code object, so their graphs are counted together. Each drop-path rate needs one graph for training and one
    for evaluation. Beyond the global limit, 8 by default, blocks would silently run without compilation.
    """
    if not config.compile or world.size == 1:
        yield
        return
    import torch._dynamo

    blocks = sum(isinstance(module, Block) for module in learner.modules())
    limit = max(torch._dynamo.config.recompile_limit, 2 * blocks + 8)
    with torch._dynamo.config.patch(recompile_limit=limit):
        yield


def replicate(learner: Learner, config: HardwareConfig, world: World, examples: Samples) -> DistributedDataParallel:
    """Wraps a learner in DDP, and runs one backward pass whose gradients are discarded.

    In the first backward pass, DDP records the order in which gradients arrive, and it uses this order from the second pass on.
    Without the extra pass, the first step after a resume would sum gradients in another order than the same step of a run that
    was not stopped, so rounding would make the two runs diverge.
    """
    model = DistributedDataParallel(learner, gradient_as_bucket_view=True)
    model.broadcast_buffers = False  # the constructor synchronised them, and all processes update them in the same way
    saved = [buffer.clone() for buffer in learner.buffers()]
    with torch.no_grad():
        batch = learner.augment(examples.first(2).to(world.device))
    with autocast(config, world):
        loss = model(batch).loss
    loss.backward()
    learner.zero_grad()
    for buffer, value in zip(learner.buffers(), saved, strict=True):
        buffer.copy_(value)
    return model


def shard(learner: Learner, blocks: list[Block], precision: str) -> Learner:
    """Shards a learner in place with FSDP2. The weights of a block are gathered while it computes, all others for the whole step.

    Under autocast, the matrices of blocks are gathered in half precision. Autocast would cast them anyway, so this halves the
    communication and avoids the copies that autocast keeps until the backward pass. Gradients are summed in float32. Before
    version 2.15, torch cannot exclude norms and biases from the cast, so all weights are gathered in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if precision in HALVES and "param_dtype_override_fn" in {field.name for field in fields(policy)}:
        policy = MixedPrecisionPolicy(
            param_dtype=HALVES[precision],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
            param_dtype_override_fn=lambda parameter: None if parameter.ndim > 1 else parameter.dtype,
        )
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(learner)
    if overlap.enabled("gather"):  # by default only the backward pass gathers the weights of the next block ahead
        for stack in learner.modules():
            for block, following in pairwise(module for module in stack.children() if isinstance(module, Block)):
                ahead: Any = block
                ahead.set_modules_to_forward_prefetch([following])
    return learner


def no_sync_until_last(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """The context of a microbatch, in which DDP sums gradients over processes only for the last microbatch of a step.

    FSDP2 sums them in every microbatch. Otherwise it would have to keep unsharded gradients, which need too much memory.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()
