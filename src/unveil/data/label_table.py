"""Reads labels.csv: a table with the columns file and label. Every row that cannot be used is counted and named."""

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from unveil.data.archives import Archive
from unveil.errors import UnveilError

TABLE = "labels.csv"
FILE_COLUMNS = ("file", "filename", "file_name", "path", "image")
LABEL_COLUMNS = ("label", "class")
"""Names of the columns, in any case. The first one that a table has is used."""


@dataclass
class TableLabels:
    """Labels of images from tables.

    Attributes:
        values: The label of each image; None if it has none.
        notes: Problems, each in one sentence.
    """

    values: list[str | None]
    notes: list[str] = field(default_factory=list)


def table_labels(archive: Archive, candidates: Sequence[int], roots: Sequence[str], where: str) -> TableLabels | None:
    """Labels from the labels.csv of the first of `roots` that has one; or else from those of all split folders.

    Args:
        archive: The files of DATA.
        candidates: Indices of the images.
        roots: Folders, from the outermost to the innermost that holds all images, then the split folders. Each is "" or ends in a
            slash.
        where: DATA as the user typed it, for error messages.

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
        table = _Table(root + TABLE, where, archive.read_text(tables[root], where), Names(names))
        for i, value in zip(inside, table.values, strict=True):
            found.values[i] = value
        found.notes += table.notes
    return found


def examples(names: Sequence[str]) -> str:
    """Up to three of some names."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


class Names:
    """Finds images by the paths that people write into tables."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._exact = {name: index for index, name in enumerate(names)}

    def find(self, written: str) -> int | None:
        """The index of an image; None if there is none.

        Backslashes are slashes. If the path itself is not found, these are tried, where they are unambiguous: other case, a
        missing suffix, a bare file name for an image in a folder, and the end of an absolute path.
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
        index = self._bases.get(steps[0].lower(), -1) if len(steps) == 1 else -1
        return index if index >= 0 else None

    def _key(self, table: Mapping[str, int], path: str) -> str:
        return path if table is self._exact else path.lower()

    @cached_property
    def _lower(self) -> dict[str, int]:
        return self._unambiguous((name.lower(), index) for index, name in enumerate(self.names))

    @cached_property
    def _stems(self) -> dict[str, int]:
        return self._unambiguous((_stem(name.lower()), index) for index, name in enumerate(self.names))

    @cached_property
    def _bases(self) -> dict[str, int]:
        bases = [(name.lower().rpartition("/")[2], index) for index, name in enumerate(self.names)]
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

    def __init__(self, path: str, where: str, raw: bytes, names: Names) -> None:
        self.path, self.where, self.names = path, where, names
        self.values: list[str | None] = [None] * len(names.names)
        self.notes: list[str] = []
        self._apply(list(self._rows(raw)))

    def _fail(self, what: str) -> UnveilError:
        return UnveilError(f"{self.where}: {self.path} {what}")

    def _rows(self, raw: bytes) -> Iterator[tuple[str, str]]:
        """The file and the label of each row."""
        text = _decoded(raw).lstrip("\r\n")
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
        broken: list[str] = []
        try:
            header = [cell.strip() for cell in next(lines, [])]
            if not header:
                raise self._fail("is empty: expected file,label in its first line")
            lower = [cell.lower() for cell in header]
            columns = [
                next((lower.index(name) for name in expected if name in lower), -1) for expected in (FILE_COLUMNS, LABEL_COLUMNS)
            ]
            if min(columns) < 0:
                raise self._fail(f"begins with {', '.join(header[:5])!r}: expected file,label in its first line")
            unused = [name for i, name in enumerate(header) if i not in columns and name]
            if unused:
                self._note(f"{len(unused):,} column", "is not used", "are not used", unused)
            for row in lines:
                if len(row) > len(header) or 0 < len(row) <= max(columns):
                    broken.append(",".join(row))
                elif row and "\n" in row[columns[0]] + row[columns[1]]:  # a quotation mark that is never closed
                    broken.append(row[columns[0]].split("\n")[0])
                elif row:
                    yield row[columns[0]].strip(), row[columns[1]].strip()
        except csv.Error as error:
            raise self._fail(f"cannot be read as a table: line {lines.line_num}: {error}") from None
        if broken:
            count, wrong = f"{len(broken):,} row", "other cells than the header, or a line feed"
            self._note(count, f"has {wrong}, so it is not used", f"have {wrong}, so they are not used", broken)

    def _apply(self, rows: Sequence[tuple[str, str]]) -> None:
        missing, unlabelled, repeated, disputed = [], [], [], dict[int, list[str]]()
        found: dict[int, str] = {}
        for written, label in rows:
            index = self.names.find(written) if written else None
            if index is None:
                missing.append(written or "(empty)")
            elif not label:
                unlabelled.append(self.names.names[index])
            elif index not in found:
                found[index] = label
            elif found[index] == label and index not in disputed:
                repeated.append(self.names.names[index])
            else:
                disputed.setdefault(index, [found[index]]).append(label)
        if not found:
            if unlabelled:
                raise self._fail("has no label: its rows have an empty label")
            example = f"its first row is {rows[0][0]!r}" if rows else "it has no rows"
            raise UnveilError(f"{self.where}: no file in {self.path} is an image: {example}, an image is {self.names.names[0]!r}")
        for index, label in found.items():
            self.values[index] = None if index in disputed else label
        empty = set(unlabelled)
        absent = [name for i, name in enumerate(self.names.names) if i not in found and name not in empty]
        labels = [f"{self.names.names[i]}: {', '.join(dict.fromkeys(each))}" for i, each in sorted(disputed.items())]
        self._note(f"{len(absent):,} image", "has no row, so it has no label", "have no row, so they have no label", absent)
        self._note(f"{len(unlabelled):,} row", "has an empty label", "have an empty label", unlabelled)
        self._note(f"{len(missing):,} row", "names a file that is no image of the data", "name files that are no images", missing)
        self._note(f"{len(repeated):,} row", "repeats an earlier row", "repeat earlier rows", repeated)
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


def _decoded(raw: bytes) -> str:
    """The text of a table. Excel writes UTF-8 or UTF-16 with a mark; other bytes are kept, since names of files have them too."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    return raw.decode("utf-8-sig", "surrogateescape")


def _delimiter(text: str) -> str:
    """The delimiter of a table: the most frequent of comma, semicolon and tab in its first line."""
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)
