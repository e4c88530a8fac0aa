"""Output that nobody reads, or that cannot be written, ends a command quietly."""

import os
import signal
import subprocess
import sys

import pytest

from unveil.train.terminal import console, printer, show

PIPE = 128 + signal.SIGPIPE


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which U is unveil, and prints its exit code on standard error."""
    script = f"U='{sys.executable} -m unveil'; {line}; echo \"codes ${{PIPESTATUS[*]}}\" >&2"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "command", ["--help", "--version", "pretrain --help-all", "finetune --help", "study information-density --help-all"]
)
@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_ends_early(command, reader):
    done = shell(f"$U {command} | {reader}")
    *messages, codes = done.stderr.splitlines()
    assert messages == []
    assert codes in ("codes 0 0", f"codes {PIPE} 0")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$U --help >&-", 0, []),
        ("$U pretrain --help >&-", 0, []),
        ("$U pretrain no/data 2>&-", 1, []),
        ("$U pretrain no/data >&- 2>&- <&-", 1, []),
        ("$U pretrain no/data 2>/dev/full", 1, []),
        ("$U --help >/dev/full", 1, ["unveil: standard output, or a file: No space left on device"]),
        ("$U pretrain --help >/dev/full", 1, ["unveil: standard output, or a file: No space left on device"]),
    ],
)
def test_streams_that_are_closed_or_full(line, code, said):
    done = shell(line)
    assert done.stderr.splitlines() == [*said, f"codes {code}"]
    assert done.stdout == ""


def test_a_closed_stream_does_not_become_a_file_of_ours(tmp_path):
    program = (
        "import os, sys\nfrom unveil.__main__ import open_standard_streams\nopen_standard_streams()\n"
        "with open(sys.argv[1], 'w') as file:\n    assert file.fileno() > 2\n    print('to standard output')\n"
    )
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, program, str(tmp_path / "file")], check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_messages_that_nobody_reads_do_not_stop_training_but_results_do(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        monkeypatch.setattr(sys, "stdout", broken)
        say = printer(True)
        for _ in range(3):
            say("a message")
        assert console(stderr=True).file is broken
        with pytest.raises(BrokenPipeError):
            show("a table")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
