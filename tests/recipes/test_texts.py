"""Texts from a folder to a classifier, by the commands."""

import csv
import json
from pathlib import Path

import pytest
import torch

import unveil
from unveil.cli import main
from unveil.data.parts import HELD_OUT
from unveil.errors import UnveilError
from unveil.methods.bert import BERT
from unveil.recipes.fill_mask import fill_mask
from unveil.runs.labelled_texts import label_tensor, labelled_texts
from unveil.runs.text_pretraining import TextPlan
from unveil.runs.texts import TEXT
from unveil.tasks.text_classification import TextClassification
from unveil.train.run_folder import Run

pytest.importorskip("tokenizers")
SMALL = (
    "--model bert-tiny --device cpu --batch-size 16 --accum-steps 1 --num-evals 1 --epochs 30 --max-length 12 --base-lr 1.6e-2 "
    "--dropout 0"
).split()


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    return int(stop.value.code or 0), " ".join("".join(capsys.readouterr()).split())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences whose class is told by one word, which another one goes with."""
    folder, chance = tmp_path_factory.mktemp("corpus"), torch.Generator().manual_seed(0)
    for part, count in (("train", 200), ("test", 60)):
        names = torch.randint(6, (count,), generator=chance).tolist()
        words = [("red green blue cold warm mild".split()[n], "a colour" if n < 3 else "our weather") for n in names]
        lines = [f"the {word} thing is {kind} .\t{n // 3}" for n, (word, kind) in zip(names, words, strict=True)]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path) -> Path:
    out = corpus.parent / "run"
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", str(corpus), "--method", "bert", "--out", str(out), *SMALL])
    assert not stop.value.code
    return out


def test_it_learns_the_words(trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = Run(trained).results["words"]
    assert words["word_loss"] < 0.7 * words["frequency_loss"]
    assert words["word_accuracy"] > 2 * words["frequency_accuracy"]
    assert "Masked words of held-out texts" in (trained / "report.html").read_text()
    code, text = said(capsys, "pretrain", corpus, "--method", "bert", "--out", trained, *SMALL)
    assert (code, "is finished" in text) == (0, True)
    learner = unveil.load(trained)
    assert isinstance(learner, BERT)
    assert learner.encoder.config.length == 12


def test_fill_names_words(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = fill_mask(trained, "the red thing is a [MASK] . the [MASK]", count=3)
    assert [len(guesses) for guesses in found] == [3, 3]
    assert found[0][0][0] == "colour"
    learner = unveil.load(trained)
    ids = [learner.encoder.config.token_id(piece) for piece in "[CLS] the red thing is a [MASK] . the [MASK] [SEP]".split()]
    chances = learner.token_logits(torch.tensor([ids]))[0, 6].softmax(dim=0)
    assert found[0][0][1] == pytest.approx(chances[learner.encoder.config.token_id("colour")].item(), rel=1e-5)
    assert found[0][0][1] == pytest.approx(chances.max().item(), rel=1e-5)
    code, text = said(capsys, "fill-mask", trained, "the cold thing is our [MASK] .")
    assert code == 0
    assert "weather" in text
    code, text = said(capsys, "fill-mask", trained, "no blank")
    assert (code, "has no [MASK]" in text) == (1, True)


def test_finetune_and_export(trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained.parent / "tuned"
    code, text = said(capsys, "finetune", trained, corpus, "--labels", "40", "--epochs", "8", "--out", out, "--device", "cpu")
    assert code == 0, text
    results = Run(out).results
    assert results["score"]["top1"] > 0.9
    assert (results["trained_on"], results["classes"], results["score"]["count"]) == (40, ["0", "1"], 60)
    assert "60 test texts" in (out / "report.html").read_text()
    assert isinstance(unveil.load(out), TextClassification)
    assert Run(unveil.finetune(trained, corpus, scratch=True, labels=40, epochs=1, device="cpu").path).config["from"] == "scratch"
    pytest.importorskip("transformers")
    code, text = said(capsys, "export", trained, "--to", "transformers")
    assert (code, "transformers agrees" in text) == (0, True)
    assert json.loads((trained / "export/transformers/config.json").read_text())["architectures"] == ["BertForMaskedLM"]


@pytest.mark.parametrize("verb", ["probe", "reconstruct"])
def test_verbs_of_images_refuse_texts(verb: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, verb, trained, "digits")
    assert (code, "this is a text model, expected an image model" in text) == (1, True)


def test_unlabelled_texts_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain.txt").write_text("no class at all")
    code, text = said(capsys, "finetune", trained, tmp_path)
    assert (code, "has no labelled texts" in text) == (1, True)


def test_more_labels_than_texts_are_refused(trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All texts were used, without a word."""
    code, text = said(capsys, "finetune", trained, corpus, "--labels", "100000")
    assert (code, "--labels is 100000, but there are" in text, "labelled texts" in text) == (1, True, True)


