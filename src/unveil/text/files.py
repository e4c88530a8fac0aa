"""Reads texts, with labels if there are any, from a file, a folder of any depth, or archives of text files and tables."""

import codecs
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive, Folder, is_archive, open_archive
from unveil.data.label_table import examples
from unveil.data.labels import number_labels, unified
from unveil.data.regular_files import FILE_LIMIT
from unveil.data.split_folders import SPLIT_WORDS
from unveil.data.split_folders import split_of as split_folder
from unveil.errors import UnveilError
from unveil.paths import TEXT_FORMS, refuse_missing_texts
from unveil.plain_text import count_of
from unveil.text.tables import TABLES, joined, read_table

PLAIN = (".txt",)
TRAIN, TESTS = "train", ("test", "val")
"""The splits. The test set is the first of `TESTS` that exists or, for fine-tuning, that has labels."""
SPLIT_OF = {word: split for split in (*TESTS, TRAIN) for word in SPLIT_WORDS[split] if not word.startswith("label")}
"""The splits by the words in the name of a file or of a folder."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts in a fixed order."""

    name: str
    """DATA as the user typed it."""
    texts: list[str]
    labels: NDArray[np.int64] | None
    """The class of each text, -1 if it has none; None if no text has a class."""
    classes: list[str]
    """Names of the classes. Those of a test set begin with those of the train set; the rest does not occur in training."""
    fingerprint: str
    """SHA-256 over the texts and labels."""
    places: Sequence[str]
    """The file of each text; for a table, with the number of its row, as in reviews.csv:1."""
    label_source: str = ""
    """Where the classes are from, such as "the column label"."""
    unclear: str = ""
    """Why there are no classes, if several columns could hold them: a clause such as "reviews.csv: the classes could be in ..."."""

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, indices: Iterable[int]) -> "Texts":
        """The texts at these indices, with the fingerprint of all texts."""
        kept = [int(index) for index in indices]
        labels = None if self.labels is None else self.labels[kept]
        places = [self.places[index] for index in kept]
        return replace(self, texts=[self.texts[index] for index in kept], labels=labels, places=places)

    def labelled(self) -> "Texts":
        """The texts that have a class."""
        if self.labels is None or bool((self.labels >= 0).all()):
            return self
        return self.subset(np.flatnonzero(self.labels >= 0))

    def with_classes(self, classes: list[str]) -> "Texts":
        """The same texts with labels numbered as in `classes`. Classes that are not in `classes` follow after its last one."""
        known = set(classes)
        extended = [*classes, *(name for name in self.classes if name not in known)]
        number = {name: index for index, name in enumerate(extended)}
        table = np.array([*(number[name] for name in self.classes), -1], dtype=np.int64)  # -1 stays -1
        return replace(self, labels=None if self.labels is None else table[self.labels], classes=extended)


class OpenedTexts(NamedTuple):
    """The texts of DATA."""

    train: Texts
    test: Texts | None
    notes: list[str]
    """How the files were read, and what of them is not used, each in one sentence."""


@dataclass
class Part:
    """What is read of a split: texts, their classes and places, and where the classes are from."""

    texts: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    label_sources: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)

    @property
    def is_labelled(self) -> bool:
        return any(label is not None for label in self.labels)


def open_texts(data: str | Path, *, labelled_test: bool = False) -> OpenedTexts:
    """The training set and, if there is one, the test set of DATA.

    If a folder or an archive (also an archive inside of a folder) has files or folders named train, such names define the splits,
    and files in no split are not used. Otherwise all files are for training. If there are tables (.csv, .tsv), plain text files
    next to them are not used. Classes are numbered as `unveil.data.labels.number_labels` does, those of the training set first.

    Args:
        data: A file, a folder or an archive.
        labelled_test: Whether the test set must have labels: without them the validation split is used.

    Raises:
        UnveilError: If DATA does not exist, is damaged, or has no text.
    """
    if not isinstance(data, str | os.PathLike):
        raise UnveilError(f"DATA is a {type(data).__name__}, but texts are read from files: expected {TEXT_FORMS}")
    path, name = Path(data).expanduser(), str(data)
    refuse_missing_texts(name)
    reader = Reader(name)
    for archive in archives_in(path):
        reader.read(archive)
    parts = reader.parts
    if not parts.get(TRAIN, Part()).texts:
        reason = "; ".join(reader.notes()) or "expected .txt, .csv or .tsv files in a folder, .tar, .tar.gz or .zip"
        raise UnveilError(f"{name!r} has no text: {reason}")
    tests = [split for split in TESTS if split in parts]
    chosen = [split for split in tests if parts[split].is_labelled] if labelled_test else []
    test = next(iter([*chosen, *tests]), None)
    labels = {split: parts[split].labels for split in (TRAIN, test) if split is not None}
    same = iter(unified([label for own in labels.values() for label in own]))
    numbered = number_labels({split: [next(same) for _ in own] for split, own in labels.items()})
    made = {split: to_texts(name, parts[split], *numbered[split]) for split in labels}
    notes = [split_sentence(name, parts, test)] * (len(parts) > 1) + reader.notes()
    return OpenedTexts(made[TRAIN], None if test is None else made[test], notes)


def split_sentence(name: str, parts: Mapping[str, Part], test: str | None) -> str:
    """What each split is used for."""
    use = {TRAIN: "for training", test: "as the test set"}
    counts = {split: count_of(len(parts[split].texts), "text") for split in (TRAIN, *TESTS) if split in parts}
    said = [f"{split} ({count}) {use.get(split, 'not used')}" for split, count in counts.items()]
    return f"{name} has splits: {'; '.join(said)}"


