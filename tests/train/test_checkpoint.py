"""Checkpoints are whole or not there, whatever is killed or damaged."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from unveil.atomic_files import fresh_name
from unveil.train.checkpoint import Checkpoints


def files(value: float) -> dict[str, dict[str, torch.Tensor]]:
    model = {"weight": torch.full((2, 3), value).T, "half": torch.tensor([value], dtype=torch.bfloat16)}
    return {"model": model, "optimizer": {"weight:step": torch.tensor(value), "weight:exp_avg": torch.full((2, 3), value)}}


def saved(folder: Path, *steps: int, keep: int = 3) -> tuple[Checkpoints, list[str]]:
    warnings: list[str] = []
    checkpoints = Checkpoints(folder, keep, warnings.append)
    for step in steps:
        checkpoints.save(step, files(float(step)), {"total": 99})
    return checkpoints, warnings


def check_whole(checkpoints: Checkpoints, step: int) -> None:
    for name, tensors in files(float(step)).items():
        found = checkpoints.load(step, name)
        assert found.keys() == tensors.keys()
        for key, value in tensors.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value)


def test_save_and_load(tmp_path):
    checkpoints, warnings = saved(tmp_path / "new" / "folder", 5)
    assert checkpoints.newest() == 5
    check_whole(checkpoints, 5)
    assert checkpoints.manifest(5)["total"] == 99
    assert not warnings
    assert Checkpoints(tmp_path / "nothing").newest() is None


def test_nothing_is_pickled(tmp_path):
    checkpoints, _ = saved(tmp_path, 1, 2)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in found} == {"model.safetensors", "optimizer.safetensors", "manifest.json"}
    for path in found:
        head = path.read_bytes()[:64]
        assert head.startswith(b"{") or head[8:9] == b"{"  # JSON, or safetensors' length and JSON header
    assert checkpoints.steps() == [2, 1]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_stay(tmp_path, keep):
    checkpoints, _ = saved(tmp_path, 10, 20, 100, 90_000_000_000, keep=keep)
    assert checkpoints.steps() == [90_000_000_000, 100, 20, 10][:keep]
    assert len(list(tmp_path.iterdir())) == keep


def test_a_kill_before_the_rename_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoints, warnings = saved(tmp_path, 1)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, files(2.0), {})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    fresh_name(tmp_path / "step-00000002").mkdir()  # what SIGKILL leaves
    assert checkpoints.newest() == 1
    check_whole(checkpoints, 1)
    checkpoints.save(3, files(3.0), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]  # and was removed
    assert not warnings


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    synced, renamed = [], []
    fsync, replace = os.fsync, os.replace

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(list(synced)), replace(a, b))[1])
    saved(tmp_path, 1)
    assert {"model.safetensors", "optimizer.safetensors", "manifest.json"} < set(renamed[0])
    assert renamed[0][-1].startswith(".step-00000001-")  # the folder's entries, last
    assert synced[-1] == tmp_path.name  # and the new name


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "model.safetensors", 50),
    "flipped": lambda folder: flip(folder / "optimizer.safetensors"),
    "missing": lambda folder: (folder / "model.safetensors").unlink(),
    "empty": lambda folder: (folder / "optimizer.safetensors").write_bytes(b""),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 40),
    "a strange manifest": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "another's manifest": lambda folder: shutil.copy(folder.parent / "step-00000001" / "manifest.json", folder),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped(tmp_path, damage):
    checkpoints, warnings = saved(tmp_path, 1, 2)
    DAMAGES[damage](checkpoints.path(2))
    assert checkpoints.newest() == 1
    assert len(warnings) == 1
    assert warnings[0].startswith("checkpoint step-00000002 is damaged (")
    assert warnings[0].endswith("): using the one before it")
    check_whole(checkpoints, 1)
    checkpoints.save(2, files(2.0), {})  # it is written again when the run gets there
    assert checkpoints.newest() == 2
    check_whole(checkpoints, 2)
    DAMAGES[damage](checkpoints.path(2))
    DAMAGES["flipped"](checkpoints.path(1))
    assert checkpoints.newest() is None


def test_a_damaged_newer_checkpoint_does_not_displace_a_new_one(tmp_path):
    checkpoints, _ = saved(tmp_path, 50, keep=1)
    flip(checkpoints.path(50) / "model.safetensors")
    checkpoints.save(10, files(10.0), {})
    assert checkpoints.newest() == 10
