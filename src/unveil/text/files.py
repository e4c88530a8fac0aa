"""Reads texts, with labels if there are any, from a file, a folder of any depth, or archives of text files and tables."""

import contextlib
import csv
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive, Folder, is_archive, open_archive
from unveil.data.labels import class_order
from unveil.data.split_folders import split_of as split_folder
from unveil.errors import UnveilError
from unveil.paths import TEXT_FORMS, refuse_missing_texts

PLAIN, TABLES = (".txt",), {".tsv": "\t", ".csv": ","}
TRAIN, TESTS = "train", ("test", "val", "valid", "validation", "dev")
"""Names of splits, in the name of a file or of a folder. The test set is the first of `TESTS` that exists."""
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "polarity")
"""Possible headers of a column of labels."""
MAX_CELL = 2**27
"""Largest size of a table cell in characters."""


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


Row = tuple[str, str | None]  # a text and the name of its class
Placed = tuple[str, str | None, str]  # and where it comes from
Splits = dict[str, list[Placed]]


def open_texts(data: str | Path) -> tuple[Texts, Texts | None]:
    """The training set and, if there is one, the test set of DATA.

    If a folder or an archive (also an archive inside of a folder) has files or folders named train, such names define the splits,
    and files in no split are ignored. Otherwise all files are for training. If there are tables (.csv, .tsv), plain text files next
    to them are ignored.

    Raises:
        UnveilError: If DATA does not exist, is damaged, or has no text.
    """
    if not isinstance(data, str | os.PathLike):
        raise UnveilError(f"DATA is a {type(data).__name__}, but texts are read from files: expected {TEXT_FORMS}")
    path = Path(data).expanduser()
    refuse_missing_texts(str(data))
    splits: Splits = {}
    for archive in archives_in(path):
        for split, rows in splits_of(archive).items():
            splits.setdefault(split, []).extend(rows)
    train, test = splits.get(TRAIN, []), next((splits[split] for split in TESTS if split in splits), None)
    if not train:
        raise UnveilError(f"{str(data)!r} has no text: expected .txt, .csv or .tsv files in a folder, .tar, .tar.gz or .zip")
    train_set = to_texts(str(data), train)
    test_set = None if test is None else to_texts(str(data), test)
    return train_set, test_set.with_classes(train_set.classes) if test_set and train_set.classes and test_set.classes else test_set


def archives_in(path: Path) -> Iterator[Archive]:
    """A file or a folder, and the archives in the folder."""
    if path.is_file():
        yield open_archive(path) if is_archive(path) else Folder(path)
        return
    yield Folder(path)
    for file in sorted(path.rglob("*")):
        if file.is_file() and is_archive(file) and not file.name.startswith("."):
            yield open_archive(file)


def splits_of(archive: Archive) -> Splits:
    """The rows of each split of a folder or an archive."""
    names = [name for name in archive.names if PurePosixPath(name).suffix.lower() in TABLES] or [
        name for name in archive.names if PurePosixPath(name).suffix.lower() in PLAIN
    ]
    split_names = {name: split for name in names if (split := split_of(name))}
    if TRAIN not in split_names.values():
        split_names = dict.fromkeys(names, TRAIN)
    folders, splits = class_folders([*split_names]), Splits()
    for index, name in enumerate(archive.names):
        if name in split_names:
            text, suffix = archive.read(index).decode("utf-8", "replace"), PurePosixPath(name).suffix.lower()
            if suffix in TABLES:
                rows = [(*row, f"{name}:{number}") for number, row in enumerate(table_rows(text, TABLES[suffix]), 1)]
            else:
                rows = [(text, folders.get(name), name)]
            splits.setdefault(split_names[name], []).extend(rows)
    return splits


def split_of(name: str) -> str | None:
    """The split of a file, from its folders or its own name."""
    words = [*PurePosixPath(name.lower()).parts[:-1], *re.split(r"[^a-z]+", PurePosixPath(name.lower()).stem)]
    return next((split for split in (*TESTS, TRAIN) if split in words), None)


def class_folders(names: Sequence[str]) -> dict[str, str]:
    """The class of each file: its folder. Empty unless there are at least two such folders.

    Files beside the class folders, and in a folder such as unsup/ or unlabeled/, have no class.
    """
    folders = {name: PurePosixPath(name).parent.name for name in names}
    folders = {name: folder for name, folder in folders.items() if folder and split_folder(folder) is None}
    return folders if len(set(folders.values())) > 1 else {}


@contextlib.contextmanager
def large_cells() -> Iterator[None]:
    """Lets `csv` read cells as long as whole documents. The limit is global, so it is restored at the end."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def table_rows(text: str, delimiter: str) -> list[Row]:
    """The texts and classes of a table. Their columns are found from the header and the content.

    The class is in the column with a header of `LABEL_NAMES`, or else in the first column with single words that repeat. The text
    is in the columns with several words. In a .tsv, quotation marks are ordinary characters, as in GLUE.
    """
    lines = io.StringIO(text, newline="")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with large_cells():
        rows = [row for row in csv.reader(lines, delimiter=delimiter, quoting=quoting) if row]
    width = max((len(row) for row in rows), default=0)
    rows = [row + [""] * (width - len(row)) for row in rows]
    headers = [cell.strip().lower() for cell in rows[0]] if rows else []
    label = next((i for i, header in enumerate(headers) if header in LABEL_NAMES), None)
    has_header = label is not None or any(header in ("text", "sentence", "review", "title", "description") for header in headers)
    rows = rows[has_header:]
    columns = list(zip(*rows, strict=True))
    wordy = [i for i, column in enumerate(columns) if sum(" " in cell.strip() for cell in column) > len(column) / 2]
    if label is None:
        label = next((i for i, column in enumerate(columns) if i not in wordy and 1 < len(set(column)) <= len(column) / 2), None)
    wordy = [i for i in wordy if i != label] or [i for i in range(width) if i != label][:1]
    return [(" ".join(row[i].strip() for i in wordy), None if label is None else row[label].strip() or None) for row in rows]


def to_texts(name: str, rows: Sequence[Placed]) -> Texts:
    """Converts rows to texts."""
    digest = hashlib.sha256()
    for text, label, _ in rows:
        digest.update(f"{label}\0{text}\0".encode("utf-8", "replace"))
    texts, places, fingerprint = [row[0] for row in rows], [row[2] for row in rows], digest.hexdigest()
    classes = class_order(label for _, label, _ in rows if label is not None)
    if not classes:
        return Texts(name, texts, None, [], fingerprint, places)
    number = {label: i for i, label in enumerate(classes)}
    labels = np.array([-1 if label is None else number[label] for _, label, _ in rows], dtype=np.int64)
    return Texts(name, texts, labels, classes, fingerprint, places)


def documents(texts: Sequence[str]) -> Iterator[str]:
    """Splits texts into documents, at blank lines."""
    return itertools.chain.from_iterable(filter(None, map(str.strip, re.split(r"\n\s*\n", text))) for text in texts)
