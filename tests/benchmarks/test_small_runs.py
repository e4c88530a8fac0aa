"""Other benchmarks run from beginning to end on a few images or features, and print a line for each variant."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unveil.data.parts import HELD_OUT
from unveil.experiments.compare import build_comparison, entry_of
from unveil.reports.comparison import row_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark as the command line does, and returns what it printed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def printed(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        try:
            importlib.import_module(name).main()
        finally:
            for module in (name, "turns"):
                sys.modules.pop(module, None)
        return capsys.readouterr().out

    return printed


def test_probe(run, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # of the whole test run
    rng, sets = np.random.default_rng(0), {}
    for name, count in (("train", 120), ("test", 60)):
        labels = np.arange(count) % 3
        sets[name] = tmp_path / f"{name}.npz"
        np.savez(sets[name], features=3.0 * np.eye(8)[labels] + rng.normal(size=(count, 8)), labels=labels)
    out = run("probe", "--features", sets["train"], "--test", sets["test"], "--rounds", 2)
    assert "120 x 8 features, 3 classes" in out
    shares = {line.partition(":")[0]: float(line.split()[-2]) for line in out.splitlines() if line.endswith("%")}
    assert shares.keys() == {"unveil", "one penalty", "scikit-learn"}
    assert min(shares.values()) > 85
    assert max(shares.values()) - min(shares.values()) < 5


def test_methods_are_tuned_on_other_images_than_they_are_compared_on(run, tmp_path, monkeypatch):
    """The rates with the best trials are used in the end. The runs themselves are not made, but all of their options exist."""
    for folder in ("trials", "final"):
        for split in ("train", "val"):
            for label in "ab":
                path = tmp_path / folder / split / label / "0.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16)).save(path)
    calls = []

    def compare(methods, data, *, out, **options):
        build_comparison([entry_of(method) for method in methods], data, out, options)  # raises for an unknown option
        calls.append((methods, data, options))
        best = {"mae": 0.001, "simmim": 0.006, "beit": 0.1, "dino": 0.003, "mocov3": 0.008, "supervised": 0.006}
        rates = {name: float(name.split("-")[1]) for name in methods if "-" in name}
        return [row_of(name, [{"linear": 0.5 - abs(rate - best[name.split("-")[0]])}]) for name, rate in rates.items()]

    def finetune(start, *, base_lr, test_split, scratch, **options):
        assert (test_split, scratch) == (HELD_OUT, True)
        return SimpleNamespace(results={"score": {"top1": 0.5 - abs(base_lr - 0.008)}})

    monkeypatch.setattr("unveil.compare", compare)
    monkeypatch.setattr("unveil.finetune", finetune)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # of the whole test run
    out = run("methods", tmp_path / "trials", tmp_path / "final", tmp_path / "runs", "--image-size", 16)
    (few, *first), (more, *second), (methods, data, final) = calls
    assert [first[0], second[0], data] == [str(tmp_path / folder) for folder in ("trials", "trials", "final")]
    assert not [each for each in (first, second) if "evaluate_on" in each[1]]  # held-out images, by default
    tried = {"mae": 0.0015, "simmim": 0.00424, "beit": 0.024, "dino": 0.0015, "mocov3": 0.00849, "supervised": 0.00424}
    assert set(more) - set(few) == {f"{method}-{rate}" for method, rate in tried.items()}
    assert (final["evaluate_on"], final["seeds"], final["with_partial"]) == ("test", (0, 1, 2), True)
    assert methods == ["dvae", "mae", "simmim", "beit", "dino", "mocov3", "supervised"]
    assert [final[name]["base_lr"] for name in methods] == [0.006, 0.0015, 0.006, 0.024, 0.003, 0.00849, 0.006]
    assert final["finetune"]["base_lr"] == 0.008
    assert "mae, linear probe: 0.0015: 50.0 %, 0.003: 49.8 %, 0.006: 49.5 %, 0.012: 48.9 %" in out


def test_end_to_end(run, tmp_path):
    pytest.importorskip("torchvision")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    small = (
        "--model",
        "vit-nano",
        "--image-size",
        16,
        "--patch-size",
        4,
        "--decoder-width",
        16,
        "--decoder-depth",
        1,
        "--batch",
        4,
    )
    out = run("end_to_end", tmp_path, *small, "--device", "cpu", "--rounds", 2, "--steps", 2)
    assert "vit-nano/4 at 16 px, batch 4, 12 images" in out
    assert {"the loop", "one resident batch"} <= {line[:18].strip() for line in out.splitlines()}
    assert (
        0 < float(re.search(r"([\d.]+)% of the [\d.]+ of one large product in (?:bfloat16|float32) on \d+ threads", out)[1]) < 100
    )
