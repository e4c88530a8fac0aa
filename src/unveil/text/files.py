"""Texts out of DATA: a file, a folder of any depth, or an archive of text files and tables, with labels where there are some."""

import csv
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive, Folder, is_archive, open_archive
from unveil.errors import UnveilError

PLAIN, TABLES = (".txt",), {".tsv": "\t", ".csv": ","}
TRAIN, TESTS = "train", ("test", "val", "valid", "validation", "dev")
"""What parts of a corpus are called, in the name of a file or of a folder; the first of `TESTS` that is there is judged on."""
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "polarity")
"""How a column of labels may be headed."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Some texts in a fixed order."""

    name: str
    """What the user typed."""
    texts: list[str]
    labels: NDArray[np.int64] | None
    """The class of each, or None where none are known."""
    classes: list[str]
    fingerprint: str
    """SHA-256 over the texts and labels."""

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, places: Iterable[int]) -> "Texts":
        """Some of them; they keep the fingerprint of all."""
        numbers = [int(place) for place in places]
        labels = None if self.labels is None else self.labels[numbers]
        return replace(self, texts=[self.texts[number] for number in numbers], labels=labels)

    def with_classes(self, classes: list[str]) -> "Texts":
        """The same with labels numbered as in `classes`. Raises `UnveilError` for a class that is not in it."""
        strange = set(self.classes) - set(classes)
        if strange:
            raise UnveilError(f"{self.name} has the class {min(strange)!r}, which the training part lacks: it has {classes[:8]}")
        labels = None if self.labels is None else np.array([classes.index(self.classes[i]) for i in self.labels], dtype=np.int64)
        return replace(self, labels=labels, classes=classes)


Row = tuple[str, str | None]  # a text, and what its class is called
Found = dict[str, list[Row]]  # by part


def open_texts(data: str | Path) -> tuple[Texts, Texts | None]:
    """The training part and, if there is one, the test part of DATA.

    A box of files (a folder, or an archive, also one that lies in a folder) with a part called train has its test part kept
    apart, and what is in no part is a note on the others; where none is called train, all of it is for training. Tables (.csv,
    .tsv) win over plain files beside them.

    Raises:
        UnveilError: There is no such thing, it is damaged, or it holds no text.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise UnveilError(f"there is no {str(data)!r}: expected a .txt, .csv or .tsv file, or a folder or archive of them")
    found: Found = {}
    for box in boxes(path):
        for part, rows in parts_of(box).items():
            found.setdefault(part, []).extend(rows)
    train, test = found.get(TRAIN, []), next((found[part] for part in TESTS if part in found), None)
    if not train:
        raise UnveilError(f"{str(data)!r} holds no text: expected .txt, .csv or .tsv files in a folder, .tar, .tar.gz or .zip")
    texts = gathered(str(data), train)
    judged = None if test is None else gathered(str(data), test)
    return texts, judged.with_classes(texts.classes) if judged and texts.classes and judged.classes else judged


def boxes(path: Path) -> Iterator[Archive]:
    """The archives of a path, and what lies beside them."""
    if path.is_file():
        yield open_archive(path) if is_archive(path) else Folder(path)
        return
    yield Folder(path)
    for inside in sorted(path.rglob("*")):
        if inside.is_file() and is_archive(inside) and not inside.name.startswith("."):
            yield open_archive(inside)


def parts_of(box: Archive) -> Found:
    """The rows of each part of a box."""
    names = [name for name in box.names if PurePosixPath(name).suffix.lower() in TABLES] or [
        name for name in box.names if PurePosixPath(name).suffix.lower() in PLAIN
    ]
    parts = {name: part for name in names if (part := part_of(name))}
    if TRAIN not in parts.values():
        parts = dict.fromkeys(names, TRAIN)
    folders, found = class_folders([*parts]), Found()
    for number, name in enumerate(box.names):
        if name in parts:
            text, suffix = box.read(number).decode("utf-8", "replace"), PurePosixPath(name).suffix.lower()
            rows = table_rows(text, TABLES[suffix]) if suffix in TABLES else [(text, folders.get(name))]
            found.setdefault(parts[name], []).extend(rows)
    return found


def part_of(name: str) -> str | None:
    """Which part a file belongs to, by its folders or its own name."""
    words = [*PurePosixPath(name.lower()).parts[:-1], *re.split(r"[^a-z]+", PurePosixPath(name.lower()).stem)]
    return next((part for part in (*TESTS, TRAIN) if part in words), None)


def class_folders(names: Sequence[str]) -> dict[str, str]:
    """The class of each file where every file lies in a folder that is no part of a corpus, and there are two such or more."""
    folders = {name: PurePosixPath(name).parent.name for name in names}
    classes = set(folders.values())
    return folders if len(classes) > 1 and not classes & {"", TRAIN, *TESTS} else {}


def table_rows(text: str, between: str) -> list[Row]:
    """A row of a table is a text and perhaps its class: which column is which is told by what stands in them.

    The class stands in the column that is headed so, or else in the first whose values are single words and repeat; a text is
    made of the columns that hold several words. In a .tsv quotation marks are letters like any others, as in GLUE.
    """
    csv.field_size_limit(2**27)
    lines = io.StringIO(text, newline="")
    read = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if between == "\t" else csv.reader(lines, delimiter=between)
    rows = [row for row in read if row]
    width = max((len(row) for row in rows), default=0)
    rows = [row + [""] * (width - len(row)) for row in rows]
    heads = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = next((i for i, head in enumerate(heads) if head in LABEL_NAMES), None)
    headed = named is not None or any(head in ("text", "sentence", "review", "title", "description") for head in heads)
    rows = rows[headed:]
    columns = list(zip(*rows, strict=True))
    wordy = [i for i, column in enumerate(columns) if sum(" " in cell.strip() for cell in column) > len(column) / 2]
    if named is None:
        named = next((i for i, column in enumerate(columns) if i not in wordy and 1 < len(set(column)) <= len(column) / 2), None)
    wordy = [i for i in wordy if i != named] or [i for i in range(width) if i != named][:1]
    return [(" ".join(row[i].strip() for i in wordy), None if named is None else row[named].strip()) for row in rows]


def gathered(name: str, rows: Sequence[Row]) -> Texts:
    """Rows as texts; they have labels where every one of them says its class."""
    digest = hashlib.sha256()
    for text, label in rows:
        digest.update(f"{label}\0{text}\0".encode("utf-8", "replace"))
    names = {label for _, label in rows if label is not None}
    texts, complete = [text for text, _ in rows], bool(names) and all(label is not None for _, label in rows)
    if not complete:
        return Texts(name, texts, None, [], digest.hexdigest())
    classes = sorted(names, key=lambda label: (not label.isdigit(), int(label) if label.isdigit() else 0, label))
    number = {label: i for i, label in enumerate(classes)}
    return Texts(name, texts, np.array([number[label] for _, label in rows if label is not None]), classes, digest.hexdigest())


def documents(texts: Sequence[str]) -> Iterator[str]:
    """What belongs together: a text, or the paragraphs of one, cut at blank lines."""
    return itertools.chain.from_iterable(filter(None, map(str.strip, re.split(r"\n\s*\n", text))) for text in texts)
