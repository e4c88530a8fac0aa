"""Reads tables of texts. The columns of texts and of classes are found by their headers and their cells."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from unveil.data.label_table import examples
from unveil.plain_text import count_of
from unveil.text.split_names import split_of_file
from unveil.text.table_rows import parsed

LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "polarity")
"""Headers of a column of classes, in any case. The first one that a table has is used."""
TEXT_NAMES = frozenset(
    "text sentence review title description comment content body tweet message post question document headline summary".split()
)
"""Headers of a column of texts, in any case. If a table has none, the last word of a header counts, as in review_text."""
ID_NAMES = frozenset("id ids idx index guid uuid key number file filename path url".split())
"""Last words of the header of a column that has no texts, unless it has a header of `TEXT_NAMES` as well."""
SPLIT_NAMES = ("split", "set", "subset", "partition", "fold")
"""Headers of a column of splits, in any case, if all of its cells name one."""
TITLE_NAMES = frozenset(("title", "headline", "summary"))
"""Those of `TEXT_NAMES` beside which there are others, so that last words count nevertheless, as in Title and Review Text."""
MAX_HEADER_WORDS = 3
"""Largest number of words in a header of which the last one counts. More words are a text."""
MIN_ROWS = 10
"""Rows without which the cells of a column do not tell whether the first one is a header."""
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


class Columns(NamedTuple):
    """Which columns of a table are used."""

    header: tuple[str, ...]
    """The names of all columns; empty if the table has no header."""
    texts: tuple[int, ...]
    label: int | None
    """The column of classes."""
    unclear: tuple[int, ...] = ()
    """Without a label, the columns that could hold the classes, if these are several."""
    split: int | None = None
    """The column of splits."""

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


class Row(NamedTuple):
    """A row of a table."""

    text: str
    label: str | None
    number: int
    """The number of the row; the header has none."""
    split: str | None = None
    """The split in the column of splits, if there is one."""


@dataclass
class Table:
    """The texts of a table.

    Attributes:
        columns: What was used of it.
        rows: The rows that can be used.
        notes: How it was read, and what of it is not used, each a clause such as "the column id is not used".
    """

    columns: Columns
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def label_source(self) -> str:
        """Where the classes are from, such as "the column label" or "column 3"; "" if there are none."""
        return "" if self.columns.label is None else self.columns.named([self.columns.label])

    @property
    def unclear(self) -> str:
        """Why there are no classes, if several columns could hold them; else ""."""
        found = self.columns.named(self.columns.unclear)
        how = "name one of these columns label" if self.columns.header else "add a first line that names one of these columns label"
        return f"the classes could be in {found}: {how}" if found else ""


def read_table(text: str, suffix: str, where: str, like: Columns | None = None, *, needs_texts: bool = False) -> Table:
    """The texts of a table, and their classes if it has any.

    The class is in the column with a header of `LABEL_NAMES`, or else in the only column whose cells repeat. The text is in the
    columns with a header of `TEXT_NAMES`, or else in those whose cells have several words, or in the one with the longest cells. In
    a .tsv, quotation marks are ordinary characters, as in GLUE, unless its rows make sense only with them.

    Args:
        text: The content of the file.
        suffix: An item of `TABLES`.
        where: The file, for error messages.
        like: The columns of a table of the training set. A table with the same ones is read in the same way.
        needs_texts: Whether a table with a header is not used if it lacks the columns of texts of `like`.

    Raises:
        UnveilError: If the quotation marks of a .csv are wrong, so that it is not known where its rows end.
    """
    rows = parsed(text, suffix, where, TEXT_NAMES)
    common = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    titles = list(itertools.takewhile(lambda row: is_title(row, common), rows))
    rows = rows[len(titles) :]
    if not rows:
        return Table(Columns((), (), None), notes=["it has no rows"])
    rows[0] = padded_header(rows)
    width = len(rows[0]) if is_named(rows[0]) else Counter(map(len, rows)).most_common(1)[0][0]
    once_more = rows[0] if has_both_names(rows[0]) else None  # the header of a second table at the end of the first
    complete = [row for i, row in enumerate(rows) if len(row) == width and (i == 0 or row != once_more)]
    columns = columns_of(complete, like)
    table, has_header = Table(columns), bool(columns.header)
    if has_header:
        above = next(i for i, row in enumerate(rows) if len(row) == width)
        titles, rows = [*titles, *rows[:above]], rows[above:]
    if not columns.texts:
        table.notes.append("it has no column of texts, so it is not used")
        return table
    if needs_texts and like is not None and like.header and has_header and like.texts_in(columns.header) is None:
        table.notes.append(f"it lacks {like.named(like.texts)} of the training set, so it is not used")
        return table
    used = [*columns.texts, *(i for i in (columns.label, columns.split) if i is not None)]
    filled = {i for row in complete[has_header:] for i, cell in enumerate(row) if cell}
    least = 1 + max([*used, *filled])  # empty cells at the end may be missing
    broken, empty, repeated = list[str](), 0, 0
    for number, row in enumerate(rows[has_header:], 1):
        if row == once_more:
            repeated += 1
        elif least <= len(row) <= width:
            joint = " ".join(row[i] for i in columns.texts)
            label = None if columns.label is None else row[columns.label] or None
            table.rows.append(Row(joint, label, number, None if columns.split is None else split_of_file(row[columns.split])))
            empty += not joint.strip()
        else:
            broken.append(f"row {number:,}")
    if not table.rows:
        table.notes.append("it has no rows")
    else:
        table.notes.append(f"took {columns.named(columns.texts)} as text{'' if has_header else ' (it has no header)'}")
    unused = sorted(filled - {*used, *columns.unclear})
    if unused:
        table.notes.append(f"{columns.named(unused)} {'is' if len(unused) == 1 else 'are'} not used")
    if repeated:
        table.notes.append(f"its header is repeated {count_of(repeated, 'time')}, which {'is' if repeated == 1 else 'are'} no text")
    if titles:
        table.notes.append(f"left out {count_of(len(titles), 'row')} above the table")
    if broken:
        hint = "" if suffix == ".tsv" else " (a text with commas or line breaks needs quotation marks)"
        table.notes.append(
            f"left out {count_of(len(broken), 'row')} with more or fewer cells than {width}: {examples(broken)}{hint}"
        )
    if empty:
        table.notes.append(f"{count_of(empty, 'row has', 'rows have')} no text")
    return table


def padded_header(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first row; if it is a header with one cell less than most rows, with an empty one at the end or, as in R, in front."""
    first, width = list(rows[0]), Counter(map(len, rows)).most_common(1)[0][0]
    if len(first) != width - 1 or not is_named(first):
        return first
    if not any(row[-1] for row in rows if len(row) == width):
        return [*first, ""]
    names = [row[0] for row in rows if len(row) == width]
    return ["", *first] if len(set(names)) == len(names) else first


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
    lower = [name.lower() for name in header]
    columns = list(zip(*rows[bool(header) :], strict=True)) or [()] * len(rows[0])
    wordy = [i for i, column in enumerate(columns) if sum(" " in cell for cell in column) > len(column) / 2]
    same = None if like is None else as_in(like, header, columns, wordy)
    if same is not None:
        return same
    label = next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    repeating = [i for i, column in enumerate(columns) if 1 < len(set(filter(None, column))) <= len(column) / 2]
    split = split_column(lower, columns)
    numbers = {i for i, column in enumerate(columns) if any(column) and all(_NUMBER.fullmatch(cell) for cell in column if cell)}
    texts = [i for i, name in enumerate(lower) if i != label and name in TEXT_NAMES]
    texts = [i for i in texts if i not in numbers] or texts  # the column "document" may have ids
    if TITLE_NAMES.issuperset(lower[i] for i in texts):
        more = {i for i, name in enumerate(lower) if i != label and is_text_name(name) and i not in repeating}
        texts = sorted({*texts, *more})
    wordy = [i for i in wordy if i != label]
    texts = texts or [i for i in wordy if i not in repeating] or wordy
    known = {label, split, *numbers, *(i for i, name in enumerate(lower) if not ID_NAMES.isdisjoint(header_words(name)[-1:]))}
    rest = [i for i in range(len(columns)) if i not in known]
    rest = [i for i in rest if i not in repeating] or rest
    texts = texts or sorted(rest, key=lambda i: -sum(map(len, columns[i])))[:1]
    classes = [i for i in repeating if i not in texts and i != split]
    if label is None and len(classes) == 1:
        label = classes[0]
    return Columns(header, tuple(texts), label, tuple(classes) if label is None else (), split)


