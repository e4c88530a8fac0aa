"""Seeds that depend only on the step, and the check that the loss is finite."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch, Samples
from unveil.errors import UnveilError
from unveil.train.log import Record
from unveil.train.parallel import World


def seed_all(seed: int, step: int, world: World) -> None:
    """Seeds the global generators as a function of seed, step and rank, so that no checkpoint has to hold their states.

    Dropout and drop path use the global generators. Data order, crops and masks do not: they are functions of the keys of the
    samples (see `unveil.blocks.stateless_random`).
    """
    key = int(sample_keys(seed, step, 1)[0] ^ (world.rank * 0x9E3779B9)) & (2**63 - 1)
    torch.default_generator.manual_seed(key)
    if world.device.type != "cpu":
        torch.get_device_module(world.device).manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


def get_generators(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states of the global generators of torch, on the CPU and on a device."""
    return torch.get_rng_state(), None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_generators(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    """Restores states that `get_generators` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])


@contextmanager
def restored_generators(device: torch.device) -> Iterator[None]:
    """A context that restores the global generators of torch, `random` and NumPy at its end."""
    torch_states, python_state, numpy_state = get_generators(device), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        set_generators(torch_states, device)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def check_finite(learner: nn.Module, record: Record, microbatches: Sequence[Samples]) -> None:
    """Raises `UnveilError`, with the likely cause, if the loss or the gradient norm is not finite."""
    if math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"]):
        return
    broken = [name for name, p in learner.named_parameters() if not torch.isfinite(p.detach()).all()]
    images = [microbatch.images for microbatch in microbatches if isinstance(microbatch, Batch)]
    if any(not torch.isfinite(each).all() for each in images if each.is_floating_point()):
        cause = "the images contain values that are not finite"
    elif broken:
        cause = f"{len(broken)} parameters are not finite, the first is {broken[0]}: the steps were too large"
    else:
        cause = "all parameters are finite: a value overflowed in the forward or the backward pass"
    raise UnveilError(
        f"the loss is {record['loss']} and the gradient norm {record['gradient_norm']} near step {record['step']} (learning rate "
        f"{record['learning_rate']:.2e}); {cause}. The last checkpoint is still good. Try a smaller --base-lr, --clip-grad 1, or "
        f"--precision float32, with a new --out"
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context with a seeded CPU generator, to initialise models. Restores all global generators at its end."""
    with restored_generators(torch.device("cpu")):
        torch.default_generator.manual_seed(seed)
        yield
