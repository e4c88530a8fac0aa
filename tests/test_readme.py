"""The README stays short, and its tree names every folder of the package."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.splitlines()) < 120


def test_the_tree_has_every_folder_and_nothing_else():
    tree = README.split("src/unveil/\n")[1].split("```")[0]
    named = dict(re.findall(r"^  (\w+/|\w+\.py) +(.+)$", tree, flags=re.MULTILINE))
    package = ROOT / "src" / "unveil"
    folders = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert {name for name in named if name.endswith("/")} == folders
    assert all((package / name).exists() for name in named)


def test_its_links_exist():
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