def split_column(header: Sequence[str], columns: Sequence[Sequence[str]]) -> int | None:
    """The column with a header of `SPLIT_NAMES`, in lower case, if each of its cells names a split; None if there is none."""
    named = [i for i, name in enumerate(header) if name in SPLIT_NAMES]
    return next((i for i in named if columns[i] and None not in map(split_of_file, set(columns[i]))), None)


def as_in(like: Columns, header: tuple[str, ...], columns: Sequence[Sequence[str]], wordy: Sequence[int]) -> Columns | None:
    """The columns of another table, in one with this header and these cells; None if it does not have them."""
    if header and like.header:
        texts = like.texts_in(header)
        if texts is None:
            return None
        label, lower = "" if like.label is None else like.header[like.label].lower(), [name.lower() for name in header]
        return Columns(header, texts, lower.index(label) if label and label in lower else None, (), split_column(lower, columns))
    if header or like.header or max([*like.texts, -1 if like.label is None else like.label]) >= len(columns):
        return None
    if wordy and not any(i in wordy for i in like.texts):
        return None  # the texts of this table are in other columns
    own = [] if like.label is None else columns[like.label]
    return like if len(own) < MIN_ROWS or len(set(own)) < len(own) else like._replace(label=None)


def is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether the first row of a table is a header.

    It is one if it has a name of a column of classes or of texts, and also if it differs from the cells below it: a word above
    numbers, or above classes of which each occurs again. A name does not occur again below it.
    """
    pairs = [(cell, Counter(filter(None, column))) for cell, column in zip(first, columns, strict=False)] or [
        (cell, Counter[str]()) for cell in first
    ]
    if any(is_named([cell]) and cell not in below for cell, below in pairs):
        return True
    if any(_NUMBER.fullmatch(cell) or len(cell.split()) > MAX_HEADER_WORDS for cell in first):
        return False
    if any(is_text_name(cell) and cell not in below for cell, below in pairs) and not any(cell in below for cell, below in pairs):
        return True
    return any(cell and differs(cell, below) for cell, below in pairs)


def is_named(row: Sequence[str]) -> bool:
    """Whether a row has a name of `LABEL_NAMES` or `TEXT_NAMES`."""
    return any(name.lower() in LABEL_NAMES or name.lower() in TEXT_NAMES for name in row)


def has_both_names(row: Sequence[str]) -> bool:
    """Whether a row has a name of `LABEL_NAMES` and one of `TEXT_NAMES`."""
    lower = {name.lower() for name in row}
    return not lower.isdisjoint(LABEL_NAMES) and not lower.isdisjoint(TEXT_NAMES)


def header_words(name: str) -> list[str]:
    """The words of a header in lower case, without numbers."""
    return [word for word in re.split(r"[\W\d_]+", name.lower()) if word]


def is_text_name(name: str) -> bool:
    """Whether the last word of a header says that its column has texts, as in "review_text" or "Sentence 1"."""
    words = header_words(name)
    return 0 < len(words) <= MAX_HEADER_WORDS and words[-1] in TEXT_NAMES and set(words).isdisjoint(LABEL_NAMES)


def differs(cell: str, below: Counter[str]) -> bool:
    """Whether a cell is a word above numbers, or above classes of which each occurs again."""
    if below and all(map(_NUMBER.fullmatch, below)):
        return not _NUMBER.fullmatch(cell)
    repeats = 1 < len(below) <= below.total() / 2 and min(below.values(), default=0) > 1
    return below.total() >= MIN_ROWS and repeats and cell not in below


def joined(names: Sequence[str]) -> str:
    """Names as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
