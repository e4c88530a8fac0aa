"""Labels other than one class per image: any number of labels, or a number. From label files, arrays, and the classes of DATA.

    file,labels                 file,cat,dog                 file,count
    1.jpg,cat|dog               1.jpg,1,1                    1.jpg,13
    2.jpg,|                     2.jpg,0,0                    2.jpg,2.5
    3.jpg,                      3.jpg,,1                     3.jpg,

`|` separates labels, and alone it says that an image has none of them. Where a cell is empty, the label is unknown.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unveil.data.archive import Archive
from unveil.data.label_table import TABLE, Cells, NoColumnError, Reading, table_labels
from unveil.data.labels import SHOWN_CLASSES, class_order, sample_labels
from unveil.data.source import Source, Values
from unveil.errors import UnveilError
from unveil.plain_text import count_of

SEPARATOR = "|"
LIST_COLUMNS = ("labels", "label", "classes", "class", "tags")
"""Names of a column with lists of labels, in any case."""
NUMBER_COLUMNS = ("value", "number", "target", "label")
"""Names of the column with the number, in any case, if there are several columns."""
TRUTHS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0, "": math.nan, "-1": math.nan, "-1.0": math.nan}
"""What a cell in the column of a label means."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass
class Written:
    """Labels as they are written.

    Attributes:
        cells: The cells of each image; None if it has no label.
        columns: The names of the columns of a table; empty for labels from elsewhere.
        where: Where the labels are, such as "the folders".
        notes: Problems, each in one sentence.
    """

    cells: list[Cells | None]
    where: str
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Read:
    """Labels as numbers.

    Attributes:
        values: See `Source.values`.
        classes: The names of the labels, or of the number.
        absent: See `Source.absent`.
    """

    values: Values
    classes: list[str]
    absent: float = math.nan


class LabelKind(ABC):
    """A kind of label of an image."""

    expected: ClassVar[str]
    """What DATA without labels lacks, for an error message."""
    reading: ClassVar[Reading]
    """How to read a labels.csv."""

    @abstractmethod
    def json_cell(self, record: Mapping[str, Any]) -> str | None:
        """The cell that the JSON beside an image is worth; None if it has no label."""

    @abstractmethod
    def read(self, written: Written, names: Sequence[str], data: str) -> Read:
        """Converts cells to numbers.

        Args:
            written: The cells.
            names: The names of the images.
            data: DATA as the user typed it.

        Raises:
            UnveilError: If a cell is something else, with the first such cell.
        """

    @abstractmethod
    def read_array(self, labels: NDArray[Any]) -> Read:
        """Converts an array with the labels of each image. Raises `UnveilError` if it is something else."""

    @abstractmethod
    def sentence(self, where: str, source: Source) -> str:
        """What was taken as labels, for the user."""


