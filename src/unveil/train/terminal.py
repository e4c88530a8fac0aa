"""Prints messages and results in a terminal. Names of files and classes are shown as they are, never as markup of rich."""

import errno
import sys
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

from unveil.plain_text import printable
from unveil.train.notebook import NotebookBar, in_notebook


class TextConsole(Console):
    """A console that takes square brackets and colons for text. By default rich would take them for styles and emoji."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Ends the command if nobody reads its results, but not because nobody reads its messages: training goes on."""
        if not self.stderr:
            raise BrokenPipeError
        self.quiet = True

    def _write_buffer(self) -> None:
        """Takes a terminal that was closed for a broken pipe. A progress bar writes to it from a thread, and when it is stopped."""
        try:
            super()._write_buffer()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._buffer.clear()
            self.on_broken_pipe()


def console(*, stderr: bool) -> Console:
    """The console for standard output or standard error."""
    return TextConsole(stderr=stderr)


def show(table: RenderableType) -> None:
    """Prints a table or a text of rich to standard output, where results belong."""
    console(stderr=False).print(table)


def printer(is_main: bool) -> Callable[[str], None]:
    """Returns a function that prints messages to standard error on the main process, and does nothing on others."""
    target = console(stderr=True)
    return (lambda text: say(target, text)) if is_main else (lambda text: None)


def say(target: Console, text: str) -> None:
    """Prints a message. One that cannot be written, such as to a full disk or a closed terminal, is no reason to stop."""
    if in_notebook():  # where standard error would be red
        print(printable(text, lines=True), flush=True)
        return
    with suppress(OSError):
        target.print(printable(text, lines=True), soft_wrap=True)


def print_to_stderr(text: str) -> None:
    """Prints a message without rich."""
    with suppress(OSError):
        print(printable(text, lines=True), file=sys.stdout if in_notebook() else sys.stderr, flush=True)


def has_bars(target: Console) -> bool:
    """Whether `new_bar` can draw there: in a terminal, or in a notebook."""
    return target.is_terminal or in_notebook()


def new_bar(target: Console, *columns: ProgressColumn, width: int, transient: bool = False) -> "Progress | NotebookBar":
    """A progress bar with its description, a bar, and further columns. The description is text, not markup.

    In a notebook it shows the number of steps, the news and the time left, whatever the columns.
    """
    if in_notebook():
        return NotebookBar(transient=transient)
    first = TextColumn("{task.description}", markup=False)
    return Progress(first, BarColumn(bar_width=width), *columns, console=target, transient=transient)
