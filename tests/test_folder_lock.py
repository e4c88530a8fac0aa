"""One writer per folder, and no lock that outlives its process."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unveil import folder_lock
from unveil.errors import UnveilError
from unveil.folder_lock import LOCK, locked

HOLD = "import sys, pathlib; from unveil.folder_lock import locked\nwith locked(pathlib.Path(sys.argv[1]), 'training in'):\n"
HOLD += "    print('held', flush=True)\n    sys.stdin.read()"


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_told_who_the_first_one_is(tmp_path):
    folder = tmp_path / "a" / "r"
    first = holder(folder)
    owner = rf"\(pid {first.pid} on {socket.gethostname()}\)"
    wanted = rf"another process {owner} is training in {folder} since \d{{4}}-\d\d-\d\d .*: wait for it, or stop it first"
    for _ in range(2):
        with pytest.raises(UnveilError, match=wanted), locked(folder, "training in"):
            pass
    first.communicate()
    assert not list(folder.iterdir())
    with locked(folder, "training in"):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not list(folder.iterdir())


def test_a_killed_process_leaves_no_lock(tmp_path):
    first = holder(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path, "training in"), pytest.raises(UnveilError, match=rf"pid {os.getpid()} "), locked(tmp_path, "b"):
        pass


def test_an_exception_releases_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, "training in"):
        raise KeyboardInterrupt
    with locked(tmp_path, "training in"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[" * 5000, '{"pid": "x"}', "3"])
def test_an_odd_lock_file_changes_the_message_alone(tmp_path, text):
    with locked(tmp_path, "training in"):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(UnveilError, match=rf"another process is writing into {tmp_path}: wait"), locked(tmp_path, "b"):
            pass
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path, "training in"):
        pass


def test_there_is_one_owner_at_a_time(tmp_path):
    """Threads that lock and release as fast as they can: removing the file on release does not let two of them in."""
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        left = 50
        while left:  # however the threads are scheduled, each one gets in that often
            try:
                with locked(tmp_path, "training in"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    inside[0] -= 1
                    left -= 1
            except UnveilError:
                time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert entered == [200]


def test_the_file_that_is_locked_is_the_one_in_the_folder(tmp_path, monkeypatch):
    """The owner removes its file between the moment another process opens it and the moment that one locks it."""
    flock, removed = fcntl.flock, []

    def remove_first(handle: int, how: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        flock(handle, how)

    monkeypatch.setattr(folder_lock.fcntl, "flock", remove_first)
    with locked(tmp_path, "training in"):
        assert removed
        with pytest.raises(UnveilError), locked(tmp_path, "b"):
            pass


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def refuse(handle: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with locked(tmp_path, "training in"), locked(tmp_path, "training in"):
        pass
