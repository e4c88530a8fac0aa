"""Sentence pairs: their files, their sub-words, their batches."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from unveil.blocks.special_tokens import BEGIN, END, PAD
from unveil.data.loader import first_batch
from unveil.errors import UnveilError
from unveil.text.bpe import BPETokenizer
from unveil.text.parallel_corpus import PAD_MULTIPLE, POOL, PairLoader, read_corpus

TEXTS = ["The cat sits.", "Zwei junge weiße Männer im Freien!", "A [pad] is no mark, nor is [end].", "\N{CAT FACE} 42 ²"]


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_and_an_archive_hold_the_same(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "text",
        train_dot_en="a\n b \n\n",
        train_dot_de="A\nB\u2028b\n\n",
        val_dot_en="v",
        val_dot_de="V",
        test_x_dot_en="t\n",
        test_x_dot_de="T\n",
        test_y_dot_en="alone\n",
        notes_dot_md="no",
    )
    corpus = read_corpus(folder, "en", "de")
    assert corpus.train == (["a", "b", ""], ["A", "B\u2028b", ""])
    assert corpus.held_out == (["v"], ["V"])
    assert corpus.tests == {"test_x": (["t"], ["T"])}
    assert corpus.unused == ("test_y.en",)
    with tarfile.open(tmp_path / "text.tar.gz", "w:gz") as archive:
        for path in folder.iterdir():
            info = tarfile.TarInfo(f"./{path.name}")
            info.size = path.stat().st_size
            archive.addfile(info, io.BytesIO(path.read_bytes()))
    assert read_corpus(tmp_path / "text.tar.gz", "en", "de") == corpus
    assert read_corpus(folder, "de", "en").train == corpus.train[::-1]
    write(folder, train_dot_en="a\nc\n\n")
    assert read_corpus(folder, "en", "de").fingerprint != corpus.fingerprint


def test_words_for_the_validation_split_and_files_without_use(tmp_path: Path) -> None:
    """They were left out without a word."""
    files = {f"{name}_dot_{language}": f"{name}\n" for name in ("train", "validation", "extra") for language in ("en", "de")}
    corpus = read_corpus(write(tmp_path / "text", **files, dev_dot_en="alone\n"), "en", "de")
    assert corpus.held_out == (["validation"], ["validation"])
    assert corpus.unused == ("dev.en", "extra.de", "extra.en")


def test_files_in_several_folders_of_an_archive_are_refused(tmp_path: Path) -> None:
    """Those with the same name replaced each other, so that sentences of one folder were paired with those of another."""
    with tarfile.open(tmp_path / "mix.tar.gz", "w:gz") as archive:
        for name in ("a/train.en", "b/train.en", "b/train.de", "a/train.de"):
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(f"{name[0]}\n".encode()))
    with pytest.raises(UnveilError, match="has files of these languages in a and b: expected one folder"):
        read_corpus(tmp_path / "mix.tar.gz", "en", "de")


def test_test_pairs_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "text", train_dot_en="a\nb\nc\n", train_dot_de="A\nB\nC\n", val_dot_en="b\nb\nx\n", val_dot_de="B\nC\nX\n"
    )
    assert read_corpus(folder, "en", "de").copies() == {"held out": 1}
    write(folder, test_dot_en="x\n", test_dot_de="X\n", test2_dot_en="c\na\n", test2_dot_de="C\nA\n")
    assert read_corpus(folder, "en", "de").copies() == {"test2": 2}


def test_what_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="nowhere does not exist: expected a folder or a "):
        read_corpus(tmp_path / "nowhere", "en", "de")
    folder = write(tmp_path / "text", train_dot_en="a\nb\n", train_dot_de="A\n")
    with pytest.raises(UnveilError, match="en has 2 lines, but train"):
        read_corpus(folder, "en", "de")
    with pytest.raises(UnveilError, match=r"found train\.en, expected train\.en and train\.fr"):
        read_corpus(folder, "en", "fr")
    (folder / "train.de").write_bytes(b"\xff\xfe\n\n")
    with pytest.raises(UnveilError, match="not UTF-8"):
        read_corpus(folder, "en", "de")
    (tmp_path / "broken.tar.gz").write_bytes(b"nothing")
    with pytest.raises(UnveilError, match="is not an archive that can be read"):
        read_corpus(tmp_path / "broken.tar.gz", "en", "de")


def test_subwords_spell_any_text_and_come_back(tmp_path: Path) -> None:
    words = BPETokenizer.train(TEXTS[:2] * 5, 300)
    assert len(words) <= 300
    rows = words.encode([*TEXTS, ""])
    assert words.decode(rows) == [*TEXTS, ""]
    assert all(token > END for row in rows for token in row)
    assert len(rows[0]) < len(TEXTS[0])
    (tmp_path / "words.json").write_text(words.text, encoding="utf-8")
    again = BPETokenizer.load(tmp_path / "words.json")
    assert again.encode(TEXTS) == rows[:-1]
    assert "".join(again.pieces(rows[0])).strip() == TEXTS[0]
    assert again.pieces([BEGIN, END]) == ["[begin]", "[end]"]
    assert words.decode([[*rows[0], END, PAD]]) == TEXTS[:1]
    with pytest.raises(UnveilError, match="is too small for 3 special tokens"):
        BPETokenizer.train(TEXTS, 100)
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(UnveilError, match="is not a vocabulary"):
        BPETokenizer.load(tmp_path / "words.json")


def loader(batch_size: int = 8, seed: int = 0) -> PairLoader:
    """600 pairs whose words are their number."""
    chance = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 30, (600,), generator=chance).tolist()
    source = [[3 + i] * length for i, length in enumerate(lengths)]
    return PairLoader(source, [[row[0]] * (len(row) // 2 + 1) for row in source], batch_size=batch_size, seed=seed)


def test_batches_hold_each_pair_once_an_epoch_and_little_padding() -> None:
    made = loader()
    batches = [made.share(step, 0, 1) for step in range(2 * POOL)]
    seen = torch.cat([batch.source[:, 0] for batch in batches]) - 3
    assert not torch.equal(seen[:600].sort().values, torch.arange(600))  # a pool of 512 ends where no epoch does
    assert torch.equal(torch.cat([seen]).bincount(minlength=600).clamp(max=1), torch.ones(600, dtype=torch.int64))
    for batch in batches:
        assert torch.equal(batch.source[:, 0], batch.target[:, 1])
        assert bool((batch.target[:, 0] == BEGIN).all())
        assert batch.source.shape[1] % PAD_MULTIPLE == 0
        assert batch.target.shape[1] % PAD_MULTIPLE == 1
        for row in (*batch.source, *batch.target):
            words = row[row != PAD].tolist()
            assert words.count(END) == 1
            assert words[-1] == END
    used = sum(int((batch.source != PAD).sum()) for batch in batches) / sum(batch.source.numel() for batch in batches)
    assert used > 0.8
    lengths = [batch.source.shape[1] for batch in batches[:POOL]]
    assert lengths != sorted(lengths)
    assert len({(batch.source.shape[1], batch.target.shape[1]) for batch in batches}) < 20


def test_a_step_depends_on_nothing_but_its_seed_and_number() -> None:
    first, later, other = loader(), loader(), loader(seed=1)
    later.share(3 * POOL, 0, 1)
    for mine, same, another in zip(first.share(70, 0, 1), later.share(70, 0, 1), other.share(70, 0, 1), strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, another) or mine.ndim == 1
    whole, halves = first.share(5, 0, 1), [first.share(5, i, 2) for i in range(2)]
    assert sorted(whole.source[:, 0].tolist()) == sorted(torch.cat([half.source[:, 0] for half in halves]).tolist())
    words = [int((half.target[:, 1:] != PAD).sum()) for half in halves]
    assert float(whole.weight[0]) == pytest.approx(1 / sum(words))
    assert float(halves[0].weight[0]) == pytest.approx(2 / sum(words))
    assert len(first_batch(loader(512), max_count=100).keys) == 64
