"""Names from data are text in a terminal, never markup, emoji or escape codes."""

import pytest
from rich.table import Table

from unveil.runs.open_data import progress_bar
from unveil.train.log import Screen
from unveil.train.terminal import console, print_to_stderr, printer, show

NAME = "tt [bold][/x] :smile: \x1b[31m\u202e ev"
SHOWN = r"tt [bold][/x] :smile: \x1b[31m\u202e ev"


@pytest.fixture
def terminal(monkeypatch):
    """Lets rich take standard output and standard error for a wide terminal."""
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    assert console(stderr=True).is_terminal


def test_progress_bars_and_messages_show_names_as_they_are(terminal, capfd):
    screen = Screen(f"pretrain {NAME}", 3)
    screen.start(1)
    screen.write({"step": 2, "loss": 1.0, "samples_per_second": 2.0, "waiting": 0.0, "seconds": 1.0, "peak_share": 0.1})
    screen.say(f"a message about {NAME}")
    screen.close()
    with progress_bar(NAME, True) as progress:
        progress(1, 2)
    printer(True)(f"a line about {NAME}")
    print_to_stderr(f"a plain line about {NAME}")
    err = capfd.readouterr().err
    for before in ("pretrain", "a message about", "reading", "a line about", "a plain line about"):
        assert f"{before} {SHOWN}" in err
    assert "\x1b[31m\u202e" not in err
    assert "loss 1.0000" in err


def test_results_show_names_as_they_are(terminal, capfd):
    table = Table("[b]head[/b]", title="[i]t[/i]")
    table.add_row("[/x] :smile:")
    show(table)
    out = capfd.readouterr().out
    for text in ("[b]head[/b]", "[i]t[/i]", "[/x] :smile:"):
        assert text in out


def test_messages_may_have_lines(capfd):
    printer(True)("two\nlines\tand a tab")
    printer(False)("not on other processes")
    assert capfd.readouterr().err.expandtabs() == "two\nlines\tand a tab\n".expandtabs()
