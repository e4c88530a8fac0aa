"""Finds the class of a method or task: built in, installed as a plug-in, or in any Python file. Needs no torch.

A class has a name of the form "package.module:Class" or "path/to/file.py:Class". `config.json` records this name, so that every
later process finds the class again. For safety, a run folder alone never makes unveil import code: a class that is neither built
in nor installed as an entry point is imported only if the user named it in this process, with `method=`, `--method`, `trust=` or
`--trust`.
"""

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError

_classes: dict[str, type] = {}
"""Classes that were passed as objects or imported from files, by name."""
_trusted: set[str] = set()
"""Modules and files that the user named in this process."""


def trust(path: str | Path | None) -> None:
    """Allows run folders to import a module or file, given as "package.module", "file.py", or either with ":Class"."""
    if path is not None:
        home = home_of(absolute(str(path)))
        if home.endswith(".py") and not Path(home).is_file():
            raise UnveilError(f"{home} does not exist, so it cannot be trusted: restore the file, or give its new path")
        _trusted.add(home)


def trusted() -> list[str]:
    """What the user has named in this process, for another one that works for it."""
    return sorted(_trusted)


def absolute(path: str) -> str:
    """The name of a class or module. A path to a file is made absolute."""
    module, colon, name = path.rpartition(":") if ".py:" in path else (path, "", "")
    return f"{Path(module).expanduser().resolve()}{colon}{name}" if module.endswith(".py") else path


def home_of(path: str) -> str:
    """The module or file of "module:Class" or "file.py:Class"."""
    if path.endswith(".py"):
        return path
    module, colon, _ = path.rpartition(":")
    return module if colon else path


def is_path(value: str) -> bool:
    """Whether a value is "module:Class" or "file.py:Class", as opposed to a name in a table."""
    return ":" in value or value.endswith(".py")


def name_of(found: type) -> str:
    """The "module:Class" or "file.py:Class" with which another process can find a class."""
    module = found.__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or module.startswith("unveil_plugin_"):
        if file is None:
            raise UnveilError(
                f"{found.__qualname__} was defined in an interactive session: move it to a file to use it as a plug-in"
            )
        module = str(Path(file).resolve())
    path = f"{module}:{found.__qualname__}"
    _classes[path] = found
    return path


def import_class(path: str) -> Any:
    """The class of "module:Class" or "file.py:Class". Raises `UnveilError` if it cannot be imported."""
    if path in _classes:
        return _classes[path]
    home, _, name = path.rpartition(":")
    try:
        found: Any = import_file(Path(home)) if home.endswith(".py") else importlib.import_module(home)
        for part in name.split("."):
            found = getattr(found, part)
    except FileNotFoundError:
        raise UnveilError(
            f"{home} does not exist, so its class {name} cannot be loaded: restore the file or move it back"
        ) from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == home]
        where = f"{home}:{lines[-1]}" if lines else home
        raise UnveilError(f"{where} cannot be imported for its class {name}: {type(error).__name__}: {error}") from error
    _classes[path] = found
    return found


def import_file(file: Path) -> Any:
    """Imports a Python file as a module. A second call returns the same module."""
    file = file.resolve()
    main = sys.modules.get("__main__")
    started = getattr(main, "__file__", None)  # the running script is not imported again
    if started and Path(started).resolve() == file:
        return main
    name = f"unveil_plugin_{file.stem}_{zlib.crc32(os.fsencode(file)):08x}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise FileNotFoundError(file)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@dataclass(frozen=True)
class Registry:
    """The table of methods, or of tasks: built-in classes by name, then entry points of installed packages."""

    kind: str
    """What the table holds: "method" or "task"."""
    builtin: Mapping[str, str] = field(hash=False)
    """Name to "module:Class"."""

    @cached_property
    def installed(self) -> dict[str, str]:
        """Entry points of installed packages in the group `unveil.methods` or `unveil.tasks`."""
        return {each.name: each.value for each in entry_points(group=f"unveil.{self.kind}s")}

    @property
    def names(self) -> list[str]:
        return [*self.builtin, *(name for name in self.installed if name not in self.builtin)]

    def find(self, value: str | type) -> str:
        """The "module:Class" or "file.py:Class" of a value, which is trusted from now on.

        Args:
            value: A name in the table, "module:Class", "file.py:Class", or a class.

        Raises:
            UnveilError: For a name that is not in the table.
        """
        if isinstance(value, type):
            path = name_of(value)
        elif value in self.builtin:
            return self.builtin[value]
        elif value in self.installed:
            return self.installed[value]
        elif value.endswith(".py"):
            raise UnveilError(f"{value} names a file but no class: write {value}:MyClass")
        elif is_path(value):
            path = absolute(value)
        else:
            near = difflib.get_close_matches(value, self.names, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(self.names)}"
            raise UnveilError(f'there is no {self.kind} {value!r}; {hint} (or "package.module:Class", or "file.py:Class")')
        _trusted.add(home_of(path))
        return path

    def load(self, value: str | type) -> Any:
        """The class itself: see `find`."""
        return import_class(self.find(value))

    def label(self, value: str | type) -> str:
        """A short name for folders and messages: the name in the table, else the name of the class in lower case."""
        path = self.find(value)
        known = {path: name for name, path in {**self.installed, **self.builtin}.items()}
        return known.get(path, path.rpartition(":")[2].rpartition(".")[2].lower())

    def describe(self, found: type) -> dict[str, str]:
        """The entries of `config.json` for a class: its name in the table and, if it is not built in, its "module:Class"."""
        path = name_of(found)
        label = self.label(found)
        return {self.kind: label} if self.builtin.get(label) == path else {self.kind: label, "class": path}

    def recorded(self, config: Mapping[str, Any], source: str | Path) -> Any:
        """The class that a `config.json` names.

        Raises:
            UnveilError: If the class is outside of unveil and was not trusted in this process (see `trust`).
        """
        label, path = config[self.kind], config.get("class")
        if path is None:
            table = {**self.installed, **self.builtin}
            if not isinstance(label, str) or label not in table:  # the name is not tried as a path: that could run untrusted code
                raise UnveilError(
                    f"{source} needs the {self.kind} {label!r}, which is not installed: install its package, or upgrade unveil"
                )
            return import_class(table[label])
        if self.installed.get(label) == path:
            return import_class(path)
        home = home_of(path)
        # The user may name the file of a moved plug-in, or of a module that was imported from beside a script.
        stem = Path(home).stem if home.endswith(".py") else home.rpartition(".")[2]
        files = [each for each in _trusted if each.endswith(".py") and Path(each).stem == stem]
        if home not in _trusted and files and not (home.endswith(".py") and Path(home).exists()):
            path, home = f"{files[0]}:{path.rpartition(':')[2]}", files[0]
        if home not in _trusted:
            raise UnveilError(
                f"{source} needs the {self.kind} {label!r} from {home}, which is not part of unveil. Loading it runs that "
                f"code: if you trust it, add --trust {home} (Python: trust={home!r})"
            )
        return import_class(path)