class MultiLabel(LabelKind):
    """Any number of labels per image."""

    expected = "a labels.csv with the columns file,labels (cat|dog), or with a column of 0 and 1 for each label"

    @staticmethod
    def columns(header: Sequence[str], file: int) -> list[int]:
        """The column with lists of labels or, if there is none, all columns with a name, which are labels of 0 and 1."""
        lower = [name.lower() for name in header]
        if file >= 0:
            lists = [lower.index(name) for name in LIST_COLUMNS if name in lower]
            found = lists[:1] or [column for column, name in enumerate(header) if name and column != file]
            if found:
                return found
        raise NoColumnError(
            f"begins with {', '.join(header[:5])!r}: expected file,labels, or file and a column of 0 and 1 for each label"
        )

    reading = Reading(columns, joins=True)

    def json_cell(self, record: Mapping[str, Any]) -> str | None:
        found = next((record[key] for key in LIST_COLUMNS if key in record), None)
        if isinstance(found, list):
            return SEPARATOR.join(map(str, found)) or SEPARATOR
        return str(found) or None if isinstance(found, int | str) and not isinstance(found, bool) else None

    def read(self, written: Written, names: Sequence[str], data: str) -> Read:
        columns = written.columns
        if not columns or columns[0].lower() in LIST_COLUMNS:
            return self.read_lists(written)
        refuse_unclear_names(columns, f"{data}: the columns of {TABLE}")
        values = np.full((len(names), len(columns)), math.nan, np.float32)
        for row, cells in enumerate(written.cells):
            for column, cell in enumerate(cells or ()):
                truth = TRUTHS.get(cell.lower())
                if truth is None:
                    raise UnveilError(
                        f"{data}: {names[row]} has {cell!r} in the column {columns[column]} of {TABLE}: expected 0, 1, or an empty "
                        f"cell if it is unknown. Lists such as cat|dog belong into a column labels; remove other columns"
                    )
                values[row, column] = truth
        return Read(values, list(columns))

    @staticmethod
    def read_lists(written: Written) -> Read:
        """Lists of labels, each of which has all labels of its image."""
        lists = [None if cells is None else labels_of(cells[0]) for cells in written.cells]
        classes = class_order(name for own in lists for name in own or ())
        number = {name: index for index, name in enumerate(classes)}
        values = np.zeros((len(lists), len(classes)), np.float32)
        for row, own in enumerate(lists):
            if own is None:
                values[row] = math.nan
            else:
                values[row, [number[name] for name in own]] = 1
        if not any(len(own) > 1 for own in lists if own):
            written.notes.append(f"no image has several labels: they are separated by {SEPARATOR}, as in cat{SEPARATOR}dog")
        return Read(values, classes, absent=0.0)

    def read_array(self, labels: NDArray[Any]) -> Read:
        if labels.ndim != 2 or not labels.shape[1] or labels.dtype.kind not in "biuf":
            raise UnveilError(
                f"labels of shape {labels.shape} and type {labels.dtype} are not lists of labels: expected (N, K), with "
                f"1 where an image has a label, 0 where it has not, and -1 or NaN where it is unknown"
            )
        values = labels.astype(np.float32)
        values[values == -1] = math.nan
        wrong = np.argwhere(~np.isin(values, (0, 1)) & ~np.isnan(values))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise UnveilError(
                f"the label {column} of image {row} is {labels[row, column]}: expected 0, 1, or -1 or NaN if it is unknown"
            )
        return Read(values, [str(column) for column in range(values.shape[1])])

    def sentence(self, where: str, source: Source) -> str:
        values, classes = source.values, source.classes
        assert values is not None
        counts = np.nansum(values, axis=0).astype(int).tolist()
        each = np.nansum(values[source.has_label], axis=1).astype(int)
        shown = ", ".join(f"{name}: {count:,}" for name, count in list(zip(classes, counts, strict=True))[:SHOWN_CLASSES])
        more = f", ... ({len(classes):,} labels)" if len(classes) > SHOWN_CLASSES else ""
        none = f", and {count_of(int((each == 0).sum()), 'image')} without any" if (each == 0).any() else ""
        return f"took {where} as labels, {each.mean():.3g} per image on average: {shown}{more}{none}"


class Number(LabelKind):
    """A number per image."""

    expected = "a labels.csv with the columns file,value, where value is a number"

    @staticmethod
    def columns(header: Sequence[str], file: int) -> list[int]:
        """The only column beside the file or, if there are several, the one that is named as in `NUMBER_COLUMNS`."""
        others = [column for column, name in enumerate(header) if name and column != file]
        if file >= 0 and len(others) == 1:
            return others
        lower = [name.lower() for name in header]
        named = [lower.index(name) for name in NUMBER_COLUMNS if name in lower]
        if file >= 0 and named:
            return named[:1]
        if file >= 0 and others:
            names = ", ".join(header[column] for column in others[:5]) + ", ..." * (len(others) > 5)
            raise NoColumnError(f"has several columns that may be the number ({names}): rename the one to predict to value")
        raise NoColumnError(f"begins with {', '.join(header[:5])!r}: expected file,value in its first line")

    reading = Reading(columns)

    def json_cell(self, record: Mapping[str, Any]) -> str | None:
        found = next((record[key] for key in NUMBER_COLUMNS if key in record), None)
        return str(found) or None if isinstance(found, int | float | str) and not isinstance(found, bool) else None

    def read(self, written: Written, names: Sequence[str], data: str) -> Read:
        place = f"the column {written.columns[0]} of {TABLE}" if written.columns else written.where
        values = np.full(len(names), math.nan)
        for row, cells in enumerate(written.cells):
            if cells is not None:
                cell = cells[0]
                number = float(cell) if _NUMBER.fullmatch(cell) else math.nan
                if not math.isfinite(number):
                    raise UnveilError(f"{data}: {names[row]} has {cell!r} in {place}, which is not a number{advice(cell)}")
                values[row] = number
        return Read(values, [written.columns[0] if written.columns else "value"])

    def read_array(self, labels: NDArray[Any]) -> Read:
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "biuf":
            raise UnveilError(
                f"labels of shape {labels.shape} and type {labels.dtype} are not numbers: expected (N,), NaN if unknown"
            )
        values = labels.astype(np.float64)
        if np.isinf(values).any():
            row = int(np.isinf(values).argmax())
            raise UnveilError(f"the label of image {row} is {values[row]}: expected a finite number, or NaN if it is unknown")
        return Read(values, ["value"])

    def sentence(self, where: str, source: Source) -> str:
        assert source.values is not None
        known = source.values[source.has_label]
        return f"took {where} as a number: {known.min():.6g} to {known.max():.6g}, mean {known.mean():.4g}"


