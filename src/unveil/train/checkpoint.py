"""Checkpoints that survive a power cut, and can hold nothing but numbers.

A checkpoint is a folder: tensors as safetensors, and a manifest in JSON with their checksums. It is written under a temporary name,
synced to the disk, and then renamed: under its final name it is either whole or not there. On loading, the checksums are
verified, and a damaged checkpoint is passed over for the one before it.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
Tensors = dict[str, Tensor]


class Checkpoints:
    """The checkpoints of a run, in one folder; the last `keep` stay."""

    def __init__(self, folder: Path, keep: int = 3, warn: Callable[[str], None] = print) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, damaged or not, the newest first."""
        names = [path.name for path in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted((int(name[5:]) for name in names if name[5:].isdigit()), reverse=True)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, files: Mapping[str, Tensors], facts: Mapping[str, Any]) -> Path:
        """Writes a checkpoint whole or not at all, then removes the oldest ones.

        Args:
            step: Steps done.
            files: Tensors by file ("model", "optimizer") and name.
            facts: What else must be known; goes into the manifest as JSON.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        fresh = self.folder / f".{step:08d}-{uuid.uuid4().hex}"
        fresh.mkdir()
        sums = {}
        for name, tensors in files.items():
            path = fresh / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
            share_with_folder(path)
            sync(path)
            sums[path.name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
        manifest = fresh / MANIFEST
        manifest.write_text(json.dumps({"step": step, "files": sums, **facts}, indent=1))
        sync(manifest)
        sync(fresh)
        final = self.path(step)
        if final.exists():  # a damaged one that was passed over
            shutil.rmtree(final)
        os.replace(fresh, final)
        sync(self.folder)
        later = [other for other in self.steps() if other > step]  # damaged ones that were passed over
        for other in later + [other for other in self.steps() if other <= step][self.keep :]:
            shutil.rmtree(self.path(other), ignore_errors=True)
        return final

    def sweep(self) -> None:
        """Removes what a killed process left half-written."""
        for path in self.folder.glob(".*-*"):
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> int | None:
        """The step of the newest checkpoint that is whole; says which ones are not."""
        for step in self.steps():
            fault = self.fault(step)
            if fault is None:
                return step
            self.warn(f"checkpoint {self.path(step).name} is damaged ({fault}): using the one before it")
        return None

    def fault(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None when it is whole."""
        folder = self.path(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            for name, expected in manifest["files"].items():
                path = folder / name
                if path.stat().st_size != expected["bytes"]:
                    return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
                if checksum(path) != expected["sha256"]:
                    return f"the checksum of {name} does not match"
            return None if manifest["step"] == step else f"its manifest is of step {manifest['step']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"

    def load(self, step: int, name: str) -> Tensors:
        """The tensors of one file of a checkpoint."""
        tensors: Tensors = load_file(self.path(step) / f"{name}.safetensors")
        return tensors

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint."""
        facts: dict[str, Any] = json.loads((self.path(step) / MANIFEST).read_text())
        return facts


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share_with_folder(path: Path) -> None:
    """Lets those read a file who may read its folder: safetensors writes for the owner alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file in one move: a reader sees the old one or the new one."""
    fresh = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    fresh.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be any bytes
    sync(fresh)
    os.replace(fresh, path)
    sync(path.parent)
