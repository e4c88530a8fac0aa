"""The best weights of a run so far by a validation metric, and early stopping."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints, Tensors
from unveil.train.log import Record
from unveil.train.state import model_state


class BestWeights:
    """Keeps the weights of the step with the best value of a metric.

    They are in a folder of their own, as one checkpoint without the state of the optimiser, whose manifest holds the value. So a
    run that resumes goes on comparing with it. If it resumes from an earlier step, it computes the same values again.

    Args:
        folder: The folder, in that of the run.
        key: The name of the metric in the lines of the log.
        lower_is_better: Whether the metric is an error.
        patience: Stop after this many evaluations in a row that were not better; 0 never stops.
        warn: Called with a sentence if the weights are damaged.
    """

    def __init__(
        self, folder: Path, key: str, *, lower_is_better: bool = False, patience: int = 0, warn: Callable[[str], None] = print
    ) -> None:
        self.checkpoints = Checkpoints(folder, keep=1, warn=warn)
        self.key, self.lower_is_better, self.patience = key, lower_is_better, patience
        self.step, self.value = self._read()

    def _read(self) -> tuple[int | None, float]:
        step = self.checkpoints.newest()
        manifest: dict[str, Any] = {} if step is None else self.checkpoints.manifest(step)
        if step is None or manifest.get("key") != self.key:
            return None, float("nan")
        return step, float(manifest["value"])

    def offer(self, step: int, record: Record, learner: Learner) -> None:
        """Keeps the weights if the metric in `record` is better than before. Of two equal values, the earlier step is kept."""
        value = record.get(self.key)
        if value is None or value != value or (self.step is not None and not self._is_better(value)):
            return
        self.checkpoints.save(step, {"model": model_state(learner)}, {"key": self.key, "value": value, "finite": True})
        self.step, self.value = step, value

    def _is_better(self, value: float) -> bool:
        return value < self.value if self.lower_is_better else value > self.value

    def is_exhausted(self, done: int, eval_steps: Collection[int]) -> bool:
        """Whether `patience` evaluations up to the step `done` were not better than the best one."""
        if not self.patience or self.step is None:
            return False
        return sum(self.step < step <= done for step in eval_steps) >= self.patience

    def load(self) -> Tensors:
        """The best weights. Only for a run that has some."""
        assert self.step is not None
        return self.checkpoints.load(self.step, "model")