def labels_of(cell: str) -> list[str]:
    """The distinct labels of a list such as "cat|dog"; none for "|"."""
    return list(dict.fromkeys(name.strip() for name in cell.split(SEPARATOR) if name.strip()))


def advice(cell: str) -> str:
    """What to do about a cell that should be a number."""
    if cell.lower().lstrip("+-") in ("nan", "na", "n/a", "none", "null", "?", "-", ""):
        return ": leave the cell empty if it is unknown"
    if cell.lower().lstrip("+-") in ("inf", "infinity") or _NUMBER.fullmatch(cell):
        return " that can be learned: leave the cell empty if it is unknown"
    if re.fullmatch(r"[+-]?[\d.,' ]*\d[\d.,' ]*", cell):
        return ": write it with a decimal point and without separators, as in 1234.5"
    if found := re.match(r"[+-]?[\d.,]*\d", cell):
        return f": write the number alone, without a unit, as in {found[0].replace(',', '.')}"
    return ": a regression needs numbers. For classes use --task finetune, and for lists of labels --task multilabel"


def refuse_unclear_names(names: Sequence[str], where: str) -> None:
    """Raises `UnveilError` if two labels have the same name, or one holds the separator of lists."""
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise UnveilError(f"{where} have the name {twice} twice: rename one of them")
    split = next((name for name in names if SEPARATOR in name), None)
    if split is not None:
        raise UnveilError(f"{where} have the name {split!r}, but {SEPARATOR} separates labels: rename it")


def written_values(
    kind: LabelKind, archive: Archive, candidates: Sequence[int], roots: Sequence[str], where: str
) -> Written | None:
    """Labels from `sample.json` or `sample.cls` beside each candidate (WebDataset), or from `labels.csv`; None if there are none.

    For the arguments see `unveil.data.labels.written_labels`.
    """

    def json_cell(raw: bytes) -> str | None:
        try:
            record: Any = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        return kind.json_cell(record) if isinstance(record, dict) else None

    parsers: dict[str, Callable[[bytes], str | None]] = {
        ".cls": lambda raw: raw.decode("utf-8", "replace").strip() or None,
        ".json": json_cell,
    }
    found = sample_labels(archive, candidates, where, parsers)
    if found is not None:
        return Written([None if value is None else (value,) for value in found.values], found.where, notes=found.notes)
    table = table_labels(archive, candidates, roots, where, kind.reading)
    if table is None:
        return None
    shown = ", ".join(table.columns[:SHOWN_CLASSES]) + ", ..." * (len(table.columns) > SHOWN_CLASSES)
    place = f"the column{'s' * (len(table.columns) > 1)} {shown} of {TABLE}"
    return Written(table.cells, place, table.columns, table.notes)


def from_classes(kind: LabelKind, source: Source, where: str) -> Source:
    """A source whose labels are the names of its classes: for packs and named datasets, which have one class per image."""
    if source.labels is None:
        return source
    cells: list[Cells | None] = [None if label < 0 else (source.classes[label],) for label in source.labels.tolist()]
    written = Written(cells, where)
    read = kind.read(written, source.names, source.name)
    found = replace(source, labels=None, values=read.values, classes=read.classes, absent=read.absent)
    notes = (*written.notes, kind.sentence(where, found)) if found.is_labelled else ()
    return replace(found, notes=notes)