def archives_in(path: Path) -> Iterator[Archive]:
    """A file or a folder, and the archives in the folder."""
    if path.is_file():
        yield open_archive(path) if is_archive(path) else Folder(path)
        return
    yield Folder(path)
    for file in sorted(path.rglob("*")):
        if file.is_file() and is_archive(file) and not file.name.startswith("."):
            yield open_archive(file)


class Reader:
    """Reads the files of DATA, and gathers what a user should know of them.

    Args:
        where: DATA as the user typed it.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.parts: dict[str, Part] = {}
        self._files: dict[tuple[str, str], list[str]] = {}

    def read(self, archive: Archive) -> None:
        """Adds the texts of a folder or an archive."""
        tables = [name for name in archive.names if suffix_of(name) in TABLES]
        names = tables or [name for name in archive.names if suffix_of(name) in PLAIN]
        splits = {name: split for name in names if (split := split_of(name))}
        if TRAIN in splits.values():
            for name in names:
                if name not in splits:
                    self._note(name, " is in no split, and not used", " are in no split, and not used")
        else:
            splits = dict.fromkeys(names, TRAIN)
        folders = {} if tables else class_folders([*splits])
        for index, name in enumerate(archive.names):
            if name in splits:
                part = self.parts.setdefault(splits[name], Part())
                text = self._decoded(name, archive.read_text(index, self.where, FILE_LIMIT))
                if tables:
                    self._add_table(part, name, text)
                else:
                    part.texts.append(text)
                    part.labels.append(folders.get(name))
                    part.places.append(name)
                    part.label_sources += ["the folders"] * (name in folders)

    def _add_table(self, part: Part, name: str, text: str) -> None:
        table = read_table(text, suffix_of(name), f"{self.where}: {name}")
        part.texts += [text for text, _, _ in table.rows]
        part.labels += [label for _, label, _ in table.rows]
        part.places += [f"{name}:{number}" for _, _, number in table.rows]
        part.label_sources += [table.label_column] * bool(table.label_column)
        part.unclear += [f"{name}: {table.unclear}"] * bool(table.unclear)
        if table.rows:
            self._note(name, f": took {table.text_columns} as text")
        for note in table.notes:
            self._note(name, f": {note}")

    def _decoded(self, name: str, raw: bytes) -> str:
        """The text of a file: UTF-8, UTF-16 with its mark, or the Windows code page in which older programs save text."""
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16", "replace")
        text = raw.decode("utf-8-sig", "replace")
        wrong = text.count("\ufffd") - raw.count("\ufffd".encode())
        if not wrong:
            return text
        foreign = len(text) - len(text.encode("ascii", "ignore")) - wrong
        if foreign > wrong:
            self._note(name, *(f" {verb} bytes that are no UTF-8, which are replaced by \ufffd" for verb in ("has", "have")))
            return text
        wrong_letters = "not in UTF-8, and read as Windows-1252: if letters are wrong, save as UTF-8"
        self._note(name, f" is {wrong_letters}", f" are {wrong_letters}")
        return raw.decode("cp1252", "replace")

    def _note(self, name: str, of_one: str, of_several: str = "") -> None:
        """Adds what is to be said of a file, after its name; of several files, by default the same."""
        self._files.setdefault((of_one, of_several or of_one), []).append(name)

    def notes(self) -> list[str]:
        """One sentence for all files of which the same is to be said."""
        found = []
        for (of_one, of_several), names in self._files.items():
            shown = examples(names) if len(names) <= 3 else f"{len(names):,} files ({examples(names)})"
            found.append(shown + (of_one if len(names) == 1 else of_several))
        return found


def suffix_of(name: str) -> str:
    """The suffix of a file, in lower case."""
    return PurePosixPath(name).suffix.lower()


def split_of(name: str) -> str | None:
    """The split of a file, from its folders or its own name."""
    words = [*PurePosixPath(name.lower()).parts[:-1], *re.split(r"[^a-z]+", PurePosixPath(name.lower()).stem)]
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    return next((split for split in (*TESTS, TRAIN) if split in found), None)


def class_folders(names: Sequence[str]) -> dict[str, str]:
    """The class of each file: its folder. Empty unless there are at least two such folders.

    Files beside the class folders, and in a folder such as unsup/ or unlabeled/, have no class.
    """
    folders = {name: PurePosixPath(name).parent.name for name in names}
    folders = {name: folder for name, folder in folders.items() if folder and split_folder(folder) is None}
    return folders if len(set(folders.values())) > 1 else {}


def to_texts(name: str, part: Part, labels: NDArray[np.int64] | None, classes: list[str]) -> Texts:
    """The texts of a part, with their labels as numbers."""
    digest = hashlib.sha256()
    for text, number in zip(part.texts, labels if labels is not None else itertools.repeat(-1), strict=False):
        digest.update(f"{classes[number] if number >= 0 else None}\0{text}\0".encode("utf-8", "replace"))
    source = joined(list(dict.fromkeys(part.label_sources)))
    unclear = "" if part.is_labelled else "; ".join(part.unclear[:1])
    return Texts(name, part.texts, labels, classes, digest.hexdigest(), part.places, source, unclear)


def unlabelled_texts(name: str, texts: Sequence[str], places: Sequence[str]) -> Texts:
    """Texts without labels that are not from files."""
    return to_texts(name, Part([*texts], [None] * len(texts), [*places]), None, [])


def documents(texts: Sequence[str]) -> Iterator[str]:
    """Splits texts into documents, at blank lines."""
    return itertools.chain.from_iterable(filter(None, map(str.strip, re.split(r"\n\s*\n", text))) for text in texts)
