"""The benchmark of translation compares equal work: `MarianMTModel` with the same weights writes the same words."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.tasks.test_translate import learner as untrained
from tests.tasks.test_translate import run as trained
from unveil.blocks.special_tokens import END

pytest.importorskip("transformers")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("translate_benchmark", BENCHMARKS / "translate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_marian_writes_the_same_words(benchmark):
    learner = untrained(0.0)
    learner.load_state_dict(trained(None, 8.0))
    translator = learner.eval().average
    torch.manual_seed(0)
    rows = [torch.randint(END + 1, 10, (1 + i % 5,)).tolist() for i in range(24)]
    ours, marian = benchmark.unveil_translations(translator, rows, 5, 1), benchmark.marian_of(translator)
    assert len({len(row) for row in ours}) > 2  # sentences end at several times
    assert benchmark.marian_translations(marian, rows, 5, 1, by_length=False) == ours
    assert benchmark.marian_translations(marian, rows, 7, 1, by_length=True) == ours


def test_beam_search_without_end_is_the_same(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "EXTRA_LENGTH", 9)
    monkeypatch.setattr("unveil.tasks.translate.EXTRA_LENGTH", 9)
    translator = benchmark.endless_translator("nano", 500)
    rows = torch.randint(END + 1, 500, (3, 8)).tolist()
    ours = benchmark.unveil_translations(translator, rows, 3, 4)
    assert {len(row) for row in ours} == {18}  # 8 words and END, and 9 more
    assert benchmark.marian_translations(benchmark.marian_of(translator), rows, 3, 4, by_length=False) == ours
