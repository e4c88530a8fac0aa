"""Reads small XML files that others may have written: without entities, and not deeper than annotations are."""

from typing import Any
from xml.etree import ElementTree

from unveil.errors import UnveilError

DEEPEST = 32


class _Strict(ElementTree.TreeBuilder):
    """Refuses a document type, which may declare entities that expand to gigabytes, and elements that are nested too deeply."""

    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UnveilError("it has a DOCTYPE, which may declare entities; annotations need none")

    def start(self, tag: Any, attrs: Any, /) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnveilError(f"its elements are more than {DEEPEST} deep")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Any:
        self.depth -= 1
        return super().end(tag)


def parse_xml(raw: bytes, source: str) -> ElementTree.Element:
    """The outermost element of an XML file.

    Args:
        raw: Its bytes.
        source: Its name, for messages.

    Raises:
        UnveilError: If it is no XML, has a DOCTYPE, or is nested too deeply.
    """
    parser = ElementTree.XMLParser(target=_Strict())
    try:
        parser.feed(raw)
        found: ElementTree.Element = parser.close()
    except UnveilError as error:
        raise UnveilError(f"{source}: {error}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two for an unknown encoding
        raise UnveilError(f"{source} is damaged: it is not valid XML ({' '.join(str(error).split())[:200]})") from None
    return found
