"""Reads tables of texts. The columns of texts and of classes are found by their headers and their cells."""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from unveil.data.label_table import examples
from unveil.errors import UnveilError
from unveil.plain_text import count_of

TABLES = (".csv", ".tsv")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "polarity")
"""Headers of a column of classes, in any case. The first one that a table has is used."""
TEXT_NAMES = ("text", "sentence", "review", "title", "description", "comment", "content", "tweet")
"""Headers, in any case, from which it follows that the first row is a header. Which columns are text is told by their cells."""
MAX_CELL = 2**27
"""Largest size of a table cell in characters."""
SNIFFED_CHARACTERS, SNIFFED_LINES = 2**16, 20
"""How much of a .csv is read to find its delimiter."""


@dataclass
class Table:
    """The texts of a table.

    Attributes:
        rows: The text and the class of each row that can be used, and the number of the row; the header has none.
        text_columns: Where the texts are from, such as "the columns title and body".
        label_column: Where the classes are from, such as "the column label" or "column 3"; "" if there are none.
        unclear: Why there are no classes, if several columns could hold them: a clause on "the table".
        notes: What of the table is not used, each a clause such as "the column id is not used".
    """

    rows: list[tuple[str, str | None, int]] = field(default_factory=list)
    text_columns: str = ""
    label_column: str = ""
    unclear: str = ""
    notes: list[str] = field(default_factory=list)


def read_table(text: str, suffix: str, where: str) -> Table:
    """The texts of a table, and their classes if it has any.

    The class is in the column with a header of `LABEL_NAMES`, or else in the only column with single words that repeat. The text
    is in the columns with several words. In a .tsv, quotation marks are ordinary characters, as in GLUE.

    Args:
        text: The content of the file.
        suffix: An item of `TABLES`.
        where: The file, for error messages.

    Raises:
        UnveilError: If the quotation marks of a .csv are wrong, so that it is not known where its rows end.
    """
    rows = parsed(text, suffix, where)
    if not rows:
        return Table()
    width = len(rows[0])
    complete = [row for row in rows if len(row) == width]
    header = complete[0] if has_header(complete) else []
    lower = [name.lower() for name in header]
    columns = list(zip(*complete[bool(header) :], strict=True)) or [()] * width
    wordy = [i for i, column in enumerate(columns) if sum(" " in cell for cell in column) > len(column) / 2]
    named = [lower.index(name) for name in LABEL_NAMES if name in lower]
    repeating = [i for i, column in enumerate(columns) if i not in wordy and 1 < len(set(column)) <= len(column) / 2]
    label = named[0] if named else repeating[0] if len(repeating) == 1 else None
    texts = [i for i in wordy if i != label] or [i for i in range(width) if i != label][:1]
    used = texts if label is None else [*texts, label]
    table = Table(text_columns=columns_named(texts, header), label_column=columns_named(used[len(texts) :], header))
    broken = list[str]()
    for number, row in enumerate(rows[bool(header) :], 1):
        if len(row) > width or len(row) <= max(used, default=0):
            broken.append(f"row {number:,}")
        else:
            table.rows.append((" ".join(row[i] for i in texts), None if label is None else row[label] or None, number))
    if label is None and repeating:
        table.unclear = f"the classes could be in {columns_named(repeating, header)}: name one of these columns label"
    elif unused := [i for i in range(width) if i not in used and any(columns[i])]:
        table.notes.append(f"{columns_named(unused, header)} {'is' if len(unused) == 1 else 'are'} not used")
    if broken:
        hint = "" if suffix == ".tsv" else " (a text with commas needs quotation marks)"
        table.notes.append(f"left out {count_of(len(broken), 'row')} with other cells than the first one: {examples(broken)}{hint}")
    return table


def parsed(text: str, suffix: str, where: str) -> list[list[str]]:
    """The rows of a table that are not empty, as cells without white space around them."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    delimiter = "\t" if suffix == ".tsv" else delimiter_of(text)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    try:
        with large_cells():
            return [[cell.strip() for cell in row] for row in lines if any(map(str.strip, row))]
    except csv.Error as error:
        reason = "a quotation mark is never closed" if "unexpected end" in str(error) else str(error)
        raise UnveilError(f"{where} cannot be read as a table: line {lines.line_num:,}: {reason}") from None


def delimiter_of(text: str) -> str:
    """The first of comma, semicolon and tab that occurs equally often in each of the first lines; a comma if there is none."""
    unquoted = re.sub(r'"[^"]*"', "", text[:SNIFFED_CHARACTERS])
    lines = [line for line in unquoted.splitlines() if line][:SNIFFED_LINES]
    for delimiter in ",;\t":
        counts = {line.count(delimiter) for line in lines}
        if len(counts) == 1 and 0 not in counts:
            return delimiter
    return ","


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is a header.

    It is one if it has a name of `LABEL_NAMES` or `TEXT_NAMES`. It also is if it differs from what is below: none of its cells has
    several words, as texts have, and none occurs again in its column, as classes do.
    """
    first, columns = rows[0], list(zip(*rows[1:], strict=True))
    if any(name.lower() in (*LABEL_NAMES, *TEXT_NAMES) for name in first):
        return True
    has_texts = any(sum(" " in cell for cell in column) > len(column) / 2 for column in columns)
    differs = all(cell and " " not in cell and cell not in column for cell, column in zip(first, columns, strict=False))
    return len(first) > 1 and has_texts and differs


def columns_named(indices: Sequence[int], header: Sequence[str]) -> str:
    """Columns as in "the columns title and text" or, without a header, "columns 2 and 3"; "" if there are none."""
    if not indices:
        return ""
    several = "s" * (len(indices) > 1)
    if not header:
        return f"column{several} {joined([str(i + 1) for i in indices])}"
    return f"the column{several} {joined([header[i] or f'number {i + 1}' for i in indices])}"


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
