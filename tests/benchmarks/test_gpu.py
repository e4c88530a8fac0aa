"""The benchmark of the choices for a GPU, rehearsed on the CPU."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = "--device cpu --model vit-nano --image-size 16 --patch-size 4 --batch 8 --images 16 --steps 4 --rounds 2".split()


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_way_is_a_run_and_a_line_is_written(benchmark, monkeypatch, tmp_path, capsys):
    out, saved, save = tmp_path / "lines.jsonl", [], benchmark.Checkpoints.save
    monkeypatch.setattr(benchmark.Checkpoints, "save", lambda self, step, *more: (saved.append(step), save(self, step, *more))[1])
    monkeypatch.setattr(sys, "argv", ["gpu.py", *SMALL, "--only", "lag", "save", "gather", "precision", "--out", str(out)])
    benchmark.main()
    said = capsys.readouterr().out
    assert "gather: not measured, since it takes several processes: use torchrun" in said
    lines = {line["choice"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert list(lines) == ["lag", "save", "precision"]
    assert {name: len(times) for name, times in lines["lag"]["seconds"].items()} == {"with it": 2, "without it": 2}
    assert all(0 < time < 60 for line in lines.values() for times in line["seconds"].values() for time in times)
    assert saved == [2, 4] * 6
    assert "float32" in lines["precision"]["seconds"]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"b": [2.0, 2.1, 1.9]}, "a is the fastest"),
        ({"b": [0.5, 0.6, 0.55], "c": [0.9, 0.8, 0.7]}, "b is faster than a"),
        ({"b": [1.2, 0.8, 1.0], "c": [2.0, 2.0, 2.0]}, "no difference between a and b"),
        ({"b": [0.995, 0.995, 0.995]}, "no difference between a and b"),
    ],
)
def test_the_verdict_heeds_the_spread(benchmark, others, says):
    assert benchmark.verdict({"a": [1.0, 1.0, 1.0], **others}) == says
