"""Texts, with labels if there are any, from a file, a folder of any depth, or archives of text files and tables."""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.labels import joined_classes, number_labels, unified
from unveil.errors import UnveilError
from unveil.paths import TEXT_FORMS, refuse_missing_texts
from unveil.plain_text import count_of
from unveil.text.reader import Part, Reader
from unveil.text.split_names import TESTS, TRAIN
from unveil.text.tables import Columns, joined

HIDDEN_LABEL = "-1"
"""The class of every test text whose class is kept secret, as in GLUE."""


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
        """The same texts with labels numbered as in `classes`. Classes that are not in `classes` follow after its last one.

        If all are numbers, those of the same value, such as 1 and 1.0, are the same class.
        """
        same = unified([*classes, *self.classes])
        known = dict(zip(same[len(classes) :], self.classes, strict=True)) | dict(zip(same, classes, strict=False))
        own = [known[name] for name in same[len(classes) :]]
        extended = list(dict.fromkeys([*classes, *own]))
        number = {name: index for index, name in enumerate(extended)}
        table = np.array([*(number[name] for name in own), -1], dtype=np.int64)  # -1 stays -1
        return replace(self, labels=None if self.labels is None else table[self.labels], classes=extended)


class OpenedTexts(NamedTuple):
    """The texts of DATA."""

    splits: dict[str, Texts]
    """The training set, then the others of `TESTS` that there are."""
    notes: list[str]
    """How the files were read, and what of them is not used, each in one sentence."""
    columns: Columns | None = None
    """The columns of the first table for training."""

    @property
    def train(self) -> Texts:
        return self.splits[TRAIN]

    @property
    def tests(self) -> list[Texts]:
        """The other splits: first the test set, if there is one."""
        return [self.splits[split] for split in TESTS if split in self.splits]


def open_texts(data: str | Path, like: Columns | None = None) -> OpenedTexts:
    """The texts of DATA.

    The names of files, folders and archives define the splits: see `unveil.text.split_names`. So does the column of splits of a
    table if they do not. Files in no split are not used; neither are plain text files beside tables (.csv, .tsv). Classes are
    numbered as `unveil.data.labels.number_labels` does, those of the training set first.

    Args:
        data: A file, a folder of any depth, or an archive.
        like: The columns of a training set that these texts belong to. A table with the same ones is read in the same way.

    Raises:
        UnveilError: If DATA does not exist, is damaged, or has no text.
    """
    if not isinstance(data, str | os.PathLike):
        raise UnveilError(f"DATA is a {type(data).__name__}, but texts are read from files: expected {TEXT_FORMS}")
    path, name = Path(data).expanduser(), str(data)
    refuse_missing_texts(name)
    reader = Reader(path, name, like)
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
    return OpenedTexts({split: to_texts(name, part, *numbered[split]) for split, part in parts.items()}, notes, reader.columns)


def split_sentence(opened: OpenedTexts, use: Mapping[str, str]) -> str:
    """What each split is used for, in words; "" if there is only one."""
    said = [f"{split} ({count_of(len(texts), 'text')}) {use.get(split, 'not used')}" for split, texts in opened.splits.items()]
    return f"{opened.train.name} has splits: {'; '.join(said)}" if len(said) > 1 else ""


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
    part = Part()
    for text, place in zip(texts, places, strict=True):
        part.add(text, None, place, place)
    return to_texts(name, part, None, [])


def documents(texts: Sequence[str]) -> Iterator[str]:
    """Splits texts into documents, at blank lines."""
    return itertools.chain.from_iterable(filter(None, map(str.strip, re.split(r"\n\s*\n", text))) for text in texts)
