"""The options of training, in one object: `Recipe`."""

from dataclasses import dataclass, replace
from typing import Annotated

from unveil.ranges import Count, CountOrZero, NonNegative, Range, Seed
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.schedule import Restart


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of a run, its batches, and what it writes."""

    HIDDEN = ("log_every", "num_evals", "save_seconds", "keep_checkpoints", "max_skipped_steps")
    epochs: Annotated[float, Range(0, 1_000_000, above=True)] = 100.0
    """Passes over the data."""
    batch_size: Annotated[int, Range(0, 2**24)] = 256
    """Samples per optimiser step, over all processes and microbatches."""
    accum_steps: CountOrZero = 0
    """Microbatches per optimiser step, with the same result (gradient accumulation); 0 takes the fewest that fit into memory."""
    seed: Seed = 0
    """Random seed for weights, data order, augmentation and masks."""
    log_every: Count = 10
    """Steps between two lines of the log."""
    num_evals: Annotated[int, Range(0, 10_000)] = 10
    """How many times to evaluate the encoder during the run (k-NN, held-out loss)."""
    save_seconds: NonNegative = 20.0
    """Seconds between two checkpoints; longer if saving would otherwise take more than 2 % of the time."""
    keep_checkpoints: Count = 3
    """Number of checkpoints to keep."""
    max_skipped_steps: CountOrZero = 10
    """Steps in a row that may be skipped because the loss or the gradient is not finite; then the run stops."""

    def with_batch_size(self, samples: int) -> "TrainConfig":
        """Replaces batch size 0 by 1024, or by a twentieth of the samples, but at least 32."""
        return self if self.batch_size else replace(self, batch_size=max(32, min(1024, samples // 20)))


@dataclass(frozen=True)
class Recipe:
    """The options of training, and the processes to train on."""

    training: TrainConfig
    optim: OptimConfig
    hardware: HardwareConfig
    world: World
    restarts: tuple[Restart, ...] = ()
    """Where the run was made longer. The learning rate warms up again there, and then follows its schedule to the new end."""

    def at(self, step: int, total: int) -> tuple[float, float]:
        """Learning rate and weight decay at a step of a run of `total` steps. They depend on nothing else, so resuming is exact."""
        first, last, optim = self.part_of(step, total)
        rate, _ = optim.at(step - first, last - first, self.training.batch_size)
        return rate, optim.at(step, last, self.training.batch_size)[1]

    def part_of(self, step: int, total: int) -> tuple[int, int, OptimConfig]:
        """The first and the last step of the schedule that a step belongs to, and its options, with the warm-up as a share."""
        begun = sum(step >= restart.step for restart in self.restarts)
        first = self.restarts[begun - 1].step if begun else 0
        ends = [*((restart.total, restart.epochs) for restart in self.restarts), (total, self.training.epochs)]
        last, epochs = ends[begun]
        return first, last, self.optim.resolve_warmup(epochs * (last - first) / last if first else epochs)