def test_copies_of_test_texts_are_left_out_or_said(tmp_path: Path) -> None:
    rows = [f"a {word} film number {i},{i % 2}" for i, word in enumerate(["good", "bad"] * 20)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows, *rows]))
    said: list[str] = []
    train, test, validation, held_out, roles, cautions = labelled_texts(tmp_path, None, said.append)
    assert (validation, roles, cautions) == (None, {}, [])
    assert (len(test), held_out, set(train.texts) & set(test.texts)) == (8, True, set())
    assert f"left out {72 - len(train)} training texts that are copies of held-out ones" in said
    assert "took the column label as classes: 0, 1 (40 texts each)" in said
    said.clear()
    (tmp_path / "again.csv").write_text("\n".join(["text,label", *rows, *rows]).replace("film", "  FILM"))
    opened = labelled_texts(tmp_path / "a.csv", tmp_path / "again.csv", said.append)
    (tmp_path / "again.csv").unlink()
    assert (opened.held_out, opened.cautions) == (
        False,
        ["80 of 80 test texts are copies of training texts: the results are too good"],
    )
    for rest, message in (("the same,0\n", "is a copy of one that is held out"), ("a,0\n", "to train on have only one class, 1")):
        (tmp_path / "a.csv").write_text(
            "text,label\n" + "the same,1\n" * 4 + rest * 16 + "".join(f"n {i},1\n" for i in range(9) if rest[0] == "a")
        )
        with pytest.raises(UnveilError, match=message):
            labelled_texts(tmp_path, None, said.append)


