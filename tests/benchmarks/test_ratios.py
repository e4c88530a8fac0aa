"""The benchmark of mask ratios prints a row for each of them, relative to 75 %."""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")  # sides.py also has the step of its ViTMAE


def test_rows(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    small = ["--image-size", "16", "--patch-size", "4", "--decoder-width", "16", "--decoder-depth", "1", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["ratios.py", "--model", "vit-nano", "--device", "cpu", "--rounds", "2", *small])
    importlib.import_module("ratios").main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    for name in ("ratios", "sides", "turns"):
        sys.modules.pop(name, None)
    assert [int(row[1]) for row in rows] == [16, 8, 4, 1, 16]  # patches in the encoder
    flops = [float(row[3]) for row in rows]
    assert flops[0] > flops[1] > flops[2] == 1.0 > flops[3]
    assert flops[4] > 1.0
    assert all(float(row[4]) > 0 and float(row[6]) > 0 for row in rows)
    assert rows[2][5] == "1.00 (1.00 to 1.00)"
