"""Reads the rows of a .csv or .tsv file as cells: delimiters and quotation marks as spreadsheets, pandas and GLUE write them."""

import contextlib
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from unveil.errors import UnveilError

MAX_CELL = 2**27
"""Largest size of a table cell in characters."""
SNIFFED_ROWS = 20
"""How many rows of a .csv are read to find its delimiter."""
NO_DELIMITER = "\x1f"
"""The delimiter of a table with one column, which no text has."""
_ROW_NAMES = re.compile(r"""(["']?)\d+\1[,;\t|]""")
_DIRECTIVE = re.compile(r'"?sep=(.)"?\r?\n')


def parsed(text: str, suffix: str, where: str, one_column: Collection[str] = ()) -> list[list[str]]:
    """The rows of a table without its blank lines, as cells without white space around them. See `delimiter_of`."""
    directive = _DIRECTIVE.match(text)  # of Excel
    text = text[directive.end() :] if directive else text
    delimiter = directive[1] if directive else "\t" if suffix == ".tsv" else delimiter_of(text, one_column)
    plain = cells_of(text, delimiter, csv.QUOTE_NONE) if suffix == ".tsv" else []
    try:
        quoted = cells_of(text, delimiter, csv.QUOTE_MINIMAL) if suffix != ".tsv" or '"' in text else plain
    except TableError as error:
        if suffix == ".tsv":
            return plain
        raise UnveilError(f"{where} cannot be read as a table: {error}") from None
    if suffix == ".tsv" and (is_ragged(quoted) or not (is_ragged(plain) or len(quoted) == len(plain))):
        return plain
    return quoted


class TableError(ValueError):
    """A table that cannot be read; the message says where."""


def cells_of(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[list[str]]:
    """The cells of each row that is not blank. Raises `TableError` if quotation marks are wrong."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    try:
        with large_cells():
            return [[cell.strip() for cell in row] for row in lines if row]  # [""] is the empty text that pandas writes
    except csv.Error as error:
        reason = "a quotation mark is never closed" if "unexpected end" in str(error) else str(error)
        raise TableError(f"line {lines.line_num:,}: {reason}") from None


def is_ragged(rows: Sequence[Sequence[str]]) -> bool:
    """Whether rows have different numbers of cells."""
    return len(set(map(len, rows))) > 1


def delimiter_of(text: str, one_column: Collection[str] = ()) -> str:
    """The delimiter by which most of the first rows have the same number of cells, and more than one; a comma if there is none.

    Args:
        text: The table.
        one_column: Headers, in lower case. If one of them is the whole first line, the table has one column and no delimiter, but
            for a first column of row names, which R writes without a header.
    """
    found = dict[str, int]()
    first, *rest = re.split(r"[\r\n]+", text, maxsplit=1)
    if first.strip().strip('"').lower() in one_column and not any(map(_ROW_NAMES.match, rest)):
        return NO_DELIMITER
    with large_cells():
        for delimiter in ",;\t|":
            lines, widths = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True), Counter[int]()
            with contextlib.suppress(csv.Error):  # a cell that is too large; `cells_of` refuses it
                widths.update(len(row) for row in itertools.islice(lines, SNIFFED_ROWS) if len(row) > 1)
            found[delimiter] = max(widths.values(), default=0)
    return max(found, key=lambda delimiter: found[delimiter])  # of equals the first


@contextlib.contextmanager
def large_cells() -> Iterator[None]:
    """Lets `csv` read cells as long as whole documents. The limit is global, so it is restored at the end."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
