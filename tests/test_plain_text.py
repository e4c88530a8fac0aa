"""Text from files reaches terminals, pages and tables without its control characters."""

import csv
import unicodedata

import pytest

from unveil.plain_text import BIDI, count_of, csv_cell, printable, shorten

DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of the characters that embed or override a direction."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shirt 7.png", "shirt 7.png"),
        ("Größe/シャツ/👩‍🚀.png", "Größe/シャツ/👩‍🚀.png"),  # the astronaut has a joiner
        ("a\u3000b\u00a0c", "a\u3000b\u00a0c"),
        ("\x1b[31mred\x1b]0;pwned\x07.png", r"\x1b[31mred\x1b]0;pwned\x07.png"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x9b2J", r"\x9b2J"),  # the one-byte form of ESC [
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("a\u2028b", r"a\u2028b"),
        (b"caf\xe9.png".decode(errors="surrogateescape"), r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
        (7, "7"),
    ],
)
def test_control_characters_become_escapes(text, expected):
    assert printable(text) == expected


def test_everything_printable_can_be_encoded_and_controls_nothing():
    every = "".join(map(chr, range(0x11000)))
    shown = printable(every)
    shown.encode()
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in BIDI]
    assert [char for char in printable(every, lines=True) if unicodedata.category(char) == "Cc"] == ["\t", "\n"]
    assert {chr(code) for code in range(0x11000) if unicodedata.bidirectional(chr(code)) in DIRECTIONS} <= BIDI


def test_long_names_lose_their_middle():
    name = "a" * 4000 + "\x1b.png"
    assert len(shorten(name)) <= 200
    assert shorten(name).startswith("aaa")
    assert shorten(name).endswith(r"...aaaaaa\x1b.png"[-12:])
    assert shorten("a" * 200) == "a" * 200
    assert shorten("x" * 11, 10) == "xxx...xxx"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"),
        ("+x", "'+x"),
        ("-1", "-1"),  # a class label
        ("+1.5e-3", "+1.5e-3"),
        ("-.5", "-.5"),
        ("\t=1", r"\t=1"),  # not a formula: the tab is no tab any more
        ("dress/=1.png", "dress/=1.png"),
        ("", ""),
    ],
)
def test_cells_are_no_formulas(text, expected, tmp_path):
    assert csv_cell(text) == expected
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow([csv_cell(text), "end"])
    assert list(csv.reader((tmp_path / "x.csv").open(encoding="utf-8", newline=""))) == [[expected, "end"]]


def test_counts():
    assert [count_of(n, "step") for n in (0, 1, 2, 1234)] == ["0 steps", "1 step", "2 steps", "1,234 steps"]
    assert [count_of(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]
