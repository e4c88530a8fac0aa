"""Reads tables of texts. The columns of texts and of classes are found by their headers and their cells."""

import contextlib
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from unveil.data.label_table import examples
from unveil.errors import UnveilError
from unveil.plain_text import count_of

TABLES = (".csv", ".tsv")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "polarity")
"""Headers of a column of classes, in any case. The first one that a table has is used."""
TEXT_NAMES = frozenset(
    "text sentence review title description comment content body tweet message post question document headline summary".split()
)
"""Words, in any case, in the header of a column of texts."""
SEVERAL = 3
"""Largest number of words in a header of `TEXT_NAMES`. More words are a text."""
SURE = 10
"""Rows without which the cells of a column do not tell whether the first one is a header."""
MAX_CELL = 2**27
"""Largest size of a table cell in characters."""
SNIFFED = 20
"""How many rows of a .csv are read to find its delimiter."""
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_DIRECTIVE = re.compile(r'"?sep=(.)"?\r?\n')


class Columns(NamedTuple):
    """Which columns of a table are used."""

    header: tuple[str, ...]
    """The names of all columns; empty if the table has no header."""
    texts: tuple[int, ...]
    label: int | None
    """The column of classes."""
    unclear: tuple[int, ...] = ()
    """Without a label, the columns that could hold the classes, if these are several."""

    def texts_in(self, header: Sequence[str]) -> tuple[int, ...] | None:
        """The columns with the names of `texts` in another header; None if it lacks one of them."""
        lower, texts = [name.lower() for name in header], [self.header[i].lower() for i in self.texts]
        return tuple(map(lower.index, texts)) if set(texts) <= set(lower) else None

    def named(self, indices: Sequence[int]) -> str:
        """Columns as in "the columns title and text" or, without a header, "columns 2 and 3"; "" if there are none."""
        if not indices:
            return ""
        several = "s" * (len(indices) > 1)
        if not self.header:
            return f"column{several} {joined([str(i + 1) for i in indices])}"
        return f"the column{several} {joined([self.header[i] or f'number {i + 1}' for i in indices])}"


