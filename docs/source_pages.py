"""A hook of mkdocs: turns a link to `../src/unveil/<file>.py` into a link to a page with the source of that file."""

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
        files.append(File.generated(config, page_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points the links to these pages."""
    return LINK.sub(lambda found: f"]({page_of(found[1])})", markdown)


def page_of(path: str) -> str:
    """The page of a source file."""
    return "source/" + path.removeprefix("src/unveil/").removesuffix(".py").replace("/", "-") + ".md"
