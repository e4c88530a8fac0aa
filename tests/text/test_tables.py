"""Tables of texts, as spreadsheets, programs and people write them."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unveil.errors import UnveilError
from unveil.text.files import open_texts
from unveil.text.tables import delimiter_of, read_table

ROWS = [(f"a {word} film", str(i % 2)) for i, word in enumerate("good bad fine poor great awful new old".split())]


def lines(separator: str = ",", header: str = "text,label") -> str:
    return "\n".join([header.replace(",", separator), *(separator.join(row) for row in ROWS)]) + "\n"


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(lambda cell: cell.strip() == cell)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, st.sampled_from(["good", "bad", "1"])), min_size=2, max_size=9), delimiter=st.sampled_from(",;\t")
)
def test_what_pandas_writes(rows: list[tuple[str, str]], delimiter: str) -> None:
    """With delimiters, quotation marks and line feeds in the texts; all quoted, since a lone field leaves the delimiter open."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    written = frame.to_csv(sep=delimiter, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    read = pandas.read_csv(io.StringIO(written), sep=delimiter, dtype=str, keep_default_na=False)
    table = read_table(written, ".csv", "a.csv")
    assert [(text, label) for text, label, _ in table.rows] == list(read.itertuples(index=False, name=None)) == rows
    assert (table.notes, table.label_column) == ([], "the column label")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["text,label", "Comment,LABEL"])
def test_encodings_and_delimiters(encoding: str, separator: str, header: str, tmp_path: Path) -> None:
    """With the mark of "CSV UTF-8", the first header was taken for a text whose class was its second one."""
    (tmp_path / "a.csv").write_bytes(lines(separator, header).replace("film", "café").encode(encoding))
    texts, _, notes = open_texts(tmp_path)
    assert texts.texts == [text.replace("film", "café") for text, _ in ROWS]
    assert (texts.classes, texts.labels.tolist()) == (["0", "1"], [0, 1] * 4)
    assert notes[-1] == f"a.csv: took the column {header.split(',')[0]} as text"
    assert ("Windows-1252" in notes[0]) == (encoding == "cp1252")


def test_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_bytes("élan à côté ".encode() + b"\xff.")
    texts, _, notes = open_texts(tmp_path)
    assert texts.texts == ["élan à côté \ufffd."] * 5
    assert notes == ["5 files (0.txt, 1.txt, 2.txt, ...) have bytes that are no UTF-8, which are replaced by \ufffd"]
    (tmp_path / "0.txt").write_text("a \ufffd of its own", encoding="utf-8")
    assert "4 files" in open_texts(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("source,review,stars\n", "the classes could be in the columns source and stars: name one of these columns label"),
        ("", "the classes could be in columns 1 and 3: name one of these columns label"),
    ],
)
def test_columns_that_could_both_be_the_classes(table: str, said: str, tmp_path: Path) -> None:
    """The first one was taken without a word."""
    (tmp_path / "a.csv").write_text(
        table + "".join(f"{'web' if i % 3 else 'mail'},{','.join(row)}\n" for i, row in enumerate(ROWS))
    )
    texts, _, notes = open_texts(tmp_path)
    assert (texts.labels, texts.unclear) == (None, f"a.csv: {said}")
    assert notes == [f"a.csv: took {'the column review' if table else 'column 2'} as text"]
    (tmp_path / "a.csv").write_text(table.replace("stars", "class") + "".join(f"web,{text},{label}\n" for text, label in ROWS))
    if table:
        texts, _, notes = open_texts(tmp_path)
        assert (texts.classes, texts.label_source) == (["0", "1"], "the column class")
        assert notes[-1] == "a.csv: the column source is not used"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("body,stars", True),  # names that are not known, but unlike what is below them
        ("so good,1", False),
        ("wow,1", False),  # a text of one word, whose class occurs again
    ],
)
def test_headers_with_other_names(header: str, expected: bool) -> None:
    table = read_table(lines(header=header), ".csv", "a.csv")
    assert [row[:2] for row in table.rows] == ([] if expected else [tuple(header.split(","))]) + ROWS
    assert table.label_column == ("the column stars" if expected else "column 2")


def test_rows_with_other_cells_are_left_out_and_said() -> None:
    """A comma in a text made the rest of it the class."""
    table = read_table(lines() + "good, but long,1\nno label\nthe last one,0\n", ".csv", "a.csv")
    assert table.rows == [*((*row, i) for i, row in enumerate(ROWS, 1)), ("the last one", "0", 11)]
    assert table.notes == [
        "left out 2 rows with other cells than the first one: row 9, row 10 (a text with commas needs quotation marks)"
    ]
    with pytest.raises(UnveilError, match=r"x: a\.csv cannot be read as a table: line 3: a quotation mark is never closed"):
        read_table('text,label\na b,1\n"c d,0\n', ".csv", "x: a.csv")
    assert read_table('text\tlabel\n"c d\t0\n', ".tsv", "x").rows == [('"c d', "0", 1)]


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ('"3","Wall St; bears; claw","back; again"\n"4","a","b"\n', ","),
        ("3;one, two\n4;three\n", ";"),
        ("1,free text; with marks\n0,and; more; of them\n", ","),
        ("one column\nof text\n", ","),
    ],
)
def test_the_delimiter(text: str, delimiter: str) -> None:
    assert delimiter_of(text) == delimiter