def test_copies_between_training_and_validation(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts kept aside for validation were copies of training texts, and chose the best step."""
    rows = [f"a {word} film number {i % 20},{i % 2}" for i, word in enumerate(["good", "bad"] * 60)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "test.csv").write_text("text,label\none film,0\nanother film,1\n")
    code, text = said(capsys, "finetune", trained, tmp_path, "--validation", "0.1", "--epochs", "1", "--out", tmp_path / "run")
    assert (code, "training texts that are copies of held-out ones" in text) == (0, True)
    (tmp_path / "val.csv").write_text("\n".join(["text,label", *rows[:2], "one film,0"]))
    cautions = [
        "2 of 3 validation texts are copies of training texts: the validation is too good",
        "1 of 2 test texts is a copy of validation texts: the results are too good",
    ]
    assert labelled_texts(tmp_path, None, lambda text: None).cautions == cautions
    code, text = said(capsys, "finetune", trained, tmp_path, "--epochs", "1", "--out", tmp_path / "again")
    assert (code, [text.count(each) for each in cautions]) == (0, [2, 2])  # before training, and beside the results
    assert Run(tmp_path / "again").results["cautions"] == cautions


def test_another_test_set_is_read_as_the_training_set(tmp_path: Path) -> None:
    """Other columns were added to its texts, and its classes 0.0 and 1.0 were other ones than 0 and 1: 0 % were right."""
    train = "text,title,label\n" + "".join(f"a film number {i},no,{i % 2}\n" for i in range(20))
    test = "title,comment,text,label\n" + "".join(f"so good,so bad,a new film {i},{i % 2}.0\n" for i in range(20))
    (tmp_path / "train.csv").write_text(train.replace("title", "ignored"))
    (tmp_path / "other.csv").write_text(test)
    opened = labelled_texts(tmp_path / "train.csv", tmp_path / "other.csv", lambda text: None)
    assert opened.test.texts == [f"a new film {i}" for i in range(20)]
    assert (opened.test.classes, label_tensor(opened.test).tolist()) == (["0", "1"], [0, 1] * 10)
    (tmp_path / "other.csv").write_text(test.replace("0.0", "neg").replace("1.0", "pos"))
    with pytest.raises(UnveilError, match="has the classes neg, pos, and none of those of the training texts, 0, 1"):
        labelled_texts(tmp_path / "train.csv", tmp_path / "other.csv", lambda text: None)


def test_unclear_classes_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text(
        "source,review,stars\n" + "".join(f"{'ab'[i % 3 > 1]},so good {i},{i % 2}\n" for i in range(20))
    )
    code, text = said(capsys, "finetune", trained, tmp_path)
    assert (code, "the classes could be in the columns source and stars: name one of these columns label" in text) == (1, True)


def test_the_roles_of_splits(tmp_path: Path) -> None:
    """The validation split was not used; and a comparison on held-out texts evaluated on the test set."""
    for split, count in (("train", 30), ("val", 8), ("test", 6)):
        rows = [f"{split} text {i},{i % 2}" for i in range(count)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    said: list[str] = []
    opened = labelled_texts(tmp_path, None, said.append)
    assert [len(texts or ()) for texts in opened[:3]] == [30, 6, 8]
    assert (opened.held_out, opened.roles["validation"], opened.roles["unused"]) == (False, ["val"], [])
    use = "train (30 texts) for training; test (6 texts) as the test set; val (8 texts) evaluated during training"
    assert said[0] == f"{tmp_path} has splits: {use}"
    opened = labelled_texts(tmp_path, None, said.append, HELD_OUT)
    assert [len(texts or ()) for texts in opened[:3]] == [30, 8, 0]
    assert (opened.roles["test"], opened.roles["unused"]) == (["val"], ["test"])
    (tmp_path / "val.csv").unlink()
    opened = labelled_texts(tmp_path, None, said.append, HELD_OUT)
    assert ([len(texts or ()) for texts in opened[:3]], opened.held_out) == ([27, 3, 0], True)


def test_every_split_is_predicted_and_cut_texts_are_said(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unveil.finetune(trained, corpus, labels=40, epochs=1, device="cpu", out=tmp_path / "run").path
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "val", "test"):
        (data / f"{split}.csv").write_text(f"text\n{'long ' * 50}\n{split} text\n")
    code, text = said(capsys, "predict", run, data, "--out", tmp_path / "all.csv", "--device", "cpu")
    assert (code, "3 of 6 texts are longer than 10 word pieces, and cut there" in text) == (0, True)
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["split"]) for row in rows] == [
        (f"{split}.csv:{number}", split) for split in ("train", "test", "val") for number in (1, 2)
    ]
    assert said(capsys, "predict", run, data, "--split", "val", "--out", tmp_path / "val.csv", "--device", "cpu")[0] == 0


def test_pretraining_watches_the_validation_split(tmp_path: Path) -> None:
    """It watched the test split, which the page of a comparison says nobody has looked at."""
    for split in ("train", "test", "val"):
        (tmp_path / f"{split}.txt").write_text(f"{split} words")
    plan = TEXT.plan(tmp_path, "bert", "bert-nano", {})
    assert isinstance(plan, TextPlan)
    assert plan.test_texts is not None
    assert plan.test_texts.texts == ["val words"]
    assert plan.notes[0].endswith("train (1 text) for training; test (1 text) kept for later; val (1 text) held out")
    (tmp_path / "val.txt").unlink()
    plan = TEXT.plan(tmp_path, "bert", "bert-nano", {})
    assert isinstance(plan, TextPlan)
    assert plan.test_texts is None  # a twentieth of the training texts
