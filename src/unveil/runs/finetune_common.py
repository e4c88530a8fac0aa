"""Training a task on labelled samples inside a run folder, images and texts alike: what fine-tuning is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.loader import Loader
from unveil.interop import model_files as native
from unveil.learner import Learner, Task
from unveil.runs.train_in_run import fit
from unveil.reports.page import write_page
from unveil.evaluate.metrics import score
from unveil.train.log import Record
from unveil.train.loop import TrainConfig, total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import World, HardwareConfig, shutdown
from unveil.train.run_folder import Run, tell
from unveil.train.state import load_model_state


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What to fine-tune on."""

    scratch: bool = False
    """The same recipe and budget without pre-training: the yardstick."""
    labels: int = 0
    """Labelled samples to train on, balanced over the classes; 0 takes all."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


class Labelled(ABC):
    """Samples with labels: some to train on, others to judge on."""

    noun: ClassVar[str]
    """What they are, in the plural."""
    classes: Sequence[str]
    cut: bool
    """Whether those to judge on were cut off the others."""

    @property
    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """How many there are to train on, and to judge on."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the data is, for `run.json`."""

    @abstractmethod
    def loader(self, training: TrainConfig) -> Loader:
        """Those to train on, in the order of a run."""

    @abstractmethod
    def judge(
        self, task: Task, hardware: HardwareConfig, world: World, most: int | None = None
    ) -> tuple[Float[Tensor, "n K"], Int[Tensor, " n"]]:
        """The scores that a task gives to those to judge on, or to `most` of them, and their classes."""

    @abstractmethod
    def write(self, run: Path, scores: Float[Tensor, "n K"]) -> None:
        """Writes down what was predicted of each."""


def tune(
    run: Run,
    build: Callable[[], Task],
    samples: Labelled,
    own: TuningConfig,
    training: TrainConfig,
    optim: OptimConfig,
    hardware: HardwareConfig,
    world: World,
) -> Run:
    """Trains a task, or goes on with it, judges it, and writes down what came of it.

    Args:
        run: Its folder, opened.
        build: Makes the task, with the same weights each time.
        samples: What it learns from and is judged on.
        own: What sort of run it is.
        training: How long, on how much at a time.
        optim: How fast.
        hardware: Where, and in which precision.
        world: This process among all.
    """
    say, title, classes = tell(world.is_main), "scratch" if own.scratch else "finetune", samples.classes
    learner, loader, (count, test_set) = build(), samples.loader(training), samples.counts
    if world.is_main:
        native.write_config(learner, run.path, classes=classes)
    total = total_steps(training, loader)
    say(
        f"{'training from scratch' if own.scratch else 'fine-tuning'} on {count:,} labelled {samples.noun} of {len(classes)} "
        f"classes, judged on {test_set:,}{' kept aside' if samples.cut else ''}; {total:,} steps of {training.batch_size} in "
        f"{hardware.precision}"
    )
    watch = partial(accuracy, samples=samples, hardware=hardware, world=world)
    fit(learner, loader, run, world, training, optim, hardware, [watch], own.tracker, title)
    if world.is_main:
        load_model_state(learner := build(), run.checkpoints().load(total, "model"))
        learner.to(world.device).eval()
        native.save(learner, run.path, classes=classes)
        scores, truth = samples.judge(learner, hardware, world)
        samples.write(run.path, scores)
        final = score(scores, truth)
        run.write_results(
            {
                "score": final.to_json(),
                "samples": samples.noun,
                "classes": classes,
                "trained_on": count,
                "kept_aside": samples.cut,
                "seconds": sum(line.get("seconds", 0.0) for line in run.log),
            }
        )
        page = write_page(run, learner)
        five = f"   top-5 {100 * final.top5:.2f} %" if len(classes) > 5 else ""
        say(f"top-1 {100 * final.top1:.2f} %{five}   on {final.count:,} {samples.noun}\nThe report:  {page}")
    shutdown(world)
    return run


def accuracy(learner: Learner, *, samples: Labelled, hardware: HardwareConfig, world: World) -> Record:
    """Accuracy on up to 1,000 of the samples that the end result is judged on."""
    assert isinstance(learner, Task)
    return {"accuracy": score(*samples.judge(learner, hardware, world, 1000)).top1}
