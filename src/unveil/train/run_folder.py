"""The run folder: the interface between training and everything that reads its results."""

import copy
import importlib
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
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from unveil.atomic_files import sweep, write_text
from unveil.errors import UnveilError
from unveil.folder_lock import LOCK
from unveil.json_files import json_text, read_json
from unveil.train.checkpoint import Checkpoints
from unveil.train.data_changes import data_changes
from unveil.train.log import Record, read_log
from unveil.train.migration import RUN_FORMAT, migrate_config, migrate_record, migrate_results
from unveil.train.run_schema import check_results, check_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

HARMLESS = frozenset(
    {
        "log_every",
        "keep_checkpoints",
        "compile_mode",
        "device",
        "parallel",
        "num_evals",
        "accum_steps",
        "save_seconds",
        "tracker",
        "max_skipped_steps",
        "max_unreadable",
    }
)
"""Options that may change on resume. They affect how a run is computed or shown, but not its result."""

PATH_OPTIONS = ("from", "init", "resume_from", "teacher", "visual_tokenizer")
"""Options whose value is the path of a run, or of a model."""

EXTENDABLE = ("pretrain", "finetune")
"""The kinds of runs that `unveil.train.extend` makes longer."""

LARGEST_RESULTS = 2**31
"""Maximum number of bytes of `results.json`. The confusion matrix of thousands of classes is large."""
PLAN = "plan.json"
"""The file that `unveil plan` writes into the folder of a run that has not started."""


class ChangedSettingsError(UnveilError):
    """A run folder holds a run with other settings than those that are asked for.

    Args:
        changes: What differs.
        advice: What to do.
    """

    def __init__(self, changes: str, advice: str) -> None:
        super().__init__(f"{changes}{advice}")
        self.changes = changes


class Run(os.PathLike[str]):
    """A run folder. Folders of earlier versions are converted to the names of this version when they are read.

    It can be given wherever the path of a run is expected.

    Args:
        path: The folder.
        facts: The content of `run.json`, for processes that cannot read it yet; by default it is read.

    Raises:
        UnveilError: If the folder has no `run.json`, or if `run.json` is damaged or was written by a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        if facts is None and not (self.path / "run.json").is_file():
            probe = "; it is the folder of a probe, whose results are in results.json and predictions.csv"
            raise UnveilError(f"{path} is not a run folder: it has no run.json{probe * (self.path / 'predictions.csv').is_file()}")
        self.facts = dict(facts) if facts is not None else read_facts(self.path / "run.json")
        """The content of `run.json`: kind, config, command, versions, hardware, data."""
        self._parsed: dict[str, tuple[object, Any]] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """What a notebook shows. Reports are upstairs: they read run folders, and only a notebook asks for one from here."""
        shown: str = importlib.import_module("unveil.reports.notebook").run_html(self)
        return shown

    def curves(self) -> "dict[str, Figure]":
        """The loss, the learning rate and the evaluations during training, as matplotlib figures by their titles."""
        drawn = importlib.import_module("unveil.reports.curves").draw_curves(self.log)
        return {curve.title: curve.figure for curve in drawn}

    @property
    def config(self) -> dict[str, Any]:
        """Every option, by name."""
        config: dict[str, Any] = self.facts.get("config") or {}
        return config

    @property
    def log(self) -> list[Record]:
        """The records of `log.jsonl`. The file is parsed again only if it has changed."""
        return list(self._read_log()[0])

    @property
    def damaged_lines(self) -> int:
        """The number of lines of `log.jsonl` that are damaged, and not in `log`."""
        return self._read_log()[1]

    def _read_log(self) -> tuple[list[Record], int]:
        def parse(path: Path) -> tuple[list[Record], int]:
            records, damaged = read_log(path)
            return [migrate_record(record) for record in records], damaged

        return self._parse("log.jsonl", parse) or ([], 0)

    @property
    def results(self) -> dict[str, Any]:
        """The content of `results.json`; empty before the run has ended. The file is parsed again only if it has changed."""
        return copy.deepcopy(self._parse("results.json", read_results) or {})

    def _parse(self, name: str, parse: Callable[[Path], T]) -> T | None:
        path = self.path / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnveilError(f"{path} cannot be read: {error.strerror}") from None
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if name not in self._parsed or self._parsed[name][0] != stamp:
            self._parsed[name] = stamp, parse(path)
        content: T = self._parsed[name][1]
        return content

    def write_results(self, results: Mapping[str, Any]) -> None:
        write_text(self.path / "results.json", json_text(results))
        self._parsed.pop("results.json", None)

    def checkpoints(self, keep: int = 3, warn: Callable[[str], None] = print) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep, warn)


def finished_run(path: Path) -> Run | None:
    """The run in a folder if it has finished, else None."""
    if not ((path / "results.json").is_file() and (path / "report.html").is_file()):
        return None
    try:
        run = Run(path)
        return run if run.results else None
    except UnveilError:  # damaged results are computed again when the turn of the run comes
        return None


def read_results(path: Path) -> dict[str, Any]:
    """The content of a `results.json`, converted to the names of this version."""
    results = migrate_results(read_json(path, LARGEST_RESULTS))
    check_results(results, path)
    return results


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a `run.json`, converted to the names of this version."""
    facts = read_json(path)
    found = facts.get("format", 1)
    if not isinstance(found, int) or found > RUN_FORMAT:
        raise UnveilError(
            f"{path} has format {found}, but this version of unveil reads formats up to {RUN_FORMAT}: a newer version wrote it, so "
            f"upgrade unveil"
        )
    check_run(facts, path)
    if "config" in facts:
        facts["config"] = migrate_config(facts["config"], found)
    return facts


