"""Finds the text files and the tables of DATA, in folders and archives, and reads the texts in them."""

import codecs
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unveil.data.archives import Archive, Folder, is_archive, open_archive
from unveil.data.label_table import examples
from unveil.data.regular_files import FILE_LIMIT
from unveil.errors import UnveilError
from unveil.plain_text import count_of
from unveil.text.split_names import PLAIN, TABLES, TESTS, TRAIN, class_folders, splits_in, splits_of, suffix_of
from unveil.text.tables import Columns, Table, read_table

UNREAD = frozenset(
    f".{suffix}"
    for suffix in "json jsonl ndjson parquet arrow feather xlsx xls ods gz bz2 xz zst md html htm xml rtf doc docx pdf".split()
)
"""Suffixes of files that may hold texts and are not read."""
LOCK_FILE = "~$"
"""How the names of files begin that office programs write beside an open table."""
NUL_SHARE = 0.1
"""A file with a larger share of NUL bytes is no text in UTF-8."""


class File(NamedTuple):
    """A file of DATA."""

    place: str
    """Its path in DATA; that of a file in an archive begins with the path of the archive."""
    archive: Archive
    member: int
    """Its number in the archive."""


@dataclass
class Part:
    """What is read of a split: texts with their classes, places and files, and where the classes are from."""

    texts: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    label_sources: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)

    @property
    def is_labelled(self) -> bool:
        return any(label is not None for label in self.labels)

    def add(self, text: str, label: str | None, place: str, file: str) -> None:
        """Adds a text."""
        self.texts.append(text)
        self.labels.append(label)
        self.places.append(place)
        self.files.append(file)

    @property
    def in_several_files(self) -> int:
        """How many texts an earlier file has as well."""
        first = dict[str, str]()
        return sum(first.setdefault(text, file) != file for text, file in zip(self.texts, self.files, strict=True))


