"""Signals end a command with the exit code of a shell and no traceback, and a host program gets its handlers back."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from unveil import cli
from unveil.stop_signals import NUMBERS, Stopped, note_signals, raise_on_signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_and_the_handlers_restored(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(Stopped) as caught, raise_on_signals():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(each) for each in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_and_the_handlers_restored(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with note_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.number == number
        signal.raise_signal(signal.SIGTERM)  # a second one does not count, unless it is Ctrl-C
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_ctrl_c_of_a_terminal_and_of_torchrun_count_as_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with note_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(time, "monotonic", lambda: stop._when + 3.1)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


def test_work_that_can_be_abandoned_is_abandoned():
    with note_signals() as stop:
        with pytest.raises(Stopped), stop.raising():
            signal.raise_signal(signal.SIGTERM)
        with stop.raising(enabled=False):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), stop.raising():
            pytest.fail("the signal had arrived already")
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_while_a_class_is_created_stops():
    """Python 3.11 wraps what `__set_name__` raises in a RuntimeError."""

    class Descriptor:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), raise_on_signals():
        type("Owner", (), {"field": Descriptor()})
    with pytest.raises(RuntimeError, match="another"), raise_on_signals():
        raise RuntimeError("another")


def test_ignored_signals_stay_ignored():
    """As `nohup` and the `&` of a script set them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_on_signals(), note_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_set_no_handlers():
    seen = []

    def work() -> None:
        with raise_on_signals(), note_signals() as stop:
            seen.extend([stop.is_set(), *(signal.getsignal(each) for each in NUMBERS)])

    before = [signal.getsignal(each) for each in NUMBERS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, *before]


class Thing:
    """Something to refer to weakly."""


def test_a_signal_inside_a_callback_is_not_lost(capfd):
    """Python discards what a callback of a weak reference raises."""
    sent = []

    def callback(_: object) -> None:
        sent.append(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    things = [Thing()]
    reference = weakref.ref(things[0], callback)
    hook = sys.unraisablehook

    def work() -> None:
        things.clear()
        assert sent
        time.sleep(5)

    with pytest.raises(Stopped), raise_on_signals():
        work()
    assert reference() is None
    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", NUMBERS)
def test_a_stop_while_options_are_parsed(monkeypatch, capsys, number):
    monkeypatch.setattr(cli, "parse_options", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain"])
    assert caught.value.code == CODES[number]
    assert capsys.readouterr().err == "unveil: stopped\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("pack digits out", "run the same command to resume"),
        ("pretrain digits", "run the same command to resume"),
        ("plan digits", "run the same command to start again"),
    ],
)
def test_a_stop_says_whether_the_command_resumes(monkeypatch, capsys, line, says):
    monkeypatch.setattr(cli, "check_paths", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 143
    assert capsys.readouterr().err == f"unveil: stopped: {says}\n"


def test_a_stop_at_any_moment_of_the_start_has_no_traceback(tmp_path):
    """From the first line of the package on, through the imports of torch and others, to the end."""
    script = "import sys, unveil.__main__ as m\nprint('go', flush=True)\nm.main()"
    command = [sys.executable, "-c", script, "report", str(tmp_path)]
    (tmp_path / "run.json").write_text('{"kind": "pretrain"}')
    codes = []
    for i in range(5):
        number = NUMBERS[i % 3]
        process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(0.05 + 0.5 * i)  # main itself has begun
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said, said
        assert "Exception ignored" not in said, said
        stopped = process.returncode in (CODES[number], -number)
        assert stopped or process.returncode == 0, (process.returncode, said)  # 0: the command had ended before
        codes.append(stopped)
    assert codes[0]