def open_run(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    weights: Mapping[str, Mapping[str, str]] | None = None,
    inputs: Mapping[str, str] | None = None,
    write: bool,
    say: Callable[[str], None],
) -> Run:
    """Creates a run folder, or opens the existing folder of the same run to resume it.

    Args:
        path: The folder.
        kind: "pretrain", "finetune", ...
        config: Every option.
        data: Facts about the data: name, fingerprint, count.
        weights: Checksums of weights of other runs: of the "encoder" that the run starts from, and of its "teacher".
        inputs: Paths as the user gave them, to make the run again: see `unveil.runs.option_files.input_facts`.
        write: Whether this process writes the folder.
        say: Prints a message for the user.

    Raises:
        UnveilError: If the folder contains something else, or if resuming would silently change the run; the message lists the
            differences.
    """
    facts = {"format": RUN_FORMAT, "kind": kind, "config": json.loads(json.dumps(config)), "data": json.loads(json.dumps(data))}
    facts |= {name: dict(sums) for name, sums in (weights or {}).items()} | ({"inputs": dict(inputs)} if inputs else {})
    if write and path.is_dir():
        sweep(path)  # the folder is locked, so what is left there belongs to nobody
    started = any((path / name).exists() for name in ("checkpoints", "results.json"))
    if (path / "run.json").is_file() and started:
        run = Run(path)
        refuse_changes(run, facts, say)
        return run
    if not write:
        return Run(path, facts)
    ours = (path / "run.json").is_file() and "kind" in Run(path).facts  # no step was done yet, so nothing is lost
    ignored = (PLAN, LOCK, ".run.json-")  # a plan, the lock, or a temporary file that a killed process has left
    inside = [each.name for each in path.iterdir() if not each.name.startswith(ignored)] if path.is_dir() else []
    if path.exists() and not ours and (inside or not path.is_dir()):
        raise UnveilError(f"{path} exists and is not a run folder: choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "run.json", json_text(facts | receipt()))
    return Run(path)


def recorded_options(path: Path) -> dict[str, Any]:
    """The options of a run that an earlier version began, except harmless ones; {} for other folders.

    Defaults may have changed since. So options that are not given keep the values that the run has recorded.
    """
    if not (path / "run.json").is_file() or not any((path / name).exists() for name in ("checkpoints", "results.json")):
        return {}
    run = Run(path)
    if run.facts.get("format", 1) >= RUN_FORMAT:
        return {}
    kept = {name: value for name, value in run.config.items() if name not in HARMLESS}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}


def harmless_options(config: Mapping[str, Any]) -> frozenset[str]:
    """The options of a run that may change on resume. Dropout draws other numbers in another number of microbatches."""
    return HARMLESS - {"accum_steps"} if config.get("dropout") else HARMLESS


def refuse_changes(run: Run, facts: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Compares the settings of a run with new ones. Prints harmless differences, and raises `UnveilError` for others."""
    if run.facts.get("kind") != facts["kind"]:
        kinds = f"{run.path} is a {run.facts.get('kind')} run, not a {facts['kind']} run: "
        raise ChangedSettingsError(kinds, "choose another --out")
    changes, harmless = config_changes(run.config, facts["config"]), harmless_options(run.config)
    data = data_changes(run.facts.get("data") or {}, facts["data"]) + weight_changes(run.facts, facts)
    # A harmless option that an earlier version did not have is not worth a line.
    lines = data + [line for key, line in changes.items() if key not in harmless or key in run.config]
    if data or changes.keys() - harmless:
        text, old, new = "\n".join(lines), run.config.get("epochs"), facts["config"].get("epochs")
        may_extend = (
            not data
            and changes.keys() - harmless == {"epochs"}
            and facts["kind"] in EXTENDABLE
            and isinstance(old, int | float)
            and new > old
        )
        longer = f"for {new:g} epochs in this folder, add --extend; " if may_extend else ""
        raise ChangedSettingsError(
            f"{run.path} is a run with different settings:\n{text}\n",
            f"Use the old settings to resume it, or choose another --out; {longer}to go on with another length, rate or precision, "
            f"add --resume-from {run.path}.",
        )
    if lines:
        say("\n".join(["resuming with different settings, which do not change the result:", *lines]))


def weight_changes(recorded: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """A line for each of "encoder" and "teacher" that is another one now, under the same path. Earlier versions recorded none."""
    lines = []
    for name in ("encoder", "teacher"):
        old, new = recorded.get(name) or {}, facts.get(name) or {}
        changed = [key for key in old.keys() & new.keys() if old[key] != new[key]]
        if changed:
            lines.append(f"  the {name}: its {' and '.join(sorted(changed))} changed since the run began")
    return lines


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """A line for each option that differs, by its name. Two spellings of one path are no difference."""

    def same(key: str) -> bool:
        a, b = old.get(key), new.get(key)
        if key in PATH_OPTIONS and isinstance(a, str) and isinstance(b, str) and os.path.exists(a) and os.path.exists(b):
            return os.path.samefile(a, b)
        return bool(a == b)

    return {
        key: f"  config {key}: was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if not same(key)
    }


def command_name() -> list[str]:
    """The first words of the command of this process: unveil, or a script of the user."""
    path = Path(sys.argv[0])
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def receipt() -> dict[str, Any]:
    """The provenance of a run: command, commit, time, versions, hardware."""
    packages = {}
    for name in ("unveil", "torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "unknown"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": shlex.join([*command_name(), *sys.argv[1:]]),
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
    """The commit of the git checkout that tracks a file, with "-dirty" if anything was changed; None if there is no checkout."""
    git = ["git", "-C", str(file.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], check=True, capture_output=True)
        found = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
