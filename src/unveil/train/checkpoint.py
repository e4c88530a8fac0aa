"""Checkpoints that survive a power cut and cannot contain code.

A checkpoint is a folder with tensors as safetensors files, and a manifest in JSON with their checksums. It is written under a
temporary name, synced to the disk, and then renamed, so under its final name it is always complete. Checksums are verified before
loading. A damaged checkpoint is skipped, and the one before it is used.
"""

import shutil
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil.atomic_files import WriteError, checksum, replacing, share_with_folder, space, sweep, sync
from unveil.errors import UnveilError
from unveil.json_files import json_text, read_json

MANIFEST = "manifest.json"
Tensors = dict[str, Tensor]


class Checkpoints:
    """The checkpoints of a run, in one folder.

    Args:
        folder: The folder. The first `save` creates it.
        keep: The number of checkpoints that `save` keeps.
        warn: Called with a sentence for each damaged checkpoint.
    """

    def __init__(self, folder: Path, keep: int = 3, warn: Callable[[str], None] = print) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, damaged or not, newest first."""
        names = [path.name for path in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted((int(name[5:]) for name in names if name[5:].isdigit()), reverse=True)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, files: Mapping[str, Tensors], facts: Mapping[str, Any]) -> Path:
        """Writes a checkpoint atomically, then removes the oldest ones.

        Args:
            step: The number of steps done.
            files: Tensors by file ("model", "optimizer") and by name.
            facts: Further JSON values for the manifest.
        """
        size = sum(value.numel() * value.element_size() for tensors in files.values() for value in tensors.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        try:
            with replacing(self.path(step), size) as fresh:
                fresh.mkdir()
                write_checkpoint(fresh, step, files, facts)
                if self.path(step).exists():  # a damaged one, which `newest` skipped
                    shutil.rmtree(self.path(step))
        except WriteError as error:
            raise WriteError(self.what_is_safe(step, size, error), error.is_full) from error
        later = [other for other in self.steps() if other > step]  # also damaged and skipped
        for other in later + [other for other in self.steps() if other <= step][self.keep :]:
            shutil.rmtree(self.path(other), ignore_errors=True)
        return self.path(step)

    def what_is_safe(self, step: int, size: int, error: WriteError) -> str:
        """The message for a checkpoint that could not be written."""
        steps = self.steps()
        saved = f"step {step} is not saved, {f'step {steps[0]} is' if steps else 'and no step before it'}"
        if error.is_full:
            cause = f"the disk of {self.folder.parent} is full{space(self.folder, size)}"
            return f"{cause}: {saved}. Make room, and the same command resumes"
        return f"{error}: {saved}"

    def newest(self, parameters: Container[str] = ()) -> int | None:
        """The step of the newest good checkpoint, or None. Reads and verifies the files, and warns about others.

        Args:
            parameters: The names of tensors that have to be finite. Earlier versions saved checkpoints where they are not.
        """
        for step in self.steps():
            fault = self.fault(step)
            if fault is None and not self.manifest(step).get("finite"):
                broken = [name for name, x in self.load(step, "model").items() if name in parameters and not x.isfinite().all()]
                fault = f"{broken[0]} is not finite" if broken else None
            if fault is None:
                return step
            self.warn(f"checkpoint {self.path(step).name} is damaged ({fault}): using the one before it")
        return None

    def fault(self, step: int) -> str | None:
        """The fault of a checkpoint, or None if it is good."""
        folder = self.path(step)
        try:
            manifest = read_json(folder / MANIFEST)
            for name, expected in manifest["files"].items():
                path = folder / name
                if path.stat().st_size != expected["bytes"]:
                    return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
                if checksum(path) != expected["sha256"]:
                    return f"the checksum of {name} does not match"
            return None if manifest["step"] == step else f"its manifest belongs to step {manifest['step']}"
        except UnveilError as error:
            return str(error)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"

    def load(self, step: int, name: str) -> Tensors:
        """The tensors in one file of a checkpoint."""
        tensors: Tensors = load_file(self.path(step) / f"{name}.safetensors")
        return tensors

    def manifest(self, step: int) -> dict[str, Any]:
        return read_json(self.path(step) / MANIFEST)


def write_checkpoint(folder: Path, step: int, files: Mapping[str, Tensors], facts: Mapping[str, Any]) -> None:
    """Writes the files of a checkpoint into an empty folder, and syncs them to the disk."""
    sums = {}
    for name, tensors in files.items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
        share_with_folder(path)
        sync(path)
        sums[path.name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json_text({"step": step, "files": sums, **facts}))
    sync(manifest)