@dataclass
class Table:
    """The texts of a table.

    Attributes:
        columns: What was used of it.
        rows: The text and the class of each row that can be used, and the number of the row; the header has none.
        notes: How it was read, and what of it is not used, each a clause such as "the column id is not used".
    """

    columns: Columns
    rows: list[tuple[str, str | None, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def label_source(self) -> str:
        """Where the classes are from, such as "the column label" or "column 3"; "" if there are none."""
        return "" if self.columns.label is None else self.columns.named([self.columns.label])

    @property
    def unclear(self) -> str:
        """Why there are no classes, if several columns could hold them; else ""."""
        found = self.columns.named(self.columns.unclear)
        return f"the classes could be in {found}: name one of these columns label" if found else ""


def read_table(text: str, suffix: str, where: str, like: Columns | None = None) -> Table:
    """The texts of a table, and their classes if it has any.

    The class is in the column with a header of `LABEL_NAMES`, or else in the only column whose cells repeat. The text is in the
    columns with a header of `TEXT_NAMES`, or else in those whose cells have several words, or in the one with the longest cells. In
    a .tsv, quotation marks are ordinary characters, as in GLUE.

    Args:
        text: The content of the file.
        suffix: An item of `TABLES`.
        where: The file, for error messages.
        like: The columns of a table of the training set. A table with the same ones is read in the same way.

    Raises:
        UnveilError: If the quotation marks of a .csv are wrong, so that it is not known where its rows end.
    """
    rows = parsed(text, suffix, where)
    common = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    titles = list(itertools.takewhile(lambda row: is_title(row, common), rows))
    rows = rows[len(titles) :]
    if not rows:
        return Table(Columns((), (), None), notes=["it has no rows"])
    width = len(rows[0])
    columns = columns_of([row for row in rows if len(row) == width], like)
    table, has_header = Table(columns), bool(columns.header)
    used = [*columns.texts, *([] if columns.label is None else [columns.label])]
    broken, empty = list[str](), 0
    for number, row in enumerate(rows[has_header:], 1):
        if len(row) > width or len(row) <= max(used, default=0):
            broken.append(f"row {number:,}")
        else:
            joint = " ".join(row[i] for i in columns.texts)
            table.rows.append((joint, None if columns.label is None else row[columns.label] or None, number))
            empty += not joint.strip()
    if not table.rows:
        table.notes.append("it has no rows")
    else:
        table.notes.append(f"took {columns.named(columns.texts)} as text{'' if has_header else ' (it has no header)'}")
    filled = {i for row in rows if len(row) == width for i, cell in enumerate(row) if cell}
    unused = sorted(filled - {*used, *columns.unclear})
    if unused:
        table.notes.append(f"{columns.named(unused)} {'is' if len(unused) == 1 else 'are'} not used")
    if titles:
        table.notes.append(f"left out {count_of(len(titles), 'row')} above the table")
    if broken:
        hint = "" if suffix == ".tsv" else " (a text with commas needs quotation marks)"
        table.notes.append(f"left out {count_of(len(broken), 'row')} with other cells than the first one: {examples(broken)}{hint}")
    if empty:
        table.notes.append(f"{count_of(empty, 'row has', 'rows have')} no text")
    return table


def parsed(text: str, suffix: str, where: str) -> list[list[str]]:
    """The rows of a table without its blank lines, as cells without white space around them."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    directive = _DIRECTIVE.match(text)  # of Excel
    text = text[directive.end() :] if directive else text
    delimiter = directive[1] if directive else "\t" if suffix == ".tsv" else delimiter_of(text)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    try:
        with large_cells():
            return [[cell.strip() for cell in row] for row in lines if len(row) > 1 or any(map(str.strip, row))]
    except csv.Error as error:
        reason = "a quotation mark is never closed" if "unexpected end" in str(error) else str(error)
        raise UnveilError(f"{where} cannot be read as a table: line {lines.line_num:,}: {reason}") from None


def delimiter_of(text: str) -> str:
    """The delimiter by which most of the first rows have the same number of cells, and more than one; a comma if there is none."""
    found = dict[str, int]()
    with large_cells():
        for delimiter in ",;\t|":
            rows = itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True), SNIFFED)
            widths = Counter(len(row) for row in rows if len(row) > 1)
            found[delimiter] = max(widths.values(), default=0)
    return max(found, key=lambda delimiter: found[delimiter])  # of equals the first


def is_title(row: Sequence[str], width: int) -> bool:
    """Whether a row above a table of this many columns is a title: it has one cell, or is empty but for one of three or more."""
    return (len(row) == 1 < width) or (len(row) > 2 and sum(map(bool, row)) < 2)


def columns_of(rows: Sequence[Sequence[str]], like: Columns | None) -> Columns:
    """The columns of a table to use.

    Args:
        rows: Its rows with the same number of cells, with the header if there is one.
        like: As for `read_table`.
    """
    again = like is not None and bool(like.header) and like.texts_in(rows[0]) is not None
    header = tuple(rows[0]) if again or is_header(rows[0], list(zip(*rows[1:], strict=True))) else ()
    same = None if like is None else as_in(like, header, len(rows[0]))
    if same is not None:
        return same
    lower = [name.lower() for name in header]
    columns = list(zip(*rows[bool(header) :], strict=True)) or [()] * len(rows[0])
    label = next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    repeating = [i for i, column in enumerate(columns) if 1 < len(set(column)) <= len(column) / 2]
    wordy = [i for i, column in enumerate(columns) if i != label and sum(" " in cell for cell in column) > len(column) / 2]
    texts = [i for i, name in enumerate(lower) if i != label and is_text_name(name)]
    texts = texts or [i for i in wordy if i not in repeating] or wordy
    rest = [i for i in range(len(columns)) if i != label and i not in repeating] or [i for i in range(len(columns)) if i != label]
    texts = texts or sorted(rest, key=lambda i: -sum(map(len, columns[i])))[:1]
    classes = [i for i in repeating if i not in texts]
    if label is None and len(classes) == 1:
        label = classes[0]
    return Columns(header, tuple(texts), label, tuple(classes) if label is None else ())


def as_in(like: Columns, header: tuple[str, ...], width: int) -> Columns | None:
    """The columns of another table, in one with this header and this number of columns; None if it does not have them."""
    if not (like.header or header):
        return like if max([*like.texts, -1 if like.label is None else like.label]) < width else None
    texts = like.texts_in(header) if like.header else None
    if texts is None:
        return None
    label, lower = "" if like.label is None else like.header[like.label].lower(), [name.lower() for name in header]
    return Columns(header, texts, lower.index(label) if label in lower else None)


def is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether the first row of a table is a header.

    It is one if it has a name of a column of classes or of texts, and also if it differs from the cells below it: a word above
    numbers, or above classes of which each occurs again.
    """
    if any(len(name.split()) > SEVERAL for name in first):
        return False
    if any(name.lower() in LABEL_NAMES or is_text_name(name) for name in first):
        return True
    return any(cell and differs(cell, column) for cell, column in zip(first, columns, strict=False))


def is_text_name(name: str) -> bool:
    """Whether a header says that its column has texts, such as "text", "review_text" or "Sentence 1"."""
    return not TEXT_NAMES.isdisjoint(re.split(r"[\W\d_]+", name.lower()))


def differs(cell: str, column: Sequence[str]) -> bool:
    """Whether a cell is a word above numbers, or above classes of which each occurs again."""
    below = Counter(filter(None, column))
    if len(below) > 1 and all(map(_NUMBER.fullmatch, below)):
        return not _NUMBER.fullmatch(cell)
    return below.total() >= SURE and 1 < len(below) <= below.total() / 2 and min(below.values()) > 1 and cell not in below


def joined(names: Sequence[str]) -> str:
    """Names as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


@contextlib.contextmanager
def large_cells() -> Iterator[None]:
    """Lets `csv` read cells as long as whole documents. The limit is global, so it is restored at the end."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
