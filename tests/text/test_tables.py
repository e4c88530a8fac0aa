"""Tables of texts, as spreadsheets, programs and people write them."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unveil.errors import UnveilError
from unveil.text.files import open_texts
from unveil.text.table_rows import delimiter_of
from unveil.text.tables import Columns, read_table

ROWS = [(f"a {word} film", str(i % 2)) for i, word in enumerate("good bad fine poor great awful new old short long".split())]
TEXTS = [text for text, _ in ROWS]
NAMED = ["bad", "good"]


def lines(separator: str = ",", header: str = "text,label") -> str:
    return "".join(separator.join(row) + "\n" for row in [header.split(",") if header else [], *ROWS])


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(lambda cell: cell.strip() == cell)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, st.sampled_from(["good", "bad", "1"])), min_size=2, max_size=9),
    delimiter=st.sampled_from(",;\t|"),
)
def test_what_pandas_writes(rows: list[tuple[str, str]], delimiter: str) -> None:
    """With delimiters, quotation marks and line feeds in the texts; all quoted, since a lone field leaves the delimiter open."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    written = frame.to_csv(sep=delimiter, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    read = pandas.read_csv(io.StringIO(written), sep=delimiter, dtype=str, keep_default_na=False)
    table = read_table(written, ".csv", "a.csv")
    assert [(text, label) for text, label, *_ in table.rows] == list(read.itertuples(index=False, name=None)) == rows
    assert (table.notes, table.label_source) == (["took the column text as text"], "the column label")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["text,label", "Comment,LABEL"])
def test_encodings_and_delimiters(encoding: str, separator: str, header: str, tmp_path: Path) -> None:
    """With the mark of "CSV UTF-8", the first header was taken for a text whose class was its second one."""
    (tmp_path / "a.csv").write_bytes(lines(separator, header).replace("film", "café").encode(encoding))
    splits, notes, _ = open_texts(tmp_path)
    texts = splits["train"]
    assert texts.texts == [text.replace("film", "café") for text in TEXTS]
    assert (texts.classes, texts.labels.tolist()) == (["0", "1"], [0, 1] * 5)
    assert notes[-1] == f"a.csv: took the column {header.split(',')[0]} as text"
    assert ("Windows-1252" in notes[0]) == (encoding == "cp1252")


def test_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_bytes("élan à côté ".encode() + b"\xff.")
    splits, notes, _ = open_texts(tmp_path)
    assert splits["train"].texts == ["élan à côté \ufffd."] * 5
    assert notes[0] == "5 files (0.txt, 1.txt, 2.txt, ...) have bytes that are no UTF-8, which are replaced by \ufffd"
    (tmp_path / "0.txt").write_text("a \ufffd of its own", encoding="utf-8")
    assert "4 files" in open_texts(tmp_path).notes[0]
    (tmp_path / "0.txt").write_bytes("no mark".encode("utf-16-le"))
    with pytest.raises(UnveilError, match=r"0\.txt is no text in UTF-8, but perhaps in UTF-16 without its mark"):
        open_texts(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("source,review,stars\n", "the classes could be in the columns source and stars: name one of these columns label"),
        ("", "the classes could be in columns 1 and 3: add a first line that names one of these columns label"),
    ],
)
def test_columns_that_could_both_be_the_classes(header: str, said: str) -> None:
    """The first one was taken without a word."""
    rows = "".join(f"{'web' if i % 3 else 'mail'},{text},{label}\n" for i, (text, label) in enumerate(ROWS))
    table = read_table(header + rows, ".csv", "a.csv")
    assert (table.label_source, table.unclear) == ("", said)
    assert table.notes == [f"took {'the column review' if header else 'column 2'} as text" + " (it has no header)" * (not header)]
    table = read_table(f"source,review,class\n{rows}", ".csv", "a.csv")
    assert [row[1] for row in table.rows] == [label for _, label in ROWS]
    assert (table.label_source, table.notes[-1]) == ("the column class", "the column source is not used")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("body,stars", True),
        ("utterance,stars", True),  # a word above numbers
        ("Review Text,Star Rating", True),
        ("评论,标签", True),
        ("so good,1", False),
        ("wow,1", False),
    ],
)
def test_headers(header: str, expected: bool) -> None:
    """Those with other names became a text with a class of its own."""
    table = read_table(lines(header=header), ".csv", "a.csv")
    first, second = header.split(",")
    assert [row[:2] for row in table.rows] == ([] if expected else [(first, second)]) + ROWS
    assert table.label_source == (f"the column {second}" if expected else "column 2")
    classes = lines(header=header).replace(",0\n", ",bad\n").replace(",1\n", ",good\n")  # words below words, each of which repeats
    if expected:
        assert [row[1] for row in read_table(classes, ".csv", "a.csv").rows] == NAMED * 5


