"""Reads labels.csv: a column with files, and one or several with labels. Every row that cannot be used is counted and named."""

import codecs
import csv
import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from unveil.data.archives import Archive
from unveil.errors import UnveilError

TABLE = "labels.csv"
FILE_COLUMNS = ("file", "filename", "file_name", "path", "image")
LABEL_COLUMNS = ("label", "class")
"""Names of the columns, in any case. The first one that a table has is used."""


Cells = tuple[str, ...]
"""The cells of an image in the columns with labels; empty ones are ""."""


class NoColumnError(ValueError):
    """A table has no columns with labels of the kind that is needed; the message completes "labels.csv ..."."""


def class_column(header: Sequence[str], file: int) -> list[int]:
    """The column with the class of each image.

    Args:
        header: The names of the columns, as they are written.
        file: The index of the column with the files; -1 if there is none.

    Raises:
        NoColumnError: If there is none.
    """
    lower = [name.lower() for name in header]
    found = next((lower.index(name) for name in LABEL_COLUMNS if name in lower), -1)
    if min(file, found) < 0:
        hint = ". Several labels per image, and numbers, are for finetune --task multilabel or regression" if file >= 0 else ""
        raise NoColumnError(f"begins with {', '.join(header[:5])!r}: expected file,label in its first line{hint}")
    return [found]


@dataclass(frozen=True)
class Reading:
    """How to read a table."""

    columns: Callable[[Sequence[str], int], list[int]] = class_column
    """Chooses the columns with labels, as `class_column` does."""
    joins: bool = False
    """Whether several rows of one image are lists of labels, which are joined. If not, they must be the same."""
    optional: bool = False
    """Whether a table of files may have no such column, for commands that need no labels. It is then told and not used."""


@dataclass
class TableLabels:
    """Labels of images from tables.

    Attributes:
        cells: The cells of each image; None if it has none.
        columns: The names of the columns with labels; empty if a table has none, which is optional.
        notes: Problems, each in one sentence.
    """

    cells: list[Cells | None]
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def table_labels(
    archive: Archive, candidates: Sequence[int], roots: Sequence[str], where: str, reading: Reading = Reading()
) -> TableLabels | None:
    """Labels from the labels.csv of the first of `roots` that has one; or else from those of all split folders.

    Args:
        archive: The files of DATA.
        candidates: Indices of the images.
        roots: Folders, from the outermost to the innermost that holds all images, then the split folders. Each is "" or ends in a
            slash.
        where: DATA as the user typed it, for error messages.
        reading: Which columns have the labels; by default the classes.

    Returns:
        None if there is no labels.csv.

    Raises:
        UnveilError: If a table has other columns, cannot be parsed, or names no image at all.
    """
    tables = {name.removesuffix(TABLE): index for index, name in enumerate(archive.names) if f"/{name}".endswith(f"/{TABLE}")}
    ends = [archive.names[index] for index in (*candidates[:1], *candidates[-1:])]  # names are sorted: what these share, all share
    common = [root for root in roots if all(name.startswith(root) for name in ends)]
    chosen = [root for root in common if root in tables][:1] or [root for root in roots if root in tables]
    if not chosen:
        return None
    found = TableLabels([None] * len(candidates))
    for root in chosen:
        inside = [i for i, index in enumerate(candidates) if archive.names[index].startswith(root)]
        names = [archive.names[candidates[i]].removeprefix(root) for i in inside]
        table = _Table(root + TABLE, where, archive.read_text(tables[root], where), Names(names), reading)
        found.columns = found.columns or table.columns
        if not table.columns:
            found.notes += table.notes
            continue
        if len(table.columns) > 1 and sorted(table.columns) == sorted(found.columns):  # perhaps in another order
            order = [table.columns.index(name) for name in found.columns]
        elif len(table.columns) == len(found.columns) == 1:
            order = [0]
        else:
            wanted, own = (", ".join(columns) for columns in (found.columns, table.columns))
            raise UnveilError(f"{where}: {table.path} has the columns {own}, expected those of another split: {wanted}")
        for i, cells in zip(inside, table.cells, strict=True):
            found.cells[i] = None if cells is None else tuple(cells[column] for column in order)
        found.notes += table.notes
    return found


