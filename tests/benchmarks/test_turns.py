"""Batch sizes are tried until memory runs out, or until larger ones are no faster."""

import importlib.util
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("turns", Path(__file__).parents[2] / "benchmarks" / "turns.py")
assert spec is not None
assert spec.loader is not None
turns = importlib.util.module_from_spec(spec)
spec.loader.exec_module(turns)


@pytest.mark.parametrize(
    ("seconds", "tried"),
    [
        ({2: 1.0, 4: 1.0, 8: 1.0, 16: None, 32: 1.0}, {2: 2, 4: 4, 8: 8}),  # 16 does not fit
        ({2: 1.0, 4: 4.0, 8: 1.0, 16: 16.0, 32: 32.0, 64: 1.0}, {2: 2, 4: 1, 8: 8, 16: 1, 32: 1}),  # twice in a row no faster
        ({2: None}, {}),
    ],
)
def test_batch_sizes_are_tried_until_one_does_not_fit_or_two_are_no_faster(seconds, tried, monkeypatch):
    def at(count):
        if seconds[count] is None:
            raise torch.OutOfMemoryError
        return count

    def take_turns(steps, device, **_):
        best = seconds[steps["step"]]
        return {"step": [2 * best, best]}

    monkeypatch.setattr(turns, "take_turns", take_turns)
    assert dict(turns.at_batches(at, seconds, torch.device("cpu"))) == tried
