"""Computes a step in several microbatches, with the gradients that one large batch would give."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from unveil.blocks.microbatches import microbatch
from unveil.data.batch import Samples
from unveil.learner import Learner
from unveil.train.guards import get_generators, seed_torch, set_generators
from unveil.train.recipe import Recipe


class Microbatches:
    """The microbatches of a process in a step.

    Samples are augmented together if the learner mixes them (`Learner.augments_whole_batch`). Drop path draws the same numbers for
    a sample however a step is split into microbatches and processes. Dropout does not: it would have to draw the numbers of all
    samples in each microbatch. So with dropout the gradients have the same distribution, but not the same values.
    """

    def __init__(self, learner: Learner, count: int, recipe: Recipe) -> None:
        self.count, self._world, self._training = count, recipe.world, recipe.training
        self._whole = learner.augments_whole_batch
        self._augment = torch.compile(learner.augment) if recipe.hardware.compile else learner.augment
        has_dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in learner.modules())
        self._shares = 1 if has_dropout else count * self._world.size  # in which a step is computed
        self._state: Any = None

    @property
    def loaded(self) -> int:
        """Number of parts in which the samples of a step are loaded."""
        return 1 if self._whole else self.count

    def augmented(self, samples: Sequence[Samples]) -> Iterator[Any]:
        """Yields the augmented microbatches of the samples of a step."""
        if self._whole:
            whole = self._augment_one(samples[0])
            yield from [whole] if self.count == 1 else whole.chunks(self.count)
        else:
            yield from map(self._augment_one, samples)

    @torch.no_grad()
    def _augment_one(self, samples: Samples) -> Any:
        return self._augment(samples.to(self._world.device))

    @contextmanager
    def alike(self, number: int, step: int) -> Iterator[None]:
        """The context in which microbatch `number` of a step is computed."""
        world, training = self._world, self._training
        if self._shares > 1 and world.size > 1:
            seed_torch(training.seed, step, world.device)  # the same on every process
        elif self._shares > 1 and number == 0:
            self._state = get_generators(world.device)
        elif self._shares > 1:
            set_generators(self._state, world.device)
        share = world.rank * self.count + number
        with microbatch(share, self._shares, training.batch_size // self._shares, world.device):
            yield
