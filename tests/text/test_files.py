"""Texts out of files, folders and archives, and the word pieces that they become."""

import csv
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unveil.blocks.stateless_random import sample_keys
from unveil.errors import UnveilError
from unveil.text.files import Texts, documents, open_texts
from unveil.text.split_names import splits_of
from unveil.text.wordpiece import SPECIAL, CorpusLoader, LabelledTextLoader, WordPieceTokenizer, train_vocabulary

pytest.importorskip("tokenizers")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "text"
LINES = ["the film was good , and the actors were better", "a bad film by a bad actor , badly acted", "Actors act ; films ."] * 5


@pytest.fixture(scope="module")
def pieces() -> WordPieceTokenizer:
    return WordPieceTokenizer(train_vocabulary(LINES, 120))


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def opened(data: Path) -> tuple[Texts, Texts | None]:
    """The training set and the test set."""
    found = open_texts(data)
    return found.train, next(iter(found.tests), None)


def test_class_folders_and_notes(tmp_path: Path) -> None:
    files = {"train/pos/1.txt": "fine", "train/neg/1.txt": "poor", "test/neg/9.txt": "awful", "README.txt": "about"}
    train, test = opened(written(tmp_path, files))
    assert (train.texts, train.classes, train.labels.tolist()) == (["poor", "fine"], ["neg", "pos"], [0, 1])
    assert test is not None
    assert (test.texts, test.classes, test.labels.tolist()) == (["awful"], ["neg", "pos"], [0])


@pytest.mark.parametrize(
    ("name", "table", "texts"),
    [
        (
            "train.tsv",
            'a "good film\t1\na bad film\t0\nbad , bad\t0\nso good\t1\n',
            ['a "good film', "a bad film", "bad , bad", "so good"],
        ),
        (
            "train.csv",
            '"1","Up, up","and so on"\n"0","Down it","goes now"\n"0","All of","it went"\n"1","To the","top"\n',
            ["Up, up and so on", "Down it goes now", "All of it went", "To the top"],
        ),
        (
            "train.csv",
            "id,text,label\n7,so fine a film,1\n8,not that good,0\n9,bad bad,0\n10,good enough,1\n",
            ["so fine a film", "not that good", "bad bad", "good enough"],
        ),
    ],
)
def test_columns_are_told_by_what_stands_in_them(name: str, table: str, texts: list[str], tmp_path: Path) -> None:
    train, test = opened(written(tmp_path, {name: table, "classes.txt": "no text"}))
    assert train.texts == texts
    assert train.labels.tolist() == [1, 0, 0, 1]
    assert test is None


def test_archives_in_a_folder_have_parts_of_their_own(tmp_path: Path) -> None:
    written(tmp_path, {"a/valid.txt": "one\n\ntwo", "a/test.txt": "three", "b/train.txt": "four", "b/test.txt": "five"})
    for name, files in {"all.tar.gz": ["a/valid.txt", "a/test.txt"], "split.tar.gz": ["b/train.txt", "b/test.txt"]}.items():
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            for file in files:
                tar.add(tmp_path / file, Path(file).name)
    for file in tmp_path.glob("*/*.txt"):
        file.unlink()
    train, test = opened(tmp_path)
    assert list(documents(train.texts)) == ["three", "one", "two", "four"]
    assert test is not None
    assert test.texts == ["five"]


def test_bad_data_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"does not exist: expected a \.txt"):
        open_texts(tmp_path / "nowhere")
    with pytest.raises(UnveilError, match="has no text"):
        open_texts(tmp_path)


def test_classes_that_the_train_set_lacks_follow_after_its_own(tmp_path: Path) -> None:
    texts, _ = opened(written(tmp_path, {"a.csv": "so good,x\nso bad,y\nvery bad,y\nvery good,x\n"}))
    renumbered = texts.with_classes(["y"])
    assert (renumbered.classes, renumbered.labels.tolist()) == (["y", "x"], [1, 0, 0, 1])


