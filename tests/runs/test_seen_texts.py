"""Test texts that a run was trained on before are counted; others never are."""

import json
import shutil
from pathlib import Path

import pytest

import unveil
from unveil.data.parts import HELD_OUT
from unveil.runs.labelled_texts import labelled_texts
from unveil.runs.seen_texts import sentences_on_seen_texts
from unveil.train.run_folder import Run

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("without_reports")
OPTIONS = {"device": "cpu", "epochs": 1.0, "batch_size": 8, "num_evals": 1}
TINY = OPTIONS | {"method": "bert", "model": "bert-nano", "max_length": 16}


def table(path: Path, rows: range) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text,label\n" + "".join(f"the {'good' if i % 2 else 'bad'} film number {i},{i % 2}\n" for i in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA with two splits, a corpus that holds all of its texts in another form, and a run on each."""
    home = tmp_path_factory.mktemp("seen")
    table(home / "A" / "train.csv", range(40))
    table(home / "A" / "test.csv", range(100, 110))
    lines = [f"The  {'GOOD' if i % 2 else 'BAD'} film number {i}" for i in [*range(40), *range(100, 110)]]
    (home / "corpus").mkdir()
    (home / "corpus" / "all.txt").write_text("\n".join(lines[:25]) + "\n\n" + "\n\n".join(lines[25:]))
    unveil.pretrain(str(home / "A"), out=home / "on-train", **TINY)
    unveil.pretrain(str(home / "corpus"), out=home / "on-all", **TINY)
    return home


def told(run: Path, data: Path, test: Path | None = None, test_split: str | None = None) -> list[str]:
    """What is said about test texts that were trained on, without the name of the run."""
    splits = labelled_texts(str(data), None if test is None else str(test), lambda text: None, test_split)
    return [clause.removeprefix(f"{run} ") for clause in sentences_on_seen_texts(run, splits)]


def of(seen: str, tests: int, how: str = "trained, without labels, on") -> str:
    return f"was {how} {seen} of {tests} test texts: its results may be too good"


def test_a_corpus_with_the_texts_of_the_test_set(home: Path, tmp_path: Path) -> None:
    assert told(home / "on-all", home / "A") == [of("up to 10", 10)]
    assert told(home / "on-train", home / "A") == []  # its test texts are others
    assert told(home / "on-train", home / "A" / "test.csv", home / "A" / "train.csv") == [of("up to 40", 40)]
    assert told(home / "on-train", home / "A", test_split=HELD_OUT) == [of("up to 4", 4)]  # a tenth, held out only now
    other = table(tmp_path / "other.csv", range(200, 230))
    assert told(home / "on-all", other) == []


def test_nothing_false_is_said_of_texts_that_are_gone_or_have_changed(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "on-all", tmp_path / "run"))
    facts = json.loads((run / "run.json").read_text())
    facts.pop("checksum", None)
    for changed in ({"path": str(tmp_path / "gone")}, {"path": str(home / "A")}, {"fingerprint": "0"}, {"path": None}):
        (run / "run.json").write_text(json.dumps(facts | {"data": facts["data"] | changed}))
        assert told(run, home / "A") == []


def test_fine_tuning_is_training_too(home: Path, tmp_path: Path) -> None:
    """What fine-tuning held out was not trained on. What its encoder was trained on counts as well."""
    data = table(tmp_path / "all.csv", range(100, 130))
    tuned = Path(unveil.finetune(home / "on-all", str(data), out=tmp_path / "tuned", validation=0.0, **OPTIONS))
    tested = [int(text.split()[-1]) for text in labelled_texts(str(data), None, lambda text: None).test.texts]
    held_out = sum(number < 110 for number in tested)  # those of the corpus that fine-tuning held out
    assert 0 < held_out < len(tested) == 3
    started = f"started from {home / 'on-all'}, which {of('up to 10', 10)}"
    assert told(tuned, home / "A") == [of(str(10 - held_out), 10, "trained or validated on"), started]
    assert Run(tuned).results["cautions"] == [f"{home / 'on-all'} {of(f'up to {held_out}', 3)}"]
    scratch = unveil.finetune(home / "on-all", str(home / "A"), out=tmp_path / "scratch", scratch=True, **OPTIONS)
    assert "cautions" not in scratch.results
