"""Takes options from a file: the `run.json` of an earlier run, or TOML. Needs no torch, except for runs of earlier versions.

What is given on the command line, or in Python, comes first. The rest is that of the file: options, and where they are not given
also DATA, RUN, the method, the task and the model. `--out` is never taken from a file, so an earlier run is not written to.
"""

import importlib
import inspect
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from unveil.errors import UnveilError
from unveil.json_files import LARGEST, read_json, read_regular
from unveil.methods import METHODS, method_source
from unveil.options import literal, options_of
from unveil.paths import absolute_data
from unveil.plugins import is_path
from unveil.tasks import TASKS, task_source
from unveil.train.run_schema import check_run

P = ParamSpec("P")
R = TypeVar("R")

FORMS = "expected a run folder, its run.json, or a TOML file of options"
COMMANDS = {"pretrain": "pretrain", "finetune": "finetune", "translate": "translate train"}
"""The command of each kind of run."""
TABLES = {"method": METHODS, "task": TASKS}
ARGUMENTS = ("data", "run", "method", "task", "model", "test", "resume_from")
"""What a file may hold besides options."""
NEVER = {
    "out": "an earlier run is never written to: give --out on the command line",
    "extend": "give --extend on the command line, together with --out",
    "config": "a file cannot refer to another one",
    "trust": "give --trust on the command line",
}
"""What a file may not hold, and why."""


@dataclass(frozen=True, kw_only=True)
class OptionFile:
    """The content of a file of options."""

    source: str
    """The file, or the run, for messages."""
    arguments: dict[str, Any]
    """Values of `ARGUMENTS`."""
    options: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    """Arguments that have to be given, each with the reason."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The content of `run.json`; {} for TOML."""

    @property
    def command(self) -> str:
        """The command that the run was made by; "" for TOML, which does not say."""
        return COMMANDS.get(str(self.facts.get("kind")), "")

    def with_other(self, kind: str, given: str | type | None) -> "OptionFile":
        """The content for another method or task than that of the file, whose own options do not apply to it.

        Args:
            kind: "method" or "task".
            given: The method or task that the user gives, if any.
        """
        own = self.arguments.get(kind)
        if given is None or given == own or TABLES[kind].label(given) == own:
            return replace(self, missing={key: why for key, why in self.missing.items() if key != kind or given is None})
        missing = {key: why for key, why in self.missing.items() if key != kind}
        source = method_source if kind == "method" else task_source
        names = {option.name for option in options_of(source(own).config())} if own else set()
        left = [name for name in self.options if name in names]
        kept = {name: value for name, value in self.options.items() if name not in names}
        note = f"options of {own} are not taken from {self.source} for another {kind}: {', '.join(left)}"
        return replace(self, options=kept, missing=missing, notes=(*self.notes, *([note] if left else [])))


def read_option_file(path: str | os.PathLike[str], command: str = "") -> OptionFile:
    """The options in a file.

    Args:
        path: A run folder, its `run.json`, the `plan.json` of `unveil plan`, or a .toml file.
        command: The command that will use them; "" for any that trains.

    Raises:
        UnveilError: If it is none of these, or a run of another command.
    """
    file, shown = Path(path), os.fspath(path)
    if file.is_dir():
        file = next((file / name for name in ("run.json", "plan.json") if (file / name).is_file()), file / "run.json")
    if not file.exists():
        raise UnveilError(f"{shown} {'has no run.json' if Path(path).is_dir() else 'does not exist'}: {FORMS}")
    found = from_toml(file) if file.suffix == ".toml" else from_run(file, shown)
    if command and found.command and found.command != command:
        raise UnveilError(f"{shown} is a run of unveil {found.command}, whose options are not those of unveil {command}")
    return found


def from_toml(path: Path) -> OptionFile:
    """The content of a TOML file, whose keys are options: `mask_ratio = 0.6`, or `mask-ratio = 0.6`."""
    try:
        table = tomllib.loads(read_regular(path, LARGEST).decode("utf-8"))
    except OSError as error:
        raise UnveilError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UnveilError(f"{path} is not valid TOML: {' '.join(str(error).split())[:200]}") from None
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in found:
            raise UnveilError(f"{path} has the option {name!r} twice")
        if name in NEVER:
            raise UnveilError(f"{path} has the option {name!r}: {NEVER[name]}")
        if isinstance(value, dict):
            raise UnveilError(f"{path} has a table {key!r}: expected options only, without headings in brackets")
        if name in ARGUMENTS and not isinstance(value, str):
            raise UnveilError(f"{path} has {key} = {value!r}: expected a text in quotes")
        found[name] = tuple(value) if isinstance(value, list) else None if value == "None" else value
    missing = {kind: outside(str(path), kind, found[kind]) for kind in TABLES if is_path(found.get(kind, ""))}
    arguments = {name: value for name, value in found.items() if name in ARGUMENTS and name not in missing}
    options = {name: value for name, value in found.items() if name not in ARGUMENTS}
    return OptionFile(source=str(path), arguments=arguments, options=options, missing=missing)