def test_a_missing_label_takes_away_its_own_only(tmp_path: Path) -> None:
    table = "text,label\nso good a film,10\nso bad a film,9\nwho knows that,\nas good as it gets,10\n"
    texts, _ = opened(written(tmp_path / "table", {"a.csv": table}))
    assert (texts.classes, texts.labels.tolist()) == (["9", "10"], [1, 0, -1, 1])
    assert texts.labelled().texts == ["so good a film", "so bad a film", "as good as it gets"]
    files = {"train/pos/1.txt": "fine", "train/neg/1.txt": "poor", "train/unsup/1.txt": "eh", "train/urls.txt": "www"}
    texts, _ = opened(written(tmp_path / "imdb", files))
    assert texts.classes == ["neg", "pos"]
    assert dict(zip(texts.texts, texts.labels.tolist(), strict=True)) == {"fine": 1, "poor": 0, "eh": -1, "www": -1}


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("sst2", 6920, 1821, 2),
        ("ag_news_7600", 6000, 1600, 4),
        ("movie_reviews_2000", 1600, 400, 2),
        ("wikitext2_valid_test", 2, 0, 0),
    ],
)
def test_the_shared_archives(name: str, train: int, test: int, classes: int) -> None:
    if not SHARED.exists():
        pytest.skip("../shared/data/text is absent")
    train_set, test_set = opened(SHARED / f"{name}.tar.gz")
    assert (len(train_set), len(test_set or ()), len(train_set.classes)) == (train, test, classes)


def test_vocabulary_is_the_same_each_time_and_round_trips(pieces: WordPieceTokenizer) -> None:
    assert train_vocabulary(LINES, 120) == pieces.vocabulary
    assert list(pieces.vocabulary[:5]) == SPECIAL
    for line, ids in zip(LINES, pieces.encode(LINES), strict=True):
        assert pieces.decode(ids) == line.lower()
    assert pieces.encode(["[MASK]"], special=True) == [[pieces.mask]]
    assert pieces.mask not in pieces.encode(["[MASK]"])[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("film bad good actors badly , . ; were".split()), min_size=1, max_size=12))
def test_round_trip(words: list[str]) -> None:
    pieces = WordPieceTokenizer(train_vocabulary(LINES, 120))
    assert pieces.decode(pieces.encode([" ".join(words)])[0]) == " ".join(words)


def test_letters_by_transformers(pieces: WordPieceTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(pieces.vocabulary) + "\n")
    other = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    texts = [*LINES[:3], "Théâtre films, unknown 漢字 [SEP]?"]
    assert pieces.encode(texts, special=True) == [other.encode(text, add_special_tokens=False) for text in texts]


