"""Seeds of a step, and the explanation of a loss that is not finite."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.train.guards import check_finite, restored_generators, seed_all, seeded
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


def test_a_loss_that_is_not_finite_is_explained():
    model, record = nn.Linear(2, 2), {"loss": 1.0, "gradient_norm": 2.0, "step": 7, "learning_rate": 0.5}
    fine = [Batch(torch.ones(1, 3, 2, 2), torch.ones(1, 2), torch.ones(1))]
    check_finite(model, record, fine)
    for broken in ({"loss": float("nan")}, {"gradient_norm": float("inf")}):
        with pytest.raises(UnveilError, match="all parameters are finite: a value overflowed") as caught:
            check_finite(model, record | broken, fine)
    assert "near step 7 (learning rate 5.00e-01)" in str(caught.value)
    assert "Try a smaller --base-lr" in str(caught.value)
    poisoned = [fine[0]._replace(images=torch.full((1, 3, 2, 2), float("inf")))]
    with pytest.raises(UnveilError, match="the images contain values that are not finite"):
        check_finite(model, record | {"loss": float("inf")}, fine + poisoned)
    with torch.no_grad():
        model.bias[0] = float("nan")
    with pytest.raises(UnveilError, match="1 parameters are not finite, the first is bias: the steps were too large"):
        check_finite(model, record | {"loss": float("nan")}, fine)
