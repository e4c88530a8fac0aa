"""The benchmark of a step compares equal work, by wall time and by processor time, and never finds more than the peak."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("step")
    for name in ("step", "sides", "turns"):
        sys.modules.pop(name, None)


def run(step, monkeypatch, tmp_path, *options):
    out = tmp_path / "step.jsonl"
    small = ["--image-size", "16", "--patch-size", "4", "--batch", "2", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["step.py", "--device", "cpu", *small, *options])
    step.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_both_decoders_with_their_times(step, monkeypatch, tmp_path):
    default, paper = run(step, monkeypatch, tmp_path, "--model", "vit-nano", "--precision", "float32")
    assert [default["decoder"], paper["decoder"]] == ["default", "paper"]
    assert [default["decoder_shape"], paper["decoder_shape"]] == ["96 x 2, 3 heads", "512 x 8, 16 heads"]
    for record in (default, paper):
        ours, theirs = record["variants"]["unveil"], record["variants"]["transformers"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["flops"] < theirs["flops"]  # what unveil saves is not counted as work that it did
        for side in (ours, theirs):
            assert len(side["seconds"]) == len(side["cpu_seconds"]) == 2
            assert min(side["seconds"] + side["cpu_seconds"]) > 0
            assert 0 < side["peak_share"] <= 1
            assert side["peak_bytes"] > 0


def test_a_default_that_is_the_papers_is_measured_once(step, monkeypatch):
    compared = []
    monkeypatch.setattr(step, "compare", lambda ours, names, args: compared.append((names["model"], names["decoder"])))
    monkeypatch.setattr(sys, "argv", ["step.py", "--image-size", "32", "--model", "vit-tiny", "vit-base"])
    step.main()
    assert compared == [("vit-tiny", "default"), ("vit-tiny", "paper"), ("vit-base", "default")]


def test_losses_that_differ_are_refused(step):
    sides = {"unveil": lambda count, mode: lambda: torch.tensor(1.0), "peer": lambda count, mode: lambda: torch.tensor(1.001)}
    assert step.checked_losses(sides, 2, 1e-2).keys() == sides.keys()
    with pytest.raises(SystemExit, match=r"the loss of peer is 1\.00"):
        step.checked_losses(sides, 2, 1e-4)


def test_the_peak_is_the_best_rate_by_the_clock_of_the_device(step):
    products = {"small": (10.0, print), "large": (80.0, print)}
    laps = {"small": [(1.0, 5.0), (2.0, 4.0)], "large": [(16.0, 16.0), (20.0, 40.0)]}  # wall, processor
    assert step.fastest(products, laps, torch.device("cpu")) == (5.0, "large")
    assert step.fastest(products, laps, torch.device("cuda")) == (10.0, "small")


def test_turns_are_measured_by_both_clocks(step):
    from turns import take_timed_turns, take_turns

    names = []
    variants = {name: lambda name=name: (names.append(name), time.sleep(0.05)) for name in "ab"}
    laps = take_timed_turns(variants, torch.device("cpu"), rounds=2, warmup=1, repeat=2)
    assert "".join(names) == "ab" + "aabb" + "bbaa"  # the order rotates
    assert all(wall >= 0.05 > cpu for rounds in laps.values() for wall, cpu in rounds)
    assert all(times == [0.0, 0.0] for times in take_turns(variants, torch.device("cpu"), rounds=2, clock=lambda: 1.0).values())