def examples(names: Sequence[str]) -> str:
    """Up to three of some names."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def folded(name: str) -> str:
    """A name without case, and with its accents and letters in one character each."""
    return unicodedata.normalize("NFC", name).lower()


class Names:
    """Finds images by the paths that people write into tables."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._exact = {name: index for index, name in enumerate(names)}

    def find(self, written: str) -> int | None:
        """The index of an image; None if there is none.

        Backslashes are slashes. If the path itself is not found, these are tried, where they are unambiguous: other case, accents
        as separate characters (as in archives made on a Mac), a missing suffix, a bare file name for an image in a folder, and the
        end of an absolute path.
        """
        path = written.replace("\\", "/")
        while path.startswith("./"):
            path = path[2:]
        if path in self._exact:
            return self._exact[path]
        is_absolute = path.startswith("/") or path[1:3] == ":/"
        steps = [step for step in path.split("/") if step not in ("", ".")]
        starts = range(len(steps)) if is_absolute else range(1)
        for table in (self._exact, self._lower, self._stems):
            for start in starts:
                index = table.get(self._key(table, "/".join(steps[start:])), -1)
                if index >= 0:
                    return index
        index = self._bases.get(folded(steps[0]), -1) if len(steps) == 1 else -1
        return index if index >= 0 else None

    def _key(self, table: Mapping[str, int], path: str) -> str:
        return path if table is self._exact else folded(path)

    @cached_property
    def _lower(self) -> dict[str, int]:
        return self._unambiguous((folded(name), index) for index, name in enumerate(self.names))

    @cached_property
    def _stems(self) -> dict[str, int]:
        return self._unambiguous((_stem(folded(name)), index) for index, name in enumerate(self.names))

    @cached_property
    def _bases(self) -> dict[str, int]:
        bases = [(folded(name).rpartition("/")[2], index) for index, name in enumerate(self.names)]
        stems = self._unambiguous((_stem(base), index) for base, index in bases)
        return stems | self._unambiguous(bases)

    @staticmethod
    def _unambiguous(pairs: "Iterator[tuple[str, int]] | Sequence[tuple[str, int]]") -> dict[str, int]:
        """A dictionary in which a key that occurs several times has the value -1."""
        table: dict[str, int] = {}
        for key, index in pairs:
            table[key] = -1 if key in table else index
        return table


