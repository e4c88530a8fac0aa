"""A progress bar for Jupyter, which changes in place. It needs nothing besides the IPython that a notebook runs in.

The bars of rich would need ipywidgets, and a thread that draws.
"""

import html
import importlib
import sys
import time
from typing import Any

from rich.progress import TaskID

from unveil.plain_text import printable

REDRAW_SECONDS = 0.25
"""Minimum time between two drawings, each of which is a message to the browser."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, of Jupyter or of a service built on it."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(each.__name__ == "ZMQInteractiveShell" for each in type(shell).__mro__)


class Drawing:
    """One line of progress, as HTML and as plain text. Colours and font are those of the notebook, light or dark."""

    def __init__(self, title: str, done: int, total: int, news: str) -> None:
        self.title, self.done, self.total, self.news = title, done, total, news

    def _repr_html_(self) -> str:
        words = [html.escape(word) for word in (self.title, f"{self.done:,}/{self.total:,}", self.news)]
        bar = f'<progress value="{self.done}" max="{self.total}" style="width: 12em; vertical-align: middle"></progress>'
        line = " &nbsp; ".join([words[0], bar, *filter(None, words[1:])])
        return f'<div style="font-variant-numeric: tabular-nums; white-space: nowrap; overflow-x: auto">{line}</div>'

    def __repr__(self) -> str:
        return "  ".join(filter(None, [self.title, f"{self.done:,}/{self.total:,}", self.news]))


class Cleared:
    """Nothing, in place of a bar that has ended."""

    def _repr_html_(self) -> str:
        return ""

    def __repr__(self) -> str:
        return ""


class NotebookBar:
    """A progress bar with one task, and the part of the interface of `rich.progress.Progress` that unveil uses.

    Args:
        transient: Whether to remove the bar when it ends.
    """

    def __init__(self, *, transient: bool = False) -> None:
        self.transient = transient
        self.title, self.news, self.done, self.first, self.total = "", "", 0, 0, 0
        self._handle: Any = None
        self._start = self._drawn = time.monotonic()

    def __enter__(self) -> "NotebookBar":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def add_task(self, description: str, *, total: float | None, completed: int = 0, news: str = "") -> TaskID:
        """Sets the title and the length."""
        self.title, self.total, self.done, self.news = printable(description), int(total or 0), completed, news
        return TaskID(0)

    def start(self) -> None:
        """Draws the bar below what the cell has shown so far."""
        self._start = time.monotonic()
        if self._handle is None and self.total:
            self._draw()

    def update(
        self,
        task: TaskID,
        *,
        completed: int | None = None,
        total: int | None = None,
        news: str | None = None,
        first: int | None = None,
    ) -> None:
        """Changes what is given. `first` is the part that was done before, which took no time."""
        self.first = self.first if first is None else first
        self.total = self.total if total is None else total
        self.done = self.done if completed is None else completed
        self.news = self.news if news is None else news
        if time.monotonic() - self._drawn > REDRAW_SECONDS or self.done >= self.total:
            self._draw()

    def advance(self, task: TaskID, count: float = 1) -> None:
        """Moves the bar by `count`."""
        self.update(task, completed=self.done + int(count))

    def stop(self) -> None:
        """Draws the bar for the last time, or removes it."""
        if self._handle is not None:
            self._handle.update(Cleared() if self.transient else self._drawing())

    def _drawing(self) -> Drawing:
        left = (time.monotonic() - self._start) / max(self.done - self.first, 1) * (self.total - self.done)
        is_known = self.first < self.done < self.total
        return Drawing(self.title, self.done, self.total, self.news + (f"   {left:,.0f} s left" if is_known else ""))

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._handle is None:
            self._handle = importlib.import_module("IPython.display").display(self._drawing(), display_id=True)
        else:
            self._handle.update(self._drawing())
