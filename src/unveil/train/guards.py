"""Seeds that depend only on the step, and the check that the loss is finite."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.train.parallel import World


def seed_all(seed: int, step: int, world: World) -> None:
    """Seeds the global generators as a function of seed, step and rank, so that no checkpoint has to hold their states.

    Dropout and drop path use the global generators. Data order, crops and masks do not: they are functions of the keys of the
    samples (see `unveil.blocks.stateless_random`).
    """
    key = seed_torch(seed, step, world.device, world.rank)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


def seed_torch(seed: int, step: int, device: torch.device, rank: int = 0) -> int:
    """Seeds torch's generators, on the CPU and on a device, as a function of seed, step and rank. Returns their seed."""
    key = int(sample_keys(seed, step, 1)[0] ^ (rank * 0x9E3779B9)) & (2**63 - 1)
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)
    return key


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context with a seeded CPU generator, to initialise models. Restores all global generators at its end."""
    with restored_generators(torch.device("cpu")):
        torch.default_generator.manual_seed(seed)
        yield
