"""Files are whole or not there."""

import os
import subprocess
import sys

import pytest

from unveil.atomic_files import checksum, fresh_name, move_into_place, share_with_folder, write_text


def fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "text.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    fresh = fresh_name(tmp_path / "file")
    fresh.write_text("x")
    move_into_place(fresh, tmp_path / "file")
    assert events == [str(fresh), "rename", str(tmp_path)]
    assert (tmp_path / "file").read_text() == "x"


def test_names_of_any_bytes_are_written(tmp_path):
    """An image whose name is not valid UTF-8 is listed in skipped.txt like any other."""
    write_text(tmp_path / "skipped.txt", "caf\udce9.png\tgone\n")
    assert (tmp_path / "skipped.txt").read_bytes() == b"caf\xe9.png\tgone\n"


def test_checksum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert checksum(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_permissions_are_those_of_the_folder(tmp_path):
    tmp_path.chmod(0o750)
    (tmp_path / "file").touch(mode=0o600)
    share_with_folder(tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_torch_is_not_imported():
    code = "import sys, unveil.atomic_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