class Reader:
    """Reads the files of DATA, and gathers what a user should know of them.

    Args:
        path: A file or a folder.
        where: DATA as the user typed it.
        like: The columns of the tables of a training set. Tables with the same ones are read in the same way.

    Attributes:
        parts: The texts of each split.
        columns: The columns of the first table for training, or `like`.
    """

    def __init__(self, path: Path, where: str, like: Columns | None = None) -> None:
        self.where, self.columns = where, like
        self.parts: dict[str, Part] = {}
        self._files: dict[tuple[str, str], list[str]] = {}
        self._sentences: list[str] = []
        self._read(path)

    def _read(self, path: Path) -> None:
        loose, packed = files_in(path)
        everything = [*loose, *(file for group in packed.values() for file in group)]
        groups = {name: [file for file in group if is_read(file)] for name, group in packed.items()}
        inside = {name: [file.archive.names[file.member] for file in group] for name, group in groups.items()}
        splits, train_is_named, sentence = splits_in([file.place for file in loose if is_read(file)], inside)
        self._sentences += [sentence] * bool(sentence)
        self._note_unread([file.place for file in everything], train_is_named=train_is_named)
        used = sorted((file for file in everything if file.place in splits), key=lambda file: splits[file.place] != TRAIN)
        plain = [file for file in used if suffix_of(file.place) in PLAIN]
        with_tables = self._add_tables([file for file in used if suffix_of(file.place) in TABLES], plain, splits)
        self._add_plain(plain, splits, with_tables)
        for file in everything:
            if is_read(file) and file.place not in splits:
                self._note(file.place, " is in no split, and not used", " are in no split, and not used")

    def _add_tables(self, tables: Sequence[File], plain: Sequence[File], splits: Mapping[str, str]) -> set[str]:
        """Adds the texts of tables, without those that name the plain text files. Returns the splits that have tables."""
        names, by_row, found = {PurePosixPath(file.place).name for file in plain}, set(splits.values()) == {TRAIN}, set[str]()
        for file in tables:
            split, where = splits[file.place], f"{self.where}: {file.place}"
            table = read_table(self._decoded(file), suffix_of(file.place), where, self.columns, needs_texts=split != TRAIN)
            if names and sum(PurePosixPath(row.text).name in names for row in table.rows) > len(table.rows) / 2:
                self._note(file.place, ": its texts are names of other files, so it is not used")
                continue
            if table.rows:
                found.add(split)
                self.columns = table.columns if self.columns is None and split == TRAIN else self.columns
            self._add_table(table, file.place, split, by_row=by_row)
        return found

    def _add_plain(self, plain: Sequence[File], splits: Mapping[str, str], with_tables: Collection[str]) -> None:
        """Adds plain text files. Beside tables, only class folders of a split without tables are used."""
        folders = class_folders([file.place for file in plain])
        for file in plain:
            split = splits[file.place]
            if split in with_tables or (with_tables and file.place not in folders):
                self._note(file.place, " is not used beside tables", " are not used beside tables")
                continue
            part = self.parts.setdefault(split, Part())
            part.add(self._decoded(file), folders.get(file.place), file.place, file.place)
            part.label_sources += ["the folders"] * (file.place in folders)

    def _note_unread(self, places: Sequence[str], *, train_is_named: bool) -> None:
        """Notes the files that are not read. Raises `UnveilError` if they are the only ones named train."""
        unread = [place for place in places if suffix_of(place) in UNREAD]
        training = [place for place, split in splits_of(unread).items() if split == TRAIN]
        if training and not train_is_named:
            raise UnveilError(f"{self.where}: {examples(training)} cannot be read: expected texts as .txt, .csv or .tsv files")
        for place in unread:
            self._note(place, *(f" {verb} not read: expected .txt, .csv or .tsv" for verb in ("is", "are")))

    def _add_table(self, table: Table, name: str, split: str, *, by_row: bool) -> None:
        """Adds the texts of a table to the split of its file or, with `by_row`, to those in its column of splits."""
        chosen = [row.split if by_row and row.split is not None else split for row in table.rows]
        for row, own in zip(table.rows, chosen, strict=True):
            self.parts.setdefault(own, Part()).add(row.text, row.label, f"{name}:{row.number}", name)
        for own in set(chosen):
            self.parts[own].label_sources += [table.label_source] * bool(table.label_source)
            self.parts[own].unclear += [f"{name}: {table.unclear}"] * bool(table.unclear)
        for note in table.notes:
            self._note(name, f": {note}")
        if table.columns.split is not None:
            column = table.columns.named([table.columns.split])
            self._note(name, f": took {column} as splits" if by_row else f": {column} is not used")

    def _decoded(self, file: File) -> str:
        """The text of a file: UTF-8, UTF-16 with its mark, or the Windows code page in which older programs save text."""
        raw, name = file.archive.read_text(file.member, self.where, FILE_LIMIT), file.place
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
        """One sentence for all files of which the same is to be said, and what is to be said of splits."""
        found = list[str]()
        for (of_one, of_several), names in self._files.items():
            shown = examples(names) if len(names) <= 3 else f"{len(names):,} files ({examples(names)})"
            found.append(shown + (of_one if len(names) == 1 else of_several))
        for split in (TRAIN, *TESTS):
            if split in self.parts and (again := self.parts[split].in_several_files):
                total = count_of(len(self.parts[split].texts), "text")
                found.append(f"{again:,} of {total} of {split} {'is' if again == 1 else 'are'} in another of its files as well")
        return [*self._sentences, *found]


def is_read(file: File) -> bool:
    """Whether a file is plain text or a table."""
    return suffix_of(file.place) in (*PLAIN, *TABLES)


def files_in(path: Path) -> tuple[list[File], dict[str, list[File]]]:
    """The files of a file, a folder or an archive, and those of each archive that lies in the folder, by its path in it."""
    if path.is_file():
        return listed(open_archive(path) if is_archive(path) else Folder(path)), {}
    archives = [file for file in sorted(path.rglob("*")) if file.is_file() and is_archive(file) and not file.name.startswith(".")]
    names = [file.relative_to(path).as_posix() for file in archives]
    packed = set(names)
    loose = [file for file in listed(Folder(path)) if file.place not in packed]
    return loose, {name: listed(open_archive(file), f"{name}/") for name, file in zip(names, archives, strict=True)}


def listed(archive: Archive, prefix: str = "") -> list[File]:
    """The files of an archive, without those that office programs write beside open ones."""
    names = enumerate(archive.names)
    return [File(prefix + name, archive, i) for i, name in names if not PurePosixPath(name).name.startswith(LOCK_FILE)]
