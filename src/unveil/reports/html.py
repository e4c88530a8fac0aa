"""Builds HTML from elements. Strings are text and are escaped, unless they are `Markup`."""

import html
from collections.abc import Iterable

from unveil.plain_text import printable

VOID_ELEMENTS = frozenset({"meta", "br", "hr", "img"})
"""Elements without an end tag."""


class Markup(str):
    """HTML that is not escaped again. Any other string is text."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Escapes text for HTML."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text, lines=True)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An HTML element. Attributes, and children that are not markup, are escaped; `class_` becomes `class`."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    written = "".join(f' {names[key]}="{html.escape(printable(value, lines=True))}"' for key, value in attributes.items())
    if name in VOID_ELEMENTS:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join_markup(children)}</{name}>")


def join_markup(parts: Iterable[object]) -> Markup:
    """Concatenates parts."""
    return Markup("".join(escape(part) for part in parts))


def prose(sentence: str) -> Markup:
    """A sentence in which what stands between backticks, such as a command, is code."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # a single backtick is only a character
        return join_markup([sentence])
    return join_markup(element("code", part) if i % 2 else part for i, part in enumerate(parts))


def table_element(
    head: Iterable[object], rows: Iterable[Iterable[object]], *, title: str, show_title: bool = True, class_: str = "numbers"
) -> Markup:
    """A table in a box of its own, which can scroll. The first column has the names of the rows.

    Args:
        head: Names of the columns.
        rows: Cells of each row: text, or a whole `td`.
        title: The title, above the box, so that it does not scroll with the table.
        show_title: Whether the title is visible. If not, only screen readers use it.
        class_: A class of the style sheet.
    """
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    lines = []
    for first, *rest in rows:
        cells = (cell if isinstance(cell, Markup) and cell.startswith("<td") else element("td", cell) for cell in rest)
        lines.append(element("tr", element("th", first, scope="row"), *cells))
    body = element("table", element("thead", top), element("tbody", *lines))
    box = element("div", body, class_=f"table {class_}", tabindex=0, role="region", aria_label=title)
    return join_markup([element("p", title, class_="title"), box]) if show_title else box
