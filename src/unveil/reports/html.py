"""HTML that is built, not pasted: whatever is not markup already is text, and is escaped."""

import html
from collections.abc import Iterable
from unicodedata import category

VOID = frozenset({"meta", "br", "hr", "img"})


class Markup(str):
    """HTML that is right as it is; any other string is text."""

    __slots__ = ()


def clean(text: object) -> str:
    """Text without what no page can show: control characters, and the bytes of file names that are not Unicode."""
    return "".join("\ufffd" if category(c) in ("Cc", "Cs") and c != "\n" else c for c in str(text))


def escape(text: object) -> Markup:
    """Text as HTML."""
    return text if isinstance(text, Markup) else Markup(html.escape(clean(text)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element: children that are not markup are escaped, and so are attributes; `class_` is written `class`."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    given = "".join(f' {names[key]}="{html.escape(clean(value))}"' for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Several parts, one after the other."""
    return Markup("".join(escape(part) for part in parts))


def table(
    head: Iterable[object], rows: Iterable[Iterable[object]], *, title: str, titled: bool = True, class_: str = "numbers"
) -> Markup:
    """A table that scrolls inside its own box; the first column names the rows.

    Args:
        head: A name for each column.
        rows: Their cells: text, or a whole `td`.
        title: What the table shows; it stands above the box, so that it does not scroll with it.
        titled: Whether the title is seen, or only heard.
        class_: For the style sheet.
    """
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    lines = []
    for first, *rest in rows:
        cells = (cell if isinstance(cell, Markup) and cell.startswith("<td") else element("td", cell) for cell in rest)
        lines.append(element("tr", element("th", first, scope="row"), *cells))
    body = element("table", element("thead", top), element("tbody", *lines))
    box = element("div", body, class_=f"table {class_}", tabindex=0, role="region", aria_label=title)
    return join([element("p", title, class_="title"), box]) if titled else box
