"""What a notebook shows for runs, plans, probes and comparisons. Text has the colour of the notebook, which is light or dark."""

import os
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from unveil.errors import UnveilError
from unveil.reports.corruption_table import corruption_table
from unveil.reports.curves import draw_curves
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.page import headline_parts, scratch_score
from unveil.reports.style import inline_svg
from unveil.reports.table import ResultTable, html_table, to_html
from unveil.reports.vocabulary import ENCODER_LABELS, percent
from unveil.train.run_folder import Run

T = TypeVar("T")
VARIABLES = (
    "--text:currentColor;--muted:#808a99;--border:#808a9966;--primary:#3d8fd1;--secondary:#d07a2d;--tertiary:#808a99;"
    "--background:transparent;--surface:transparent"
)
"""Colours of figures that can be read on white and on black. A notebook does not say which it is."""
STYLE = """
.unveil p, .unveil pre { margin: .2rem 0 .5rem; max-width: 46rem; } .unveil .title, .unveil .muted { opacity: .7; }
.unveil .table { overflow-x: auto; }
.unveil table { border-collapse: collapse; margin: 0 0 .6rem; font-variant-numeric: tabular-nums; }
.unveil :is(th, td) { text-align: left !important; padding: .2rem 1rem .2rem 0; font-weight: 400; }
.unveil .numbers :is(td, thead th:not(:first-child)) { text-align: right !important; }
.unveil tr > * { border-bottom: 1px solid var(--border); } .unveil .ours tbody tr:first-child > * { font-weight: 600; }
.unveil a { color: var(--primary); }
.unveil .plot { overflow: visible; max-width: 100%; } .unveil .plot text { font-family: inherit !important; }
"""
numbers = count()
"""Numbers for the identifiers of figures, which must differ within a notebook."""


def output(*parts: object) -> str:
    """The HTML of an output."""
    return str(element("div", element("style", Markup(STYLE)), *parts, class_="unveil", style=VARIABLES))


def run_html(run: Run) -> str:
    """A run: its model and data, the conclusion, the results, the loss, and links to the report."""
    try:
        title, sentences, line = headline_parts(run)
        curves = draw_curves(run.log)[:1]
        tables = html_table({**run.results, "scratch": scratch_score(run)})
    except (UnveilError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return output(element("p", element("code", str(run.path)), f": {error}"))
    steps = run.checkpoints().steps()
    saved = f"Step {steps[0]:,} is saved." if steps and not run.results else ""
    figures = [inline_svg(each.figure, f"unveil{next(numbers)}", f"{each.title}. {each.summary}") for each in curves]
    heading = element("p", element("b", title), element("br"), " ".join(filter(None, [sentences, saved])))
    return output(heading, element("p", line, class_="muted"), tables, *figures, links(run.path))


def links(folder: Path) -> Markup:
    """A line with the path of a folder, and a link to its report if there is one."""
    report = folder / "report.html"
    if not report.is_file():
        return element("p", element("code", str(folder)))
    try:
        target = quote(os.fsencode(os.path.relpath(report)))
    except ValueError:  # on another drive of Windows
        target = report.absolute().as_uri()
    return element("p", element("a", "report", href=target, target="_blank"), " in ", element("code", str(folder)))


def tables_html(tables: Iterable[ResultTable], folder: Path | None = None) -> str:
    """Tables, and the folder that they come from."""
    return output(join_markup(to_html(table) for table in tables), *([links(folder)] if folder else []))


class ShownList(list[T]):
    """A list that a notebook shows as tables.

    Args:
        items: The elements.
        tables: Their tables.
        folder: The folder with the report.
    """

    def __init__(self, items: Iterable[T], tables: Sequence[ResultTable], folder: Path) -> None:
        super().__init__(items)
        self.tables, self.folder = list(tables), folder

    def _repr_html_(self) -> str:
        return tables_html(self.tables, self.folder)


class ProbeResults(dict[str, Any]):
    """The content of `results.json` of a probe, which a notebook shows as tables."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        super().__init__(content)
        self.folder = folder

    def _repr_html_(self) -> str:
        corruptions = [corruption_table(self["corruptions"])] if self.get("corruptions") else []
        return tables_html([self.table(), *corruptions], self.folder)

    def table(self) -> ResultTable:
        """The accuracy of the encoder, of the same encoder untrained, and of raw pixels."""
        tested, classes = (self.get("score") or {}).get("count"), len(self.get("classes") or ())
        on = f", tested on {tested:,} images of {classes:,} classes" if isinstance(tested, int) else ""
        title = f"{self.get('kind')} probe on {self.get('trained_on', 0):,} labelled images{on}"
        rows = [[ENCODER_LABELS.get(name, name), percent(value)] for name, value in (self.get("top1") or {}).items()]
        return ResultTable(title, ["features", "top-1 accuracy"], rows, [])


class Verdict(dict[str, Any]):
    """The content of `verdict.json`, which a notebook shows as tables."""

    def __init__(self, content: dict[str, Any], tables: Sequence[ResultTable], folder: Path) -> None:
        super().__init__(content)
        self.tables, self.folder = list(tables), folder

    def _repr_html_(self) -> str:
        return tables_html(self.tables, self.folder)
