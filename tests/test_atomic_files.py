"""Files are whole or not there."""

import errno
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from unveil import atomic_files
from unveil.atomic_files import WriteError, checksum, fresh_name, move_into_place, share_with_folder, write_text
from unveil.errors import UnveilError
from unveil.interop.files import write_tensors, write_torch
from unveil.models import weights
from unveil.reports.style import new_figure, save_figure
from unveil.train import checkpoint
from unveil.train.checkpoint import Checkpoints


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


# Full disks. A link to /dev/full in place of the temporary file fails like one, also without root.


@pytest.fixture
def full_disk(monkeypatch):
    """Every temporary file is on a full disk."""

    def fresh(path):
        link = fresh_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(atomic_files, "fresh_name", fresh)
    monkeypatch.setattr(atomic_files, "free_bytes", lambda path: 1234)


def write_with_savez(path):
    with atomic_files.replacing(path, 800) as fresh, fresh.open("wb") as file:
        np.savez(file, x=np.zeros(100))


def write_with_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    with atomic_files.replacing(path, 800) as fresh:
        parquet.write_table(pyarrow.table({"x": np.zeros(100)}), fresh)


def fail_as_safetensors_does(*_, **__):
    """The exception of safetensors 0.8 on a full disk. It renames a file of its own, so a link to /dev/full would not stop it."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_while_safetensors_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "save_file", fail_as_safetensors_does)
    with pytest.raises(WriteError, match=rf"^the disk of {tmp_path} is full: x is not written \(it needs 800 bytes"):
        write_tensors(tmp_path / "x", {"x": torch.zeros(200)})
    assert list(tmp_path.iterdir()) == []


WRITERS = {
    "text": lambda path: write_text(path, "x" * 800),
    "torch.save": lambda path: write_torch(path, {"x": torch.zeros(200)}),
    "npz": write_with_savez,
    "parquet": write_with_parquet,
    "figure": lambda path: save_figure(new_figure(1, 1), path.with_suffix(".png")),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(writer, full_disk, tmp_path):
    path = tmp_path / "deep" / "result"
    with pytest.raises(WriteError, match=rf"^the disk of {path.parent} is full: result(\.png)? is not written") as caught:
        writer(path)
    assert caught.value.is_full
    assert re.search(r"\((it needs \d+ bytes, and )?1\.2 kB are free\)\. Make room", str(caught.value))
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_disk_keeps_the_old_file_and_the_old_checkpoint(full_disk, tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")
    with pytest.raises(WriteError):
        write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(100, {"model": {"x": torch.zeros(9)}}, {})
    monkeypatch.setattr(checkpoint, "save_file", fail_as_safetensors_does)
    monkeypatch.setattr(atomic_files, "free_bytes", lambda path: 1234)
    with pytest.raises(WriteError) as caught:
        checkpoints.save(120, {"model": {"x": torch.zeros(9)}}, {})
    assert str(caught.value) == (
        f"the disk of {tmp_path / 'run'} is full (it needs 36 bytes, and 1.2 kB are free): step 120 is not saved, step 100 is. "
        f"Make room, and the same command resumes"
    )
    assert [each.name for each in checkpoints.folder.iterdir()] == ["step-00000100"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EDQUOT, "your disk quota for {folder} is used up: x is not written. Make room, and run it again"),
        (errno.EROFS, "{folder}/x cannot be written: Read-only file system"),
        (errno.EIO, "{folder}/x cannot be written: Input/output error"),
        (errno.EFBIG, "{folder}/x cannot be written: it would be larger than this file system, or ulimit -f, allows"),
        (errno.EACCES, "{folder}/x cannot be written: Permission denied"),
    ],
)
def test_other_faults_name_the_file(number, sentence, tmp_path):
    def fails():
        raise OSError(number, os.strerror(number))

    with pytest.raises(WriteError) as caught, atomic_files.replacing(tmp_path / "x"):
        fails()
    assert str(caught.value) == sentence.format(folder=tmp_path)


def test_a_limit_on_the_size_of_files_is_told(tmp_path):
    program = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path\nfrom unveil.atomic_files import write_text\nwrite_text(Path(sys.argv[1]), 'x' * 2000)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True)
    told = "x cannot be written: it would be larger than this file system, or ulimit -f, allows"
    assert done.stderr.rstrip().endswith(told)
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_no_failed_writes_pass(tmp_path):
    for error in (UnveilError("text"), RuntimeError("shapes differ"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error), match=f"^{error}$"), atomic_files.replacing(tmp_path / "x"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    kept = [tmp_path / name for name in (".lock", ".config.json-short", "config.json", ".hidden-file")]
    left = [fresh_name(tmp_path / "config.json"), fresh_name(tmp_path / "00000120"), fresh_name(tmp_path / "report.html")]
    for path in [*kept, left[0], left[2]]:
        path.touch()
    left.append(tmp_path / ".tmpA1b2C3")  # of safetensors
    left[3].touch()
    (left[1] / "inner").mkdir(parents=True)
    atomic_files.sweep(tmp_path, "config.json", age=60)
    assert set(tmp_path.iterdir()) == {*kept, *left}
    os.utime(left[0], (0, 0))
    write_text(tmp_path / "config.json", "new")  # one that is an hour old belongs to nobody
    assert set(tmp_path.iterdir()) == {*kept, *left[1:]}
    atomic_files.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)


def test_space_is_looked_at_before(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_files, "free_bytes", lambda path: 3_500_000)
    atomic_files.require_space(tmp_path / "run", 3_000_000, "a model needs")
    with pytest.raises(UnveilError, match=r"has 3\.5 MB free, but a model needs 4\.0 GB: make room, or choose another --out"):
        atomic_files.require_space(tmp_path / "run", 4_000_000_000, "a model needs")
    monkeypatch.undo()
    assert atomic_files.free_bytes(tmp_path / "not" / "there") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