class _Table:
    """One labels.csv, applied to the images below its folder."""

    def __init__(self, path: str, where: str, raw: bytes, names: Names, reading: Reading) -> None:
        self.path, self.where, self.names, self.reading = path, where, names, reading
        self.cells: list[Cells | None] = [None] * len(names.names)
        self.columns: list[str] = []
        self.notes: list[str] = []
        rows = list(self._rows(self._text(raw)))
        if self.columns:
            self._apply(rows)

    def _fail(self, what: str) -> UnveilError:
        return UnveilError(f"{self.where}: {self.path} {what}")

    def _text(self, raw: bytes) -> str:
        """The text of a table: UTF-8, UTF-16 with its mark, or the Windows code page in which Excel saves "CSV".

        Bytes that are no UTF-8 are kept if names of files have such bytes as well.
        """
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16", "replace").lstrip("\r\n")
        text = raw.decode("utf-8-sig", "surrogateescape").lstrip("\r\n")
        if not has_bytes(text) or any(map(has_bytes, self.names.names)):
            return text
        try:
            text = raw.decode("cp1252").lstrip("\r\n")
        except UnicodeDecodeError:
            raise self._fail("is not in UTF-8: save it as CSV UTF-8") from None
        self.notes.append(f"{self.path} is not in UTF-8, so it is read as Windows-1252: if letters are wrong, save it as CSV UTF-8")
        return text

    def _rows(self, text: str) -> Iterator[tuple[str, Cells]]:
        """The file and the labels of each row."""
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
        broken: list[str] = []
        try:
            header = [cell.strip() for cell in next(lines, [])]
            if not header:
                raise self._fail("is empty: expected file,label in its first line")
            lower = [cell.lower() for cell in header]
            file = next((lower.index(name) for name in FILE_COLUMNS if name in lower), -1)
            try:
                labels = self.reading.columns(header, file)
            except NoColumnError as error:
                if self.reading.optional and file >= 0:
                    self.notes.append(f"{self.path} is not used: it has no column label, but {', '.join(header[:5])}")
                    return
                raise self._fail(str(error)) from None
            self.columns = [header[column] for column in labels]
            unused = [name for i, name in enumerate(header) if i not in (file, *labels) and name]
            if unused:
                self._note(f"{len(unused):,} column", "is not used", "are not used", unused)
            for row in lines:
                if len(row) > len(header) or 0 < len(row) <= max(file, *labels):
                    broken.append(",".join(row))
                elif row and any("\n" in row[column] for column in (file, *labels)):  # a quotation mark that is never closed
                    broken.append(row[file].split("\n")[0])
                elif row:
                    yield row[file].strip(), tuple(row[column].strip() for column in labels)
        except csv.Error as error:
            raise self._fail(f"cannot be read as a table: line {lines.line_num}: {error}") from None
        if broken:
            count, wrong = f"{len(broken):,} row", "other cells than the header, or a line feed"
            self._note(count, f"has {wrong}, so it is not used", f"have {wrong}, so they are not used", broken)

    def _apply(self, rows: Sequence[tuple[str, Cells]]) -> None:
        missing, unlabelled, repeated, joined, disputed = [], [], [], [], dict[int, list[Cells]]()
        found: dict[int, Cells] = {}
        for written, cells in rows:
            index = self.names.find(written) if written else None
            if index is None:
                missing.append(written or "(empty)")
            elif not any(cells):
                unlabelled.append(self.names.names[index])
            elif index not in found:
                found[index] = cells
            elif found[index] == cells and index not in disputed:
                repeated.append(self.names.names[index])
            elif self.reading.joins and len(cells) == 1:
                found[index] = (f"{found[index][0]}|{cells[0]}",)
                joined.append(self.names.names[index])
            else:
                disputed.setdefault(index, [found[index]]).append(cells)
        if not found:
            if unlabelled:
                raise self._fail("has no label: its rows have an empty label")
            example = f"its first row is {rows[0][0]!r}" if rows else "it has no rows"
            raise UnveilError(f"{self.where}: no file in {self.path} is an image: {example}, an image is {self.names.names[0]!r}")
        for index, cells in found.items():
            self.cells[index] = None if index in disputed else cells
        empty = set(unlabelled)
        absent = [name for i, name in enumerate(self.names.names) if i not in found and name not in empty]
        labels = [f"{self.names.names[i]}: {', '.join(dict.fromkeys(map(' '.join, each)))}" for i, each in sorted(disputed.items())]
        self._note(f"{len(absent):,} image", "has no row, so it has no label", "have no row, so they have no label", absent)
        self._note(f"{len(unlabelled):,} row", "has an empty label", "have an empty label", unlabelled)
        self._note(f"{len(missing):,} row", "names a file that is no image of the data", "name files that are no images", missing)
        self._note(f"{len(repeated):,} row", "repeats an earlier row", "repeat earlier rows", repeated)
        joins = list(dict.fromkeys(joined))
        self._note(
            f"{len(joins):,} image",
            "has several rows, whose labels are joined",
            "have several rows, whose labels are joined",
            joins,
        )
        self._note(
            f"{len(labels):,} image",
            "has rows with different labels, so it is left without a label",
            "have rows with different labels, so they are left without a label",
            labels,
        )

    def _note(self, count: str, one: str, several: str, found: Sequence[str]) -> None:
        if found:
            text = f"{count} {one}" if len(found) == 1 else f"{count}s {several}"
            self.notes.append(f"{self.path}: {text}: {examples(found)}")


def has_bytes(text: str) -> bool:
    """Whether a text has bytes that are no UTF-8, as `surrogateescape` keeps them."""
    return any("\udc80" <= character <= "\udcff" for character in text)


def _delimiter(text: str) -> str:
    """The delimiter of a table: the most frequent of comma, semicolon and tab in its first line."""
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)