def test_a_header_is_needed_to_skip_the_first_text() -> None:
    """A first text of one word was taken for one."""
    rows = "a0,Excellent!\n" + "".join(f"a{i},{text}\n" for i, text in enumerate(TEXTS, 1))
    table = read_table(rows, ".csv", "a.csv")
    assert [text for text, *_ in table.rows] == ["Excellent!", *TEXTS]
    assert table.notes == ["took column 2 as text (it has no header)", "column 1 is not used"]


def test_a_header_decides_which_column_is_text() -> None:
    """Texts without spaces lost against the numbers beside them, and names beside them were added."""
    chinese = "id,text,label\n" + "".join(f"{i},这部电影很好看{i},{i % 2}\n" for i in range(12))
    assert [row[0] for row in read_table(chinese, ".csv", "a.csv").rows] == [f"这部电影很好看{i}" for i in range(12)]
    other = chinese.replace("text", "x")  # no column has texts by its name or by spaces: the longest one is taken
    assert read_table(other, ".csv", "a.csv").notes == ["took the column x as text", "the column id is not used"]
    rated = "review,verified,rating\n" + "".join(f"{text},{i % 3 == 0},very {NAMED[i % 2]}\n" for i, text in enumerate(TEXTS))
    assert read_table(rated, ".csv", "a.csv").unclear.startswith("the classes could be in the columns verified and rating")
    table = read_table("user name,comment\n" + "".join(f"Jo Ann,{text}\n" for text in TEXTS), ".csv", "a.csv")
    assert table.columns.texts == (1,)


def test_tables_of_a_test_set_are_read_as_those_of_the_training_set(tmp_path: Path) -> None:
    """Few rows, in which no class occurs twice, had no classes; and other columns were added to the text."""
    (tmp_path / "train.csv").write_text("note,stars\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    (tmp_path / "test.csv").write_text("Stars,author,NOTE\n0,Jo Ann,so bad\n1,Al Bo,so good\n")
    splits, notes, _ = open_texts(tmp_path)
    assert (splits["test"].texts, splits["test"].labels.tolist()) == (["so bad", "so good"], [0, 1])
    assert notes[-1] == "test.csv: the column author is not used"
    like = Columns(("note", "stars"), (0,), 1)
    assert read_table("a,b\nso good,so bad\n", ".csv", "a.csv", like).columns.header == ()
    assert read_table("note,b\nso good,1\n", ".csv", "a.csv", like).columns == (("note", "b"), (0,), None, (), None)


@pytest.mark.parametrize(
    ("header", "row", "texts", "label"),
    [
        ("text,label,label_text", "{text},{label},neg{label}", (0,), 1),
        ("textID,text,selected_text,sentiment", "x{i},{text},{text},{label}", (1,), 3),
        ("tweet_id,tweet_created,tweet,label", "{i},2020-01-0{i},{text},{label}", (2,), 3),
        ("message,message_class", "{text},kind{label}", (0,), 1),
        ("app_id,review_text,review_score", "{i},{text},{label}", (1,), 2),
        ("text,text_length,stars", "{text},{i},{label}", (0,), 2),
        ("label,The text of the review", "{label},{text}", (1,), 0),
        ("text,Sentiment (0 = neg; 1 = pos)", "{text},{label}", (0,), 1),
        ("Title,Review Text,stars", "so good,{text},{label}", (0, 1), 2),
        ("sentence1,sentence2,label", "{text},{text},{label}", (0, 1), 2),
    ],
)
def test_headers_of_texts_and_classes(header: str, row: str, texts: tuple[int, ...], label: int) -> None:
    """Labels in words, ids and dates were part of the text, and columns of classes as well."""
    rows = [row.format(i=i, text=text, label=label_) for i, (text, label_) in enumerate(ROWS)]
    columns = read_table("\n".join([header, *rows]), ".csv", "a.csv").columns
    assert (columns.header, columns.texts, columns.label) == (tuple(header.split(",")), texts, label)


@pytest.mark.parametrize("first", ["1,Great comment", "spam,Text me", "question,where are you?", "rare,a film with many words"])
def test_first_rows_with_words_of_headers(first: str) -> None:
    labels = ["1", "0"] if first[0] == "1" else [first.split(",")[0], "other"]
    rows = [first, *(f"{labels[i % 2]},{text}" for i, text in enumerate(TEXTS))]
    assert len(read_table("\n".join(rows), ".csv", "a.csv").rows) == len(rows)


def test_tables_without_texts_are_not_used(tmp_path: Path) -> None:
    """A test_labels.csv made a test set of numbers, and a y_train.csv one of empty texts."""
    (tmp_path / "train.csv").write_text("id,text,label\n" + "".join(f"{i},{','.join(row)}\n" for i, row in enumerate(ROWS)))
    (tmp_path / "test.csv").write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS)))
    (tmp_path / "test_labels.csv").write_text("id,label\n" + "".join(f"{i},{label}\n" for i, (_, label) in enumerate(ROWS)))
    (tmp_path / "y_train.csv").write_text("label\n" + "".join(f"{label}\n" for _, label in ROWS))
    splits, notes, _ = open_texts(tmp_path)
    assert (splits["train"].texts, splits["test"].texts) == (TEXTS, TEXTS)
    assert "y_train.csv, test_labels.csv: it has no column of texts, so it is not used" in notes


