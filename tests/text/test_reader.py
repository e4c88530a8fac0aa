"""Which files of DATA are read, and for which split."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from unveil.errors import UnveilError
from unveil.text.files import OpenedTexts, open_texts


def table(*texts: str) -> str:
    return "text,label\n" + "".join(f"{text} film,{i % 2}\n" for i, text in enumerate(texts))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[dict[str, str]], OpenedTexts]:
    def write(files: dict[str, str]) -> OpenedTexts:
        """Reads files; the name of one in an archive begins with that of the archive."""
        for name, text in files.items():
            archive, dot_zip, member = name.partition(".zip/")
            (tmp_path / (archive if dot_zip else name)).parent.mkdir(parents=True, exist_ok=True)
            if dot_zip:
                with zipfile.ZipFile(tmp_path / f"{archive}.zip", "a") as packed:
                    packed.writestr(member, text)
            else:
                (tmp_path / name).write_text(text)
        return open_texts(tmp_path)

    return write


def places(found: OpenedTexts) -> dict[str, list[str]]:
    """The files of each split."""
    return {name: sorted({place.rsplit(":", 1)[0] for place in texts.places}) for name, texts in found.splits.items()}


CLASSES = {"pos/1.txt": "fine", "pos/2.txt": "good", "neg/1.txt": "poor", "neg/2.txt": "bad"}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        ({"train.csv": "", "test.csv.zip/test.csv": ""}, {"train": ["train.csv"], "test": ["test.csv.zip/test.csv"]}),
        ({"train.zip/data.csv": "", "test.csv": ""}, {"train": ["train.zip/data.csv"], "test": ["test.csv"]}),
        (
            {"data.zip/train.csv": "", "data.zip/dev.csv": "", "test.csv": ""},
            {"train": ["data.zip/train.csv"], "test": ["test.csv"], "val": ["data.zip/dev.csv"]},
        ),
        ({"train_val.csv": "", "test.csv": ""}, {"train": ["train_val.csv"], "test": ["test.csv"]}),
        ({"Train+Dev.csv": "", "test.csv": ""}, {"train": ["Train+Dev.csv"], "test": ["test.csv"]}),
        ({"reviews.csv": "", "reviews_test.csv": ""}, {"train": ["reviews.csv"], "test": ["reviews_test.csv"]}),
        ({"train/a.zip/a.csv": "", "test/b.zip/b.csv": ""}, {"train": ["train/a.zip/a.csv"], "test": ["test/b.zip/b.csv"]}),
        ({f"wiki.{part}.tokens": "" for part in ("train", "test")}, {"train": ["wiki.train.tokens"], "test": ["wiki.test.tokens"]}),
        ({"blood.txt": "", "blood-test.txt": ""}, {"train": ["blood-test.txt", "blood.txt"]}),
        ({"train.csv": "", "~$train.csv": ""}, {"train": ["train.csv"]}),
        ({**{f"story_{i}.txt": "" for i in range(9)}, "training_for_a_marathon.txt": ""}, {"train": None}),
        ({"train.txt": "", "vocab.txt": "", "README.txt": "", "LICENCE.txt": ""}, {"train": ["train.txt"]}),
    ],
)
def test_splits_by_the_names_of_files_and_archives(
    files: dict[str, str], splits: dict[str, list[str] | None], opened: Callable[[dict[str, str]], OpenedTexts]
) -> None:
    """Beside an archive, a loose file of another split was trained on, or the other way round."""
    found = opened({name: table(*(f"{name} {i}" for i in range(4))) for name in files})
    assert places(found) == {split: own if own is not None else sorted(files) for split, own in splits.items()}


def test_class_folders_beside_an_archive_of_another_split(opened: Callable[[dict[str, str]], OpenedTexts]) -> None:
    found = opened(
        {**{f"train/{name}": text for name, text in CLASSES.items()}, "test.zip/neg/9.txt": "awful", "test.zip/pos/8.txt": "ok"}
    )
    assert {name: texts.texts for name, texts in found.splits.items()} == {
        "train": ["poor", "bad", "fine", "good"],
        "test": ["awful", "ok"],
    }
    assert found.splits["test"].labels is not None


def test_that_all_files_are_for_training_is_said(opened: Callable[[dict[str, str]], OpenedTexts]) -> None:
    found = opened({"wiki_test.txt": "one", "wiki_valid.txt": "two", "news.txt": "three"})
    assert sorted(found.train.texts) == ["one", "three", "two"]
    assert found.notes == ["nothing is named train, so all files are for training"]


def test_files_that_are_not_read_are_said(opened: Callable[[dict[str, str]], OpenedTexts], tmp_path: Path) -> None:
    """The test set train.csv had a tenth of its own texts for a test set beside test.jsonl, and a README was trained on."""
    found = opened({"train.csv": table("good", "bad", "fine", "poor"), "test.jsonl": "{}", "validation.parquet": "", "a.py": ""})
    assert "test.jsonl, validation.parquet are not read: expected .txt, .csv or .tsv" in found.notes
    (tmp_path / "train.csv").unlink()
    with pytest.raises(UnveilError, match=r"train\.jsonl cannot be read: expected texts as \.txt, \.csv or \.tsv files"):
        opened({"train.jsonl": "{}", "README.txt": "about"})


def test_tables_that_name_files_are_no_texts(opened: Callable[[dict[str, str]], OpenedTexts]) -> None:
    """A test/labels.csv took the place of all training texts: its names of files were the texts."""
    files = {f"train/{name}": text for name, text in CLASSES.items()}
    files |= {"test/0.txt": "one", "test/1.txt": "two", "test/labels.csv": "name,label\n0.txt,pos\n1.txt,neg\n"}
    found = opened(files)
    assert {name: texts.texts for name, texts in found.splits.items()} == {
        "train": ["poor", "bad", "fine", "good"],
        "test": ["one", "two"],
    }
    assert "test/labels.csv: its texts are names of other files, so it is not used" in found.notes


def test_a_table_that_names_files_says_nothing_of_other_tables(opened: Callable[[dict[str, str]], OpenedTexts]) -> None:
    """The table of names was read first, and the other ones with its columns."""
    names = "text,label\n0.txt,pos\n1.txt,neg\n"
    rows = "review,stars\n" + "".join(f"a {word} film,{i % 2}\n" for i, word in enumerate("good bad fine poor".split()))
    found = opened({"train/a_names.csv": names, "train/b.csv": rows, "train/0.txt": "one", "train/1.txt": "two"})
    assert found.train.texts == ["a good film", "a bad film", "a fine film", "a poor film"]
    assert found.columns is not None
    assert found.columns.header == ("review", "stars")


def test_backups_of_a_table_are_said(opened: Callable[[dict[str, str]], OpenedTexts]) -> None:
    rows = table("good", "bad", "fine", "poor")
    found = opened({"train.csv": rows, "train.csv.zip/train.csv": rows, "test.csv": table("so", "no")})
    assert found.notes[-1] == "4 of 8 texts of train are in another of its files as well"


def test_a_column_of_splits(opened: Callable[[dict[str, str]], OpenedTexts]) -> None:
    """All its rows were trained on."""
    rows = "".join(f"film {i},{i % 2},{'test' if i > 6 else 'valid' if i > 4 else 'train'}\n" for i in range(10))
    found = opened({"all.csv": f"text,label,split\n{rows}"})
    assert {name: texts.texts for name, texts in found.splits.items()} == {
        "train": [f"film {i}" for i in range(5)],
        "test": ["film 7", "film 8", "film 9"],
        "val": ["film 5", "film 6"],
    }
    assert found.notes == ["all.csv: took the column text as text", "all.csv: took the column split as splits"]
    assert [texts.labels.tolist() for texts in found.splits.values() if texts.labels is not None] == [
        [0, 1, 0, 1, 0],
        [1, 0, 1],
        [1, 0],
    ]
