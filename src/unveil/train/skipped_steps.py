"""Steps whose loss or gradient is not finite. They change nothing, and are counted and explained. Many of them stop the run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.data.batch import Samples
from unveil.data.loader import Loader
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints
from unveil.train.parallel import HardwareConfig, World, autocast, first_over_processes, is_replicated, local_tensor

MAX_SHARE = 0.1
"""Maximum share of the steps that may be skipped, once more than `max_skipped_steps` were."""
MAX_NAMES, MAX_FORWARD = 5, 64
"""Maximum numbers of images to name, and of forward passes to find them."""
OTHER_SETTINGS = "a smaller --base-lr, --clip-grad 1 or --precision float32"


class ComputedStep(NamedTuple):
    """A step whose gradients are computed, and not applied yet."""

    number: int
    """Number of the step, from 0."""
    samples: Sequence[Samples]
    """What this process computed it from."""
    results: Sequence[dict[str, Tensor]]
    """The loss and the metrics of each microbatch."""
    norm: Tensor
    """The norm of the gradient."""

    @property
    def losses(self) -> list[Tensor]:
        """The loss of each microbatch."""
        return [each["loss"] for each in self.results]


class SkippedSteps:
    """Counts the steps that were skipped, and undoes what their forward pass changed.

    Args:
        learner: The learner.
        most: Steps in a row to skip before the run stops.
    """

    def __init__(self, learner: Learner, most: int) -> None:
        self.learner, self.most = learner, most
        self.count = self.in_a_row = 0
        self.repeats = False
        """Whether the run was stopped for this reason, and no step was applied since."""
        self._before = (0, 0)  # `count` and step at the last stop
        self._owners = [(module, name) for module in learner.modules() for name, x in module._buffers.items() if x is not None]
        self._kept: list[Tensor] = []

    def keep_buffers(self) -> None:
        """Copies all buffers, such as the statistics of a batch norm or the centre of DINO, before a step changes them."""
        self._kept = self._copies()

    def restore_buffers(self, where: Float[Tensor, ""] | None = None) -> None:
        """Restores the buffers to what they were before the step; with `where`, if this is not 0, without waiting for a GPU."""
        self._restore(self._kept, where)

    @contextmanager
    def same_buffers(self) -> Iterator[None]:
        """A context whose end restores the buffers to what they were at its beginning."""
        kept = self._copies()
        yield
        self._restore(kept)

    @torch.no_grad()
    def _copies(self) -> list[Tensor]:
        return [x.clone() for module, name in self._owners if (x := module._buffers[name]) is not None]

    @torch.no_grad()
    def _restore(self, kept: Sequence[Tensor], where: Float[Tensor, ""] | None = None) -> None:
        for (module, name), value in zip(self._owners, kept, strict=True):
            now = module._buffers[name]
            assert now is not None
            now.copy_(value if where is None else torch.where(where > 0, value, now))

    def applied(self) -> None:
        """Notes that a step was applied."""
        self.in_a_row, self.repeats = 0, False

    def skip(self, step: int) -> bool:
        """Counts a step, and returns whether the run must stop. Then the count starts again."""
        self.count += 1
        self.in_a_row += 1
        count, steps = self.count - self._before[0], step + 1 - self._before[1]
        stops = self.in_a_row >= max(self.most, 1) or (count > self.most and count > MAX_SHARE * steps)
        if stops:
            self.in_a_row, self._before = 0, (self.count, step + 1)
        return stops

    def state(self, stopped: bool = False) -> dict[str, Any]:
        """The counts as JSON values for a checkpoint."""
        return {"count": self.count, "in_a_row": self.in_a_row, "before": self._before, "stopped": stopped or self.repeats}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Loads the result of `state`; None is that of an earlier version, which skipped no steps."""
        if state:
            self.count, self.in_a_row, self.repeats = state["count"], state["in_a_row"], state["stopped"]
            self._before = tuple(state["before"])


def explain(learner: Learner, bad: ComputedStep, loader: Loader, hardware: HardwareConfig, world: World, part: int) -> str:
    """Why a step is not finite, on any process. Every process must call it.

    Args:
        learner: The learner, whose weights are finite.
        bad: The step.
        loader: Names the images.
        hardware: For the precision.
        world: The processes.
        part: Number of parts in which each process loads the samples of a step.
    """
    losses = torch.stack([loss.detach().float() for loss in bad.losses])
    own = None if losses.isfinite().all() else explain_loss(learner, bad, losses, loader, hardware, world, part)
    found = first_over_processes(own, world)
    if found is not None:
        return found
    names = named([name for names in names_of(loader, bad.number, world, part) for name in names])
    return f"the loss is finite, {losses.mean():.4g}, but the norm of the gradient is {float(bad.norm)}; {names}"