def test_columns_without_a_header_must_fit() -> None:
    like = Columns((), (1,), 0)
    swapped = "".join(f"{text},{label}\n" for text, label in ROWS)
    assert read_table(swapped, ".csv", "a.csv", like).columns == ((), (0,), 1, (), None)
    numbered = "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS))
    assert read_table(numbered, ".csv", "a.csv", like).columns == ((), (1,), None, (), None)  # numbers are no classes
    assert read_table("1,so good\n", ".csv", "a.csv", like).columns == like
    titled = "".join(f"{label},Good,{text}\n" for text, label in ROWS)
    assert read_table(titled, ".csv", "a.csv", Columns((), (1, 2), 0)).columns == ((), (1, 2), 0, (), None)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_of_pandas(quoting: int) -> None:
    """Of texts with line feeds, the second half was read with the label, and the first was left out."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([(text.replace("a ", "a\n"), label) for text, label in ROWS], columns=["text", "label"])
    written = frame.to_csv(sep="\t", index=False, quoting=quoting)
    assert [row[:2] for row in read_table(written, ".tsv", "a.tsv").rows] == list(frame.itertuples(index=False, name=None))
    glue = 'sentence\tlabel\n"a good\t1\nbad film"\t0\n'
    assert [row[:2] for row in read_table(glue, ".tsv", "a.tsv").rows] == [('"a good', "1"), ('bad film"', "0")]


def test_rows_with_one_cell_more_than_the_header() -> None:
    """Names of rows, as R writes them, or a comma at the end: no row was read."""
    for start, end in (("r{i},", ""), ("", ",")):
        rows = [start.format(i=i) + ",".join(row) + end for i, row in enumerate(ROWS)]
        table = read_table("\n".join(["text,label", *rows]), ".csv", "a.csv")
        assert [row[:2] for row in table.rows] == ROWS


def test_what_is_left_out_is_said() -> None:
    """A comma in a text made the rest of it the class."""
    table = read_table(lines() + "good, but long,1\nno label\nthe last one,0\n,1\n", ".csv", "a.csv")
    assert [row[:3] for row in table.rows] == [
        *((*row, i) for i, row in enumerate(ROWS, 1)),
        ("the last one", "0", 13),
        ("", "1", 14),
    ]
    assert table.notes == [
        "took the column text as text",
        "left out 2 rows with more or fewer cells than 2: row 11, row 12 (a text with commas or line breaks needs quotation marks)",
        "1 row has no text",
    ]
    for title in ("Our reviews\n", '"Our reviews",,\n', "# by me, 2020\n", "sep=,\n"):
        table = read_table(title + lines().replace("\n", ",\n"), ".csv", "a.csv")
        assert [row[0] for row in table.rows] == TEXTS
        assert table.notes[1:] == ["left out 1 row above the table"] * ("sep" not in title)
    with pytest.raises(UnveilError, match=r"x: a\.csv cannot be read as a table: line 3: a quotation mark is never closed"):
        read_table('text,label\na b,1\n"c d,0\n', ".csv", "x: a.csv")
    assert read_table('text\tlabel\n"c d\t0\n', ".tsv", "x").rows == [('"c d', "0", 1, None)]
    assert read_table("text,label\n", ".csv", "x").notes == ["it has no rows"]
    assert read_table("", ".csv", "x").notes == ["it has no rows"]


def test_rows_keep_their_numbers() -> None:
    """Rows with empty cells vanished from predictions, and later ones had the number of the row before."""
    table = read_table("id,text\n1,so good\n,\n3,so bad\n\n4,fine film\n", ".csv", "a.csv")
    assert [row[:3] for row in table.rows] == [("so good", None, 1), ("", None, 2), ("so bad", None, 3), ("fine film", None, 4)]


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ('"3","Wall St; bears; claw","back; again"\n"4","a","b"\n', ","),
        ("3;one, two\n4;three\n", ";"),
        ("1,free text; with marks\n0,and; more; of them\n", ","),
        ("one column\nof text\n", ","),
        ("text;label\na, b;1\nc;d;e;0\nf;1\n", ";"),  # a row with other cells
        (f'"{"long, " * 20_000}";"1"\n"short";"0"\n', ";"),
    ],
)
def test_the_delimiter(text: str, delimiter: str) -> None:
    assert delimiter_of(text) == delimiter


def test_a_cell_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the delimiter ended in a traceback."""
    monkeypatch.setattr("unveil.text.table_rows.MAX_CELL", 50)
    with pytest.raises(UnveilError, match=r"a\.csv cannot be read as a table: line 2: field larger than field limit"):
        read_table(f"text,label\n{'long ' * 20},1\n", ".csv", "a.csv")