def test_sequences_of_a_corpus(pieces: WordPieceTokenizer) -> None:
    ids = pieces.concatenated(LINES)
    loader = CorpusLoader(ids, pieces, length=12, batch_size=8, seed=3)
    whole, again = loader.share(5, 0, 1), loader.share(5, 1, 2)
    assert torch.equal(whole.ids[4:], again.ids)
    assert torch.equal(whole.keys, sample_keys(3, 40, 8))
    ring = torch.cat([ids, ids]).tolist()
    for row in whole.ids.tolist():
        assert (row[0], row[-1], len(row)) == (pieces.cls, pieces.sep, 12)
        assert any(ring[i : i + 10] == row[1:-1] for i in range(len(ids)))
    seen = torch.cat([loader.share(step, 0, 1).ids[:, 1] for step in range(loader.samples // 8 + 1)])
    assert len(seen.unique()) > 5
    with pytest.raises(UnveilError, match="fewer than a sequence of 999"):
        CorpusLoader(ids, pieces, length=999, batch_size=8, seed=3)


def test_pairs_of_a_corpus(pieces: WordPieceTokenizer) -> None:
    ids = torch.arange(5, 105, dtype=torch.int32)  # so that a place can be told by its piece
    batch = CorpusLoader(ids, pieces, length=13, batch_size=400, seed=0, pairs=True).share(0, 0, 1)
    assert batch.follows is not None
    assert batch.segments is not None
    assert batch.segments[0].tolist() == [0] * 7 + [1] * 6
    consecutive = (batch.ids[:, 7] - batch.ids[:, 5] - 1) % 100 == 0
    assert 0.42 < batch.follows.float().mean() < 0.58
    assert bool(consecutive[batch.follows == 0].all())
    assert consecutive[batch.follows == 1].float().mean() < 0.05
    assert batch.ids[:, [0, 6, 12]].unique().tolist() == sorted({pieces.cls, pieces.sep})


def test_labelled_rows_are_cut_by_eights(pieces: WordPieceTokenizer) -> None:
    rows = pieces.padded([*LINES, "good " * 90], 64)
    assert rows.shape == (16, 64)
    assert (rows[:, 0] == pieces.cls).all()
    loader = LabelledTextLoader(rows, torch.arange(16), padding=pieces.pad, batch_size=4, seed=0)
    for step in range(8):
        batch = loader.share(step, 0, 1)
        assert batch.targets is not None
        full = rows[batch.targets.labels]
        assert torch.equal(batch.ids, full[:, : batch.ids.shape[1]])
        assert (full[:, batch.ids.shape[1] :] == pieces.pad).all()
        assert batch.ids.shape[1] % 8 == 0


def test_a_large_cell_is_read_and_the_limit_of_csv_is_restored(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    train, _ = opened(written(tmp_path, {"a.csv": f"{'long text ' * 20_000},x\nso bad,y\nvery bad,y\nvery good,x\n"}))
    assert len(train.texts[0]) > before
    assert csv.field_size_limit() == before


def test_splits_are_told_by_many_names(tmp_path: Path) -> None:
    """Folders named training and testing, and archives train.zip and test.zip, were all trained on."""
    rows = "".join(f"a {word} film\t{i % 2}\n" for i, word in enumerate("good bad fine poor".split()))
    files = {"Training/a.tsv": f"sentence\tlabel\n{rows}", "dev/a.tsv": f"sentence\tlabel\n{rows}"}
    files |= {"testing/a.tsv": "index\tsentence\n0\tso good it is\n1\tso bad\n", "more.tsv": rows, "about.txt": "this"}
    found = open_texts(written(tmp_path / "folders", files))
    assert {name: len(texts) for name, texts in found.splits.items()} == {"train": 4, "test": 2, "val": 4}
    assert [texts.labels is not None for texts in found.splits.values()] == [True, False, True]
    assert found.notes == [
        "Training/a.tsv, dev/a.tsv, testing/a.tsv: took the column sentence as text",
        "testing/a.tsv: the column index is not used",
        "about.txt, more.tsv are in no split, and not used",
    ]
    for name, texts in {"train": 3, "test": 2}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for number in range(texts):
                archive.writestr(f"{number}.txt", name)
    (tmp_path / "zips").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.zip").rename(tmp_path / "zips" / f"{name}.zip")
    zips = open_texts(tmp_path / "zips")
    assert {name: texts.places for name, texts in zips.splits.items()} == {
        "train": ["train.zip/0.txt", "train.zip/1.txt", "train.zip/2.txt"],
        "test": ["test.zip/0.txt", "test.zip/1.txt"],
    }


def test_classes_of_a_test_set_that_are_kept_secret(tmp_path: Path) -> None:
    """They were all wrong."""
    tables = {"train.csv": "text,label\nso good,1\nso bad,0\n", "test.csv": "text,label\nso fine,-1\nso poor,-1\n"}
    found = open_texts(written(tmp_path, tables))
    assert found.splits["test"].labels is None
    assert found.notes[-1] == "all classes of test are -1, so they are taken as unknown"


def test_the_same_number_is_the_same_class(tmp_path: Path) -> None:
    """Test texts with the classes 0.0 and 1.0 were all wrong."""
    tables = {
        f"{part}.csv": f"text,label\nso good,{one}\nso bad,{zero}\n"
        for part, one, zero in (("train", 1, 0), ("test", "1.0", "0.0"))
    }
    train, test = opened(written(tmp_path, tables))
    assert test is not None
    assert (train.classes, test.classes, test.labels.tolist()) == (["0", "1"], ["0", "1"], [1, 0])


@pytest.mark.parametrize(
    ("splits", "nothing"),
    [
        ({"labeledTrainData.tsv": "train", "testData.tsv": "test", "imdb_dev.csv": "val", "eval.csv": "val"}, ["latest.txt"]),
        ({"20news-bydate-train/a/1.txt": "train", "20news-bydate-test/a/1.txt": "test"}, []),
        ({"dev/train.csv": "train", "dev/testdata.manual.2009.csv": "test"}, []),  # what holds all files says nothing
        ({"train/pos/test_1.txt": "train", "train/dev/2.txt": "train", "test/pos/train.txt": "test"}, []),
        ({}, ["neg/1.txt", "neg/2.txt", "pos/training-tips.txt", "pos/4.txt", "pos/5.txt"]),
        ({"en/train.txt": "train", "de/train.txt": "train", "en/test.txt": "test"}, ["README.txt"]),
    ],
)
def test_the_splits_of_files(splits: dict[str, str], nothing: list[str]) -> None:
    """A file in train/ was tested on because of its name, and folders with more than the word were all trained on."""
    assert splits_of([*splits, *nothing]) == splits
