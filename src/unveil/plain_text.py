"""Text for terminals, pages and tables. Names of files and of classes come from data, so they may hold anything. Needs no torch.

A name with escape codes could change the colours or the title of a terminal, one with bidirectional controls could show another
name than it has, and one that is not Unicode cannot be encoded at all.
"""

import re
from unicodedata import category

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them."""
FORMULA = re.compile(r"[=@]|[+-](?!\d*\.?\d+(?:[eE][+-]?\d+)?$)")
"""The start of a cell that a spreadsheet takes for a formula. Numbers with a sign are none."""


def printable(text: object, *, lines: bool = False) -> str:
    r"""Text with an escape such as `\x1b` or `\u202e` in place of each control character and each byte that is not Unicode.

    Args:
        text: Any text, or any value.
        lines: Whether line feeds and tabs stay as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or (lines and char in "\n\t") or not _is_control(char) else _escape(char) for char in text
    )


def _is_control(char: str) -> bool:
    return category(char) in ("Cc", "Cs", "Zl", "Zp") or char in BIDI


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        code -= 0xDC00
    return {0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def shorten(text: object, longest: int = 200) -> str:
    """Printable text on one line, without its middle if it is longer than `longest` characters."""
    text = printable(text)
    kept = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:kept]}...{text[-kept:]}"


def csv_cell(text: object) -> str:
    """Printable text for a cell of a CSV file. An apostrophe keeps spreadsheets from running text as a formula."""
    text = printable(text)
    return f"'{text}" if FORMULA.match(text) else text


def count_of(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 image", "2,000 images"; `plural` by default ends in s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