def from_run(path: Path, source: str) -> OptionFile:
    """The content of a `run.json` or a `plan.json`."""
    facts = read_run(path)
    config, data, inputs = dict(facts.get("config") or {}), facts.get("data") or {}, facts.get("inputs") or {}
    kind = facts.get("kind")
    if kind not in COMMANDS or not config:
        raise UnveilError(f"{source} records no run of {', '.join(COMMANDS.values())}: {FORMS}")
    arguments: dict[str, Any] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    for name in ("method", "task"):
        label, where = config.pop(name, None), config.get("class")
        if label is not None and (where is None or TABLES[name].installed.get(label) == where):
            arguments[name] = label
        elif label is not None:
            missing[name] = outside(source, name, str(where))
    config.pop("class", None)
    if typed := inputs.get("data"):
        arguments["data"] = located(typed, inputs.get("data_path"))
    elif data.get("name") in ("array", "list") and data.get("path") is None:
        what = "an array" if data["name"] == "array" else "a list of images"
        missing["data"] = f"{source} was trained on {what} in memory, which it does not record: give DATA"
    elif kind == "translate":
        missing["data"] = f"{source} does not record where its sentence pairs are: give DATA"
    else:
        arguments["data"] = located(str(data.get("name")), data.get("path"))
    began = config.pop("from", None)
    if kind == "finetune" and (began or inputs.get("run")):
        if inputs.get("run"):
            arguments["run"] = located(inputs["run"], inputs.get("run_path"))
        elif began != "scratch":
            arguments["run"] = str(began)
        else:
            missing["run"] = f"{source} was trained from scratch, and does not record whose shape it has: give RUN"
    if test := inputs.get("test"):
        arguments["test"] = located(test, inputs.get("test_path"))
    elif test is not None:
        missing["test"] = f"{source} was tested on samples in memory, which it does not record: give --test"
    for name in ("model", "resume_from"):
        if name in config and not (name == "model" and config.get("init")):  # the size follows from --init
            arguments[name] = config.pop(name)
    config.pop("model", None)
    if extensions := facts.get("extensions"):
        first = " and ".join(f"{each.get('epochs')}" for each in extensions if isinstance(each, Mapping))
        notes.append(
            f"{source} was made longer after {first} epochs, with a warm restart, which one run of its length does not have"
        )
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    return OptionFile(source=source, arguments=arguments, options=options, missing=missing, notes=tuple(notes), facts=facts)


def read_run(path: Path) -> dict[str, Any]:
    """The content of a `run.json` or a `plan.json`, in the format of this version."""
    found = read_json(path)
    if path.name == "plan.json":
        found = {"kind": "pretrain", **found}
    if found.get("format") == literal("unveil.train.migration", "RUN_FORMAT"):
        check_run(found, path)
        return found
    older: dict[str, Any] = importlib.import_module("unveil.train.run_folder").read_facts(path)  # which needs torch
    return {"kind": "pretrain", **older} if path.name == "plan.json" else older


def outside(source: str, kind: str, name: str) -> str:
    """Why a class from outside of unveil is not taken from a file: importing it runs its code."""
    return f"{source} names the {kind} {name}, which is not part of unveil: if you trust it, add --{kind} {name}"


def located(name: str, path: str | None) -> str:
    """DATA as the user typed it or, if that is not found from this working directory, its absolute path."""
    if path and absolute_data(name) != path and absolute_data(path):
        return path
    return name


def input_facts(**inputs: Any) -> dict[str, str]:
    """What `run.json` records of inputs, so that a run can be made again: paths as typed, and their absolute paths."""
    found = {}
    for name, value in inputs.items():
        if isinstance(value, str | os.PathLike):
            text = os.fspath(value)
            found[name] = text
            if path := absolute_data(text):
                found[f"{name}_path"] = path
        elif value is not None:
            found[name] = ""  # in memory
    return found


def takes_options(command: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of the function of a command, which fills in what its argument `config` names and the caller does not give."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        rest = next(name for name, each in signature.parameters.items() if each.kind is inspect.Parameter.VAR_KEYWORD)

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            path: Any = kwargs.pop("config", None)
            if path is None:
                return function(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            file = read_option_file(path, command)
            for kind in TABLES.keys() & signature.parameters.keys():
                file = file.with_other(kind, given.get(kind))
            for name, why in file.missing.items():
                if given.get(name) is None:
                    raise UnveilError(why.replace("--", "").replace(f"add {name} ", f"give {name}="))
            for note in file.notes:
                importlib.import_module("unveil.train.terminal").printer(True)(note)
            unused = [name for name in file.arguments if name not in signature.parameters]
            if unused:
                raise UnveilError(f"{file.source} has the option {unused[0]!r}, which unveil.{function.__name__} does not have")
            options = {**file.options, **given.pop(rest, {})}
            arguments = {**file.arguments, **{name: value for name, value in given.items() if value is not None}}
            by_name: Callable[..., R] = function
            return by_name(**arguments, **options)

        return called

    return decorate