def test_rows_that_a_line_break_cuts_are_left_out() -> None:
    """The first half of a text was one, with the class of another column; the second half was one of its own."""
    rows = "".join(f"{i},{text},{label},web\n" for i, (text, label) in enumerate(ROWS))
    table = read_table(f"id,text,label,source\n{rows}10,the first half\nthe second half,1,web\n", ".csv", "a.csv")
    assert [row[:2] for row in table.rows] == ROWS
    assert table.notes[-1].startswith("left out 2 rows with more or fewer cells than 4: row 11, row 12")
    short = read_table("text,label,note\n" + "".join(f"{text},{label}\n" for text, label in ROWS) + "so good,1,\n", ".csv", "a")
    assert [row[:2] for row in short.rows] == [*ROWS, ("so good", "1")]  # a column at the end that is empty may be missing


def test_a_table_of_one_column_by_pandas(tmp_path: Path) -> None:
    """Empty cells vanished, and later rows had other numbers; a semicolon, a tab or a bar was a delimiter."""
    pandas = pytest.importorskip("pandas")
    texts = ["so good; so bad", "", "a\tb", "c | d", "e, f", "two\nlines", 'a "quote"', "last"] * 4
    pandas.DataFrame({"text": texts}).to_csv(tmp_path / "a.csv", index=False)
    table = read_table((tmp_path / "a.csv").read_text(), ".csv", "a.csv")
    assert table.rows == [(text, None, number, None) for number, text in enumerate(texts, 1)]
    assert table.notes == ["took the column text as text", "4 rows have no text"]
    assert [row.text for row in read_table("text\nso good, really\nbad | bad\n", ".csv", "a.csv").rows] == [
        "so good, really",
        "bad | bad",
    ]
    named = '"text"\n' + "".join(f'"{i}","{text}"\n' for i, text in enumerate(TEXTS, 1))  # by R
    assert [row.text for row in read_table(named, ".csv", "a.csv").rows] == TEXTS


def test_the_header_of_a_second_table_is_no_text() -> None:
    """Two tables in one had no header: both were texts, with the class "label"."""
    table = read_table(lines() + lines(), ".csv", "a.csv")
    assert [row[:2] for row in table.rows] == [*ROWS, *ROWS]
    assert table.notes == ["took the column text as text", "its header is repeated 1 time, which is no text"]


@pytest.mark.parametrize(
    ("header", "row", "texts"),
    [
        ("document,sentence,label", "{i},{text},{label}", (1,)),
        ("post,body,label", "{i},{text},{label}", (1,)),
        ("filename,label,comments on it", "f{i}.txt,{label},x{i}", (2,)),
    ],
)
def test_columns_of_numbers_and_names_are_no_texts(header: str, row: str, texts: tuple[int, ...]) -> None:
    rows = [row.format(i=i, text=text, label=label) for i, (text, label) in enumerate(ROWS)]
    assert read_table("\n".join([header, *rows]), ".csv", "a.csv").columns.texts == texts
    only = "id,label\n" + "".join(f"{i},{label}\n" for i, (_, label) in enumerate(ROWS))
    assert read_table(only, ".csv", "a.csv").notes == ["it has no column of texts, so it is not used"]


def test_a_mark_beside_a_class_is_no_class() -> None:
    """CoLA marks the sentences of one class by *, so it had two columns of classes, and no header to name."""
    rows = "".join(f"gj04\t{label}\t{'*' if label == '0' else ''}\t{text}\n" for text, label in ROWS)
    columns = read_table(rows, ".tsv", "train.tsv").columns
    assert (columns.texts, columns.label) == ((3,), 1)
    doubtful = "".join(f"{text}\t{label}\t{label}x\n" for text, label in ROWS)
    expected = "the classes could be in columns 2 and 3: add a first line that names one of these columns label"
    assert read_table(doubtful, ".tsv", "train.tsv").unclear == expected
