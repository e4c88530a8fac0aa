"""The best weights of a run and early stopping: chosen by the metric, and the same after a run was killed and resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_loop import Lines, Numbers, Small, recipe
from unveil.learner import Learner
from unveil.train.best import BestWeights
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Record
from unveil.train.loop import train

TOTAL = 10


class Scripted:
    """A monitor whose n-th evaluation has a given value; keeps the weights that it saw."""

    def __init__(self, values: Sequence[float | None], first: int = 0) -> None:
        self.values, self.count, self.seen = values, first, dict[int, dict[str, torch.Tensor]]()

    def __call__(self, learner: Learner) -> Record:
        self.count += 1
        self.seen[self.count] = {name: value.clone() for name, value in learner.state_dict().items()}
        value = self.values[self.count - 1]
        return {} if value is None else {"score": value}


def fit(numbers: Numbers, folder: Path, **arguments: Any) -> None:
    """Trains for `TOTAL` steps, each of which is evaluated and saved."""
    kept = Checkpoints(folder / "c")
    train(Small(), numbers, recipe(epochs=2, num_evals=TOTAL, save_seconds=0), checkpoints=kept, **arguments)


def run(folder: Path, values: Sequence[float | None], **options: object) -> tuple[BestWeights, Scripted, Lines]:
    best, monitor, lines = BestWeights(folder / "best", "score", **options), Scripted(values), Lines()
    train(
        Small(),
        Numbers(),
        recipe(epochs=2, num_evals=TOTAL),
        checkpoints=Checkpoints(folder / "c"),
        sinks=[lines],
        monitors=[monitor],
        best=best,
    )
    return best, monitor, lines


@pytest.mark.parametrize(
    ("values", "lower", "step"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.1, 0.2, 0.1, 0.1, 0.2, 0.0], False, 2),  # of equal values, the first
        ([0.1, 0.3, 0.2, 0.3, 0.1, 0.2, 0.1, 0.1, 0.2, 0.0], True, 10),
        ([None, float("nan"), 0.2, None, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], False, 3),
    ],
)
def test_the_weights_of_the_best_value_are_kept(tmp_path, values, lower, step):
    best, monitor, _ = run(tmp_path, values, lower_is_better=lower)
    assert (best.step, best.value) == (step, values[step - 1])
    again = BestWeights(tmp_path / "best", "score", lower_is_better=lower)
    assert (again.step, again.value) == (step, values[step - 1])
    for name, value in again.load().items():
        assert torch.equal(value, monitor.seen[step][name])
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_patience_ends_the_run_with_a_checkpoint(tmp_path):
    values = [0.1, 0.4, 0.3, 0.4, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9]
    best, monitor, lines = run(tmp_path, values, patience=3)
    assert best.step == 2
    assert monitor.count == 5  # the evaluations 3, 4 and 5 were no better
    assert Checkpoints(tmp_path / "c").steps()[0] == 5
    assert [line["step"] for line in lines.records if "score" in line] == [1, 2, 3, 4, 5]
    _, again, _ = run(tmp_path, values, patience=3)
    assert again.count == 0  # the same command does not go on
    best, _, _ = run(tmp_path, values[5:], patience=0)  # without patience it does
    assert (best.step, Checkpoints(tmp_path / "c").steps()[0]) == (6, TOTAL)


def test_patience_that_is_not_exhausted_changes_nothing(tmp_path):
    values = [0.1, 0.0, 0.0, 0.2, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0]
    best, monitor, _ = run(tmp_path, values, patience=4)
    assert (best.step, monitor.count) == (7, TOTAL)


@pytest.mark.parametrize("last", range(1, 9))
def test_a_killed_run_keeps_the_same_best_weights(tmp_path, last):
    """The weights of an evaluation may be on the disk before the checkpoint of its step: it is repeated on resume."""
    values = [0.1, 0.5, 0.2, 0.6, 0.3, 0.3, 0.7, 0.1, 0.1, 0.2]
    whole, _, _ = run(tmp_path / "whole", values, patience=4)
    folder, monitor = tmp_path / "cut", Scripted(values)
    best = BestWeights(folder / "best", "score", patience=4)
    with pytest.raises(KeyboardInterrupt):
        train(
            Small(),
            Numbers(last),
            recipe(epochs=2, num_evals=TOTAL, save_seconds=0),
            checkpoints=Checkpoints(folder / "c"),
            monitors=[monitor],
            best=best,
        )
    first = (Checkpoints(folder / "c").steps() or [0])[0]
    best, resumed = BestWeights(folder / "best", "score", patience=4), Scripted(values, first)
    train(
        Small(), Numbers(), recipe(epochs=2, num_evals=TOTAL), checkpoints=Checkpoints(folder / "c"), monitors=[resumed], best=best
    )
    assert (best.step, best.value) == (whole.step, whole.value) == (7, 0.7)
    assert all(torch.equal(value, whole.load()[name]) for name, value in best.load().items())


def test_damaged_weights_and_another_metric_are_not_used(tmp_path):
    best, _, _ = run(tmp_path, [0.1, 0.5, *[0.2] * 8])
    assert BestWeights(tmp_path / "best", "loss").step is None
    file = tmp_path / "best" / f"step-{best.step:08d}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    warnings: list[str] = []
    assert BestWeights(tmp_path / "best", "score", warn=warnings.append).step is None
    assert "checksum" in warnings[0]
