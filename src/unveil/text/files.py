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
from unveil.data.labels import joined_classes, number_labels, unified
from unveil.data.regular_files import FILE_LIMIT
from unveil.errors import UnveilError
from unveil.paths import TEXT_FORMS, refuse_missing_texts
from unveil.plain_text import count_of
from unveil.text.split_names import PLAIN, TESTS, TRAIN, class_folders, split_of_file, splits_of, suffix_of
from unveil.text.tables import TABLES, Columns, joined, read_table

HIDDEN_LABEL = "-1"
"""The class of every test text whose class is kept secret, as in GLUE."""
NUL_SHARE = 0.1
"""A file with a larger share of NUL bytes is no text in UTF-8."""


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

    splits: dict[str, Texts]
    """The training set, then the others of `TESTS` that there are."""
    notes: list[str]
    """How the files were read, and what of them is not used, each in one sentence."""

    @property
    def train(self) -> Texts:
        return self.splits[TRAIN]

    @property
    def tests(self) -> list[Texts]:
        """The other splits: first the test set, if there is one."""
        return [self.splits[split] for split in TESTS if split in self.splits]


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


def open_texts(data: str | Path) -> OpenedTexts:
    """The texts of DATA.

    If a folder or an archive (also an archive inside of a folder) has files or folders named train, such names define the splits,
    and files in no split are not used. So do the names of archives that lie together. Otherwise all files are for training. If
    there are tables (.csv, .tsv), plain text files next to them are not used. Classes are numbered as
    `unveil.data.labels.number_labels` does, those of the training set first.

    Raises:
        UnveilError: If DATA does not exist, is damaged, or has no text.
    """
    if not isinstance(data, str | os.PathLike):
        raise UnveilError(f"DATA is a {type(data).__name__}, but texts are read from files: expected {TEXT_FORMS}")
    path, name = Path(data).expanduser(), str(data)
    refuse_missing_texts(name)
    reader = Reader(name)
    for inside, split, archive in archives_in(path):
        reader.read(archive, inside, split)
    parts = {split: part for split in (TRAIN, *TESTS) if (part := reader.parts.get(split)) is not None and part.texts}
    if TRAIN not in parts:
        reason = "; ".join(reader.notes()) or "expected .txt, .csv or .tsv files in a folder, .tar, .tar.gz or .zip"
        raise UnveilError(f"{name!r} has no text: {reason}")
    notes = reader.notes()
    for split, part in parts.items():
        if split != TRAIN and set(part.labels) == {HIDDEN_LABEL} and HIDDEN_LABEL not in parts[TRAIN].labels:
            part.labels = [None] * len(part.labels)
            notes.append(f"all classes of {split} are {HIDDEN_LABEL}, so they are taken as unknown")
    written = [label for part in parts.values() for label in part.labels]
    together = unified(written)
    notes += filter(None, [joined_classes(written, together)])
    same = iter(together)
    numbered = number_labels({split: [next(same) for _ in part.labels] for split, part in parts.items()})
    return OpenedTexts({split: to_texts(name, part, *numbered[split]) for split, part in parts.items()}, notes)


def split_sentence(opened: OpenedTexts, use: Mapping[str, str]) -> str:
    """What each split is used for, in words; "" if there is only one."""
    said = [f"{split} ({count_of(len(texts), 'text')}) {use.get(split, 'not used')}" for split, texts in opened.splits.items()]
    return f"{opened.train.name} has splits: {'; '.join(said)}" if len(said) > 1 else ""


def archives_in(path: Path) -> Iterator[tuple[str, str | None, Archive]]:
    """A file or a folder, and the archives in the folder, with their paths in it and the splits in their names, if one is train."""
    if path.is_file():
        yield "", None, open_archive(path) if is_archive(path) else Folder(path)
        return
    yield "", None, Folder(path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and is_archive(file) and not file.name.startswith(".")]
    names = {file: file.relative_to(path).as_posix() for file in files}
    splits = {name: split_of_file(PurePosixPath(name).name.partition(".")[0]) for name in names.values()}
    for file, name in names.items():
        yield name, splits[name] if TRAIN in splits.values() else None, open_archive(file)


class Reader:
    """Reads the files of DATA, and gathers what a user should know of them.

    Args:
        where: DATA as the user typed it.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.parts: dict[str, Part] = {}
        self._columns: Columns | None = None
        self._files: dict[tuple[str, str], list[str]] = {}

    def read(self, archive: Archive, inside: str = "", split: str | None = None) -> None:
        """Adds the texts of a folder or an archive.

        Args:
            archive: The files.
            inside: The path of the archive in DATA; "" for DATA itself.
            split: The split of all files, if theirs is not told by their own names.
        """
        tables = [name for name in archive.names if suffix_of(name) in TABLES]
        plain = [name for name in archive.names if suffix_of(name) in PLAIN]
        names, prefix = tables or plain, f"{inside}/" if inside else ""
        for name in plain if tables else ():
            self._note(prefix + name, " is not used beside tables", " are not used beside tables")
        splits = splits_of(names)
        if TRAIN in splits.values():
            for name in names:
                if name not in splits:
                    self._note(prefix + name, " is in no split, and not used", " are in no split, and not used")
        else:
            splits = dict.fromkeys(names, split or TRAIN)
        folders = {} if tables else class_folders([*splits])
        indices = [index for index, name in enumerate(archive.names) if name in splits]
        for index in sorted(indices, key=lambda index: splits[archive.names[index]] != TRAIN):
            name = archive.names[index]
            part, place = self.parts.setdefault(splits[name], Part()), prefix + name
            text = self._decoded(place, archive.read_text(index, self.where, FILE_LIMIT))
            if tables:
                self._add_table(part, place, text, is_train=splits[name] == TRAIN)
            else:
                part.texts.append(text)
                part.labels.append(folders.get(name))
                part.places.append(place)
                part.label_sources += ["the folders"] * (name in folders)

    def _add_table(self, part: Part, name: str, text: str, *, is_train: bool) -> None:
        table = read_table(text, suffix_of(name), f"{self.where}: {name}", self._columns, needs_texts=not is_train)
        if is_train and table.rows and self._columns is None:
            self._columns = table.columns
        part.texts += [text for text, _, _ in table.rows]
        part.labels += [label for _, label, _ in table.rows]
        part.places += [f"{name}:{number}" for _, _, number in table.rows]
        part.label_sources += [table.label_source] * bool(table.label_source)
        part.unclear += [f"{name}: {table.unclear}"] * bool(table.unclear)
        for note in table.notes:
            self._note(name, f": {note}")

    def _decoded(self, name: str, raw: bytes) -> str:
        """The text of a file: UTF-8, UTF-16 with its mark, or the Windows code page in which older programs save text."""
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16", "replace")
        if raw.count(b"\0") > NUL_SHARE * len(raw):
            raise UnveilError(f"{self.where}: {name} is no text in UTF-8, but perhaps in UTF-16 without its mark: save it as UTF-8")
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
