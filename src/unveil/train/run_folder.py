"""The run folder: the interface between training and everything that looks at it."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType

from unveil.errors import UnveilError
from unveil.train.checkpoint import Checkpoints, write_whole
from unveil.train.log import Record, read_lines

HARMLESS = frozenset({"log_every", "keep", "device", "parallel", "monitor_times", "accumulate", "save_seconds", "tracker"})
"""Options that may differ on resume: they change how a run is computed or shown, and not what it learns."""

PLAN = "plan.json"
"""What `unveil plan` leaves in the folder of a run that is yet to begin."""


class Run:
    """A run folder.

    Attributes:
        path: The folder.
        facts: What `run.json` says: kind, config, command, versions, hardware, data.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise UnveilError(f"{self.path} is no run folder: it has no run.json")
        try:
            self.facts: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        except ValueError as error:
            raise UnveilError(f"{self.path / 'run.json'} is damaged: {error}") from None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """Every option, by name."""
        config: dict[str, Any] = self.facts["config"]
        return config

    @property
    def log(self) -> list[Record]:
        """The records of `log.jsonl`."""
        return read_lines(self.path / "log.jsonl")

    @property
    def results(self) -> dict[str, Any]:
        """What `results.json` says; empty before the run has ended."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes `results.json`."""
        write_whole(self.path / "results.json", json.dumps(results, indent=1) + "\n")

    def checkpoints(self, keep: int = 3, warn: Callable[[str], None] = print) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints(self.path / "checkpoints", keep, warn)


def open_run(
    path: Path, kind: str, config: Mapping[str, Any], data: Mapping[str, Any], *, write: bool, say: Callable[[str], None]
) -> Run:
    """A new run folder, or the one that is there, where it is of the same run.

    Args:
        path: The folder.
        kind: "pretrain", "finetune", ...
        config: Every option.
        data: What the data is: name, fingerprint, count.
        write: Whether this process makes the folder.
        say: Tells the user.

    Raises:
        UnveilError: When the folder holds something else, or going on would silently change the run; the message is the difference.
    """
    facts = {"kind": kind, "config": json.loads(json.dumps(config)), "data": json.loads(json.dumps(data))}
    begun = any((path / name).exists() for name in ("checkpoints", "results.json"))
    if (path / "run.json").is_file() and begun:
        run = Run(path)
        refuse_changes(run, facts, say)
        return run
    if write:
        ours = (path / "run.json").is_file() and "kind" in Run(path).facts  # a start that was refused: nothing to lose
        harmless = (PLAN, ".run.json-")  # a plan, or what a killed start left behind
        inside = [each.name for each in path.iterdir() if not each.name.startswith(harmless)] if path.is_dir() else []
        if path.exists() and not ours and (inside or not path.is_dir()):
            raise UnveilError(f"{path} exists and is no run folder: choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / "run.json", json.dumps(facts | receipt(), indent=1) + "\n")
        return Run(path)
    run = object.__new__(Run)  # another process is writing it
    run.path, run.facts = path, facts
    return run


def refuse_changes(run: Run, facts: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Shows how the facts differ from those of a run, and refuses where the difference would change it."""
    if run.facts["kind"] != facts["kind"]:
        raise UnveilError(f"{run.path} is a {run.facts['kind']} run, not a {facts['kind']} run: choose another --out")
    lines, harmful = [], False
    for part in ("data", "config"):
        old, new = run.facts[part], facts[part]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                harmful |= part == "data" or key not in HARMLESS
                lines.append(f"  {part} {key}: was {old.get(key)!r}, is {new.get(key)!r}")
    if harmful:
        text = "\n".join(lines)
        raise UnveilError(f"{run.path} is a run with other settings:\n{text}\nGive the old ones to go on, or choose another --out.")
    if lines:
        say("\n".join(["going on with other settings, which do not change the result:", *lines]))


def receipt() -> dict[str, Any]:
    """What made a run: command, commit, time, versions, hardware."""
    packages = {}
    for name in ("unveil", "torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "unknown"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **packages},
        "hardware": {
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpus": gpus,
        },
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def commit(file: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that a file belongs to, and whether it was changed since; None where it belongs to none."""
    git = ["git", "-C", str(file.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], check=True, capture_output=True)
        found = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def show(table: RenderableType) -> None:
    """Shows something that rich can draw; on the standard output, for it is a result."""
    Console().print(table)


def tell(is_main: bool) -> Callable[[str], None]:
    """What tells the user something: only the lead process speaks."""
    console = Console(stderr=True)
    return (lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False)) if is_main else (lambda text: None)
