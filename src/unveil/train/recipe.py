"""The options of training, in one object: `Recipe`."""

from dataclasses import dataclass, replace

from unveil.errors import UnveilError
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of a run, its batches, and what it writes."""

    HIDDEN = ("log_every", "num_evals", "save_seconds", "keep_checkpoints")
    epochs: float = 100.0
    """Passes over the data."""
    batch_size: int = 256
    """Samples per optimiser step, over all processes and microbatches."""
    accum_steps: int = 0
    """Microbatches per optimiser step, with the same result (gradient accumulation); 0 takes the fewest that fit into memory."""
    seed: int = 0
    """Random seed for weights, data order, augmentation and masks."""
    log_every: int = 10
    """Steps between two lines of the log."""
    num_evals: int = 10
    """How many times to evaluate the encoder during the run (k-NN, held-out loss)."""
    save_seconds: float = 20.0
    """Seconds between two checkpoints; longer if saving would otherwise take more than 2 % of the time."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep."""

    def __post_init__(self) -> None:
        least = {"batch_size": 0, "accum_steps": 0, "log_every": 1, "num_evals": 0, "keep_checkpoints": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UnveilError(f"{name} is {getattr(self, name)}: use {minimum} or more")
        if not self.epochs > 0:
            raise UnveilError(f"epochs is {self.epochs}: use a number above 0")

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