def explain_loss(
    learner: Learner, bad: ComputedStep, losses: Tensor, loader: Loader, hardware: HardwareConfig, world: World, part: int
) -> str:
    """Which samples of this process have a loss that is not finite."""
    value, names = float(losses.sum()), names_of(loader, bad.number, world, part)
    found, total = list[str](), sum(len(samples.keys) for samples in bad.samples)
    for samples, own in zip(bad.samples, names or [[] for _ in bad.samples], strict=True):
        rows = rows_that_fail(learner, samples, hardware, world)
        found += [own[row] if own else f"sample {row + 1}" for row in rows]
    if found:
        return f"the loss is {value}, because of {len(found)} of {total} samples: {', '.join(found[:MAX_NAMES])}"
    return f"the loss is {value}; {named([name for each in names for name in each])}"


def rows_that_fail(learner: Learner, samples: Samples, hardware: HardwareConfig, world: World) -> list[int]:
    """The samples whose loss alone is not finite, found by bisection; empty if that cannot be told."""
    if learner.needs_whole_batch or learner.augments_whole_batch or hardware.compile or not is_replicated(hardware, world):
        return []

    def fails(start: int, stop: int) -> bool:
        with torch.no_grad(), autocast(hardware, world):
            return not learner(learner.augment(samples.rows(start, stop).to(world.device))).loss.isfinite().all()

    try:
        return bisect(fails, len(samples.keys))
    except Exception:  # a learner that takes whole batches only, without saying so
        return []


def bisect(fails: Callable[[int, int], bool], count: int) -> list[int]:
    """The rows of 0 to `count` - 1 that fail alone, where `fails(start, stop)` tells whether one of several rows does."""
    found, parts = list[int](), [(0, count)]
    for _ in range(MAX_FORWARD):
        if not parts or len(found) > MAX_NAMES:
            break
        start, stop = parts.pop()
        if not fails(start, stop):
            continue
        if stop - start == 1:
            found.append(start)
        else:
            middle = (start + stop) // 2
            parts += [(middle, stop), (start, middle)]
    return found


def names_of(loader: Loader, step: int, world: World, part: int) -> list[list[str]]:
    """The names of the samples of this process, for each of its parts; empty if the loader has none."""
    names = getattr(loader, "names", None)
    if names is None:
        return []
    found: list[list[str]] = [names(step, world.rank * part + i, world.size * part) for i in range(part)]
    return found


def named(names: Sequence[str]) -> str:
    """The images of a batch, for a message."""
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return f"the batch holds {', '.join(names[:MAX_NAMES])}{more}" if names else "the samples have no names"


def zeros_if(dropped: Float[Tensor, ""], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values, or zeros if `dropped` is 1."""
    return {key: torch.where(dropped > 0, 0.0, value) for key, value in values.items()}


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with values that are not finite; of a sharded tensor, its part on this process is looked at."""
    local = {name: local_tensor(value.detach()) for name, value in tensors.items()}
    flags = {name: value.isfinite().all() for name, value in local.items() if value.is_floating_point()}
    fine = dict[str, bool]()
    for device in {flag.device for flag in flags.values()}:  # one read from a GPU for all of them
        names = [name for name, flag in flags.items() if flag.device == device]
        fine |= zip(names, torch.stack([flags[name] for name in names]).tolist(), strict=True)
    return [name for name in flags if not fine[name]]


def refuse_broken_weights(broken: Sequence[str], done: int, rate: float, checkpoints: Checkpoints | None, world: World) -> None:
    """Raises `UnveilError` if tensors of a run are not finite, on any process. Every process must call it.

    Args:
        broken: The names of those that are not.
        done: The number of steps done.
        rate: The learning rate of the last one.
        checkpoints: The checkpoints of the run.
        world: The processes.
    """
    first = first_over_processes(broken[0] if broken else None, world)
    if first is None:
        return
    if not done:
        raise UnveilError(f"the model is not finite before the first step, see {first}: check the weights that it starts from")
    raise UnveilError(
        f"after step {done}, the model is not finite any more, see {first}: the steps were too large (learning rate {rate:.2e}). "
        f"{what_is_safe(checkpoints, again='comes to the same point again')}"
    )


def what_is_safe(checkpoints: Checkpoints | None, again: str) -> str:
    """Says which checkpoint is good, and how to go on."""
    if checkpoints is None:
        return f"Use {OTHER_SETTINGS}."
    steps = checkpoints.steps()
    if not steps:
        return f"No checkpoint was saved before. Use {OTHER_SETTINGS}, with a new --out."
    return (
        f"The checkpoint of step {steps[0]} is good. The same command {again}; to go on from there with other settings, add "
        f"--resume-from {checkpoints.folder.parent}, a new --out, and {OTHER_SETTINGS}."
    )
