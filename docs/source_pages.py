"""A hook of mkdocs: a link to `../src/unveil/<file>.py` becomes a link to a page with that file's source, made while building."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"\]\(\.\./(src/unveil/[\w/]+\.py)\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each source file that some page links to."""
    root = Path(config.config_file_path).parent
    linked = {path for page in files.documentation_pages() for path in LINK.findall(page.content_string)}
    for path in sorted(linked):
        source = (root / path).read_text(encoding="utf-8")
        content = f"# `{path}`\n\n````python\n{source}````\n"
        files.append(File.generated(config, uri(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points the links at those pages."""
    return LINK.sub(lambda found: f"]({uri(found[1])})", markdown)


def uri(path: str) -> str:
    """Where the page of a source file stands."""
    return "source/" + path.removeprefix("src/unveil/").removesuffix(".py").replace("/", "-") + ".md"
