"""Seeds of a step, and global generators."""

import random

import numpy as np
import pytest
import torch

from unveil.train.guards import restored_generators, seed_all, seeded
from unveil.train.parallel import World


def draw() -> list[float]:
    return [torch.rand(()).item(), random.random(), np.random.rand()]


def test_seeds_depend_on_seed_step_and_rank_alone():
    with restored_generators(torch.device("cpu")):
        drawn = {}
        for seed in (0, 1):
            for step in (0, 1, 10**6):
                for rank in (0, 1):
                    world = World(torch.device("cpu"), rank, 2)
                    seed_all(seed, step, world)
                    drawn[seed, step, rank] = draw()
                    draw()
                    seed_all(seed, step, world)
                    assert draw() == drawn[seed, step, rank]
        for generator in range(3):
            assert len({values[generator] for values in drawn.values()}) == len(drawn)


@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_are_restored(fails):
    def use() -> None:
        with restored_generators(torch.device("cpu")):
            seed_all(1, 2, World(torch.device("cpu")))
            draw()
            if fails:
                raise ValueError
        with seeded(3):
            draw()

    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    try:
        use()
    except ValueError:
        assert fails
    assert draw() == expected
