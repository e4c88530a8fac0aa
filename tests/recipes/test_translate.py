"""From two files of sentences to translations, in one go and at tiny size, through the command line."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unveil
from unveil.cli import main
from unveil.command_line import parse_options
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.interop import translator_files as translation
from unveil.models.seq2seq import MODELS
from unveil.recipes.translate import translate_and_print
from unveil.text.bpe import BPETokenizer

ENGLISH, GERMAN = "a the dog cat man sees hears and".split(), "ein der Hund Katze Mann sieht hört und".split()
TINY = {
    "model": "nano",
    "vocabulary_size": 320,
    "epochs": 2.0,
    "batch_size": 16,
    "log_every": 1,
    "device": "cpu",
    "precision": "float32",
    "num_evals": 1,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("text"), torch.Generator().manual_seed(0)
    for name, count in (("train", 60), ("val", 8), ("test_small", 5)):
        rows = [torch.randint(8, (length,), generator=chance).tolist() for length in (torch.arange(count) % 7 + 1).tolist()]
        for language, words in (("en", ENGLISH), ("de", GERMAN)):
            lines = [" ".join(words[i] for i in row) for row in rows]
            lines += [""] * (name != "train")
            (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> unveil.Run:
    return unveil.train_translator(text, out=tmp_path_factory.mktemp("runs") / "run", **TINY)


def test_the_run_folder(run: unveil.Run) -> None:
    files = {path.name for path in run.path.iterdir()}
    assert files >= {
        "run.json",
        "log.jsonl",
        "checkpoints",
        "model.safetensors",
        "config.json",
        "subwords.json",
        "results.json",
        "report.html",
    }
    row = run.results["bleu"]["test_small"]
    for way in ("greedy", "beam"):
        assert 0 <= row[way] <= 100
        assert len((run.path / f"test_small.{way}.de").read_text().splitlines()) == 6
    assert "bleu" in run.log[-1]
    assert run.log[-1]["cross_entropy"] < run.log[0]["cross_entropy"]
    state = load_file(run.path / "model.safetensors")
    last = run.checkpoints().load(8, "model")
    assert all(torch.equal(value, last[f"average.{name}"]) for name, value in state.items())


def test_the_same_command_again_touches_nothing_and_others_are_refused(run: unveil.Run, text: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    unveil.train_translator(text, out=run.path, **TINY)
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    with pytest.raises(UnveilError, match=r"config dropout: was 0\.3, is 0\.2"):
        unveil.train_translator(text, out=run.path, **TINY, dropout=0.2)
    with pytest.raises(UnveilError, match="there is no model 'vit-tiny' for translation"):
        unveil.train_translator(text, out=run.path, **TINY | {"model": "vit-tiny"})
    with pytest.raises(UnveilError, match="max_length is 0, expected an integer from 1 to 65,536"):
        unveil.train_translator(text, out=run.path / "other", **TINY, max_length=0)


def test_a_run_that_goes_on_keeps_its_words_and_ends_the_same(run: unveil.Run, text: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run.path, tmp_path / "run")
    for name in ("results.json", "model.safetensors", "report.html"):
        (copied / name).unlink()
    words = json.loads((copied / "subwords.json").read_text())
    (copied / "subwords.json").write_text(json.dumps(words), encoding="utf-8")  # the same words, written otherwise
    again = unveil.train_translator(text, out=copied, **TINY)
    assert again.results["bleu"] == run.results["bleu"]
    assert BPETokenizer.load(copied / "subwords.json").text == BPETokenizer.load(run.path / "subwords.json").text
    expected, found = (load_file(path / "model.safetensors") for path in (run.path, copied))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_sentences_files_and_the_standard_input(
    run: unveil.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the dog sees", "", "a cat and a man"]
    expected = unveil.translate(run.path, lines)
    assert len(expected) == 3
    capsys.readouterr()
    translate_and_print(run.path, lines)
    assert capsys.readouterr().out.split("\n")[:-1] == expected
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    translate_and_print(run.path, [str(tmp_path / "lines.txt")])
    assert capsys.readouterr().out.split("\n")[:-1] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    translate_and_print(run.path)
    assert capsys.readouterr().out.split("\n")[:-1] == expected
    lines[0] += "\u2028 a man"  # no end of a line
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    translate_and_print(run.path, [str(tmp_path / "lines.txt")])
    assert len(capsys.readouterr().out.split("\n")[:-1]) == 3
    (tmp_path / "lines.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UnveilError, match="has text that is not UTF-8"):
        translate_and_print(run.path, [str(tmp_path / "lines.txt")])
    with pytest.raises(UnveilError, match=r"lines\.text does not exist: give a file with one sentence per line"):
        translate_and_print(run.path, [str(tmp_path / "lines.text")])
    with pytest.raises(UnveilError, match=r"sentence 2 has \d+ subwords, but the model takes up to 511: split it"):
        unveil.translate(run.path, ["a", "dog " * 600])
    with pytest.raises(UnveilError, match="--attention draws one sentence, but there are 2"):
        unveil.translate(run.path, ["a", "b"], attention=tmp_path / "look.png")


def test_attention_is_drawn(run: unveil.Run, tmp_path: Path) -> None:
    unveil.translate(run.path, ["the dog sees a cat"], attention=tmp_path / "look.png", beams=1)
    assert (tmp_path / "look.png").stat().st_size > 5000
    with pytest.raises(UnveilError, match="exists or does not end in"):
        unveil.translate(run.path, ["the dog"], attention=tmp_path / "look.png")


def test_a_run_that_is_not_finished_translates_from_its_checkpoint(run: unveil.Run, tmp_path: Path) -> None:
    for name in ("run.json", "config.json", "subwords.json"):
        (tmp_path / name).write_text((run.path / name).read_text())
    with pytest.raises(UnveilError, match="has no weights yet"):
        translation.load(tmp_path)
    (tmp_path / "checkpoints").symlink_to(run.path / "checkpoints")
    (found, _), (expected, _) = translation.load(tmp_path, say=lambda text: None), translation.load(run.path)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["checksum"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"translator": config["translator"] | {"depth": 1}}))
    with pytest.raises(UnveilError, match="holds another model"):
        translation.load(tmp_path, say=lambda text: None)
    with pytest.raises(UnveilError, match="it has no subwords"):
        translation.load(tmp_path / "checkpoints")


def test_the_command_line(run: unveil.Run, capsys: pytest.CaptureFixture[str]) -> None:
    kind = VERBS["translate train"].arguments["model"].type
    assert set(kind.__args__) == set(MODELS)
    given = {"run": "runs/x", "sentences": ("a b", "c"), "attention": None, "device": "auto", "beams": 2}
    assert parse_options("translate run", VERBS["translate run"], ["runs/x", "a b", "c", "--beams", "2"]) == given
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["translate", "run", str(run.path), "the dog", "--device", "cpu"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == unveil.translate(run.path, ["the dog"])[0] + "\n"


def test_the_report_of_a_translator_is_rebuilt(run: unveil.Run, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copied / "report.html").unlink()
    assert "BLEU" in unveil.report(copied).read_text()
