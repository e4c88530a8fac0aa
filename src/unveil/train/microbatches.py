"""Computes a step in several microbatches, with the gradients that one large batch would give."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from unveil.blocks.microbatches import microbatch
from unveil.data.batch import Samples
from unveil.learner import Learner
from unveil.train.guards import get_generators, set_generators
from unveil.train.parallel import HardwareConfig, World


class Microbatches:
    """The microbatches of a process in a step.

    Samples are augmented together if the learner mixes them (`Learner.augments_whole_batch`). Drop path draws the same numbers for
    a sample however the batch is split. Dropout does not: it would have to draw numbers for the whole batch in each microbatch, so
    with dropout the gradients have the same distribution, but not the same values.
    """

    def __init__(self, learner: Learner, count: int, hardware: HardwareConfig, world: World) -> None:
        self.count, self._device, self._whole = count, world.device, learner.augments_whole_batch
        self._augment = torch.compile(learner.augment) if hardware.compile else learner.augment
        self._replays = count > 1 and not any(isinstance(module, nn.Dropout) and module.p > 0 for module in learner.modules())
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
        return self._augment(samples.to(self._device))

    @contextmanager
    def alike(self, number: int, samples: Sequence[Samples]) -> Iterator[None]:
        """The context in which microbatch `number` of these samples is computed."""
        if self._replays and number == 0:
            self._state = get_generators(self._device)
        elif self._replays:
            set_generators(self._state, self._device)
        size = sum(len(each.keys) for each in samples) // self.count
        with microbatch(number, self.count if self._replays else 1, size, self._device):
            yield
