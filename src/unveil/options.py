"""Reads the options of a class from its source without importing it, so that `--help` does not wait for torch.

An option is a field of a frozen dataclass next to the class that it configures. The command line is built from the names, types
and defaults of these fields, and from the docstring under each. If a default or a type is not a literal (a function call, an
alias), the module is imported instead, which gives the same result but takes longer.
"""

import ast
import dataclasses
import importlib.machinery
import importlib.util
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from unveil.errors import UnveilError
from unveil.option_synonyms import hint
from unveil.option_types import TYPE_NAMES, check_value, is_parseable
from unveil.plugins import import_class, name_of


@dataclass(frozen=True)
class Option:
    """A field of a config, as the command line shows it."""

    name: str
    type: Any
    """The type, with ranges as in `unveil.ranges`."""
    default: Any
    help: str
    hidden: bool = False
    """Whether only `--help-all` shows it. The dataclass lists such fields in the class attribute `HIDDEN`, a tuple of names."""


@dataclass(frozen=True)
class ClassSource:
    """A class in a file that was parsed, but not imported."""

    file: pathlib.Path
    module: str
    """The dotted name of the module, or the path of the file for a class outside of any package."""
    name: str
    """The name of the class within the module, such as "MAE" or "MAE.Config"."""
    tree: ast.Module
    node: ast.ClassDef

    @property
    def path(self) -> str:
        """The "module:Class" or "file.py:Class"."""
        return f"{self.module}:{self.name}"

    @property
    def own_names(self) -> frozenset[str]:
        """The variables and classes at the top of the module, which may be called like a name of `TYPE_NAMES`."""
        return names_at_top(self.tree)

    @classmethod
    def find(cls, path: str) -> "ClassSource":
        """The source of "module:Class" or "file.py:Class". Raises `UnveilError` if there is none."""
        module, _, name = path.rpartition(":")
        file, tree = parse_module(module)
        outer, *inner = name.split(".")
        nodes: list[ast.stmt] = tree.body
        for part in (outer, *inner):
            found = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == part]
            if not found:
                break
            nodes = found[-1].body
        if found:
            return cls(file, module, name, tree, found[-1])
        for statement, each in imports(tree):  # a package may import its class from one of its modules
            if isinstance(statement, ast.ImportFrom) and (each.asname or each.name) == outer:
                return cls.find(f"{absolute_module(statement, module, file)}:{'.'.join([each.name, *inner])}")
        raise UnveilError(f"{file} has no class {name!r} at its top level")

    @property
    def bases(self) -> list["ClassSource"]:
        """The base classes whose source was found."""
        return [found for base in self.node.bases if (found := self.lookup(base))]

    @property
    def is_complete(self) -> bool:
        """Whether the base classes were followed up to a class of unveil. If so, an attribute that was not found does not exist."""
        return any(each.module.startswith("unveil.") for each in self.lineage())

    def lookup(self, node: ast.expr) -> "ClassSource | None":
        """The class that a name refers to in this file; None if that is not a class whose source can be read."""
        try:
            return ClassSource.find(self.path_of(node))
        except (UnveilError, KeyError):
            return None

    def path_of(self, node: ast.expr) -> str:
        """The "module:Class" of a name, or of a dotted name, in this file. Raises `KeyError` for any other expression."""
        if isinstance(node, ast.Name):
            for statement, each in imports(self.tree):
                if isinstance(statement, ast.ImportFrom) and (each.asname or each.name) == node.id:
                    return f"{absolute_module(statement, self.module, self.file)}:{each.name}"
            return f"{self.module}:{node.id}"
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            for statement, each in imports(self.tree):
                if (each.asname or each.name) == owner:
                    start = (
                        f"{absolute_module(statement, self.module, self.file)}." if isinstance(statement, ast.ImportFrom) else ""
                    )
                    return f"{start}{each.name}:{node.attr}"
        raise KeyError(ast.unparse(node))

    def assigned(self, name: str) -> tuple["ClassSource", ast.expr] | None:
        """The expression assigned to a class attribute, and the class that assigns it: this class or its nearest base."""
        for target, value in assignments(self.node):
            if target == name:
                return self, value
        return next((found for base in self.bases if (found := base.assigned(name))), None)

    def literal(self, name: str, default: Any = None) -> Any:
        """The value of a class attribute. The module is imported only if the value is not a literal."""
        found = self.assigned(name)
        if found is None:
            return default if self.is_complete else getattr(import_class(self.path), name, default)
        owner, node = found
        try:
            return ast.literal_eval(node)
        except ValueError:
            return getattr(import_class(owner.path), name)

    def config(self) -> str:
        """The "module:Class" of the dataclass that the class attribute `Config` refers to."""
        for each in self.lineage():
            if any(isinstance(node, ast.ClassDef) and node.name == "Config" for node in each.node.body):
                return f"{each.path}.Config"
        found = self.assigned("Config")
        if found is None and not self.is_complete and hasattr(import_class(self.path), "Config"):
            return name_of(import_class(self.path).Config)
        if found is None:
            raise UnveilError(
                f"{self.file}:{self.node.lineno}: class {self.node.name} has no `Config`: assign it a frozen dataclass, "
                f"`Config = MyConfig`"
            )
        owner, node = found
        try:
            return owner.path_of(node)
        except KeyError:
            return name_of(import_class(owner.path).Config)

    def lineage(self) -> list["ClassSource"]:
        """The class and all its base classes, nearest first."""
        return [self, *(each for base in self.bases for each in base.lineage())]


def assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Names assigned in the body of a class, with their expressions. `a, b = 1, 2` gives two."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
            yield statement.target.id, statement.value
        if not isinstance(statement, ast.Assign):
            continue
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
            elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                for each, value in zip(target.elts, statement.value.elts, strict=False):
                    yield ast.unparse(each), value


def imports(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, ast.alias]]:
    """The imports at the top of a file, one imported name at a time."""
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for each in statement.names:
                yield statement, each


def absolute_module(statement: ast.ImportFrom, module: str, file: pathlib.Path) -> str:
    """The dotted name of the module that an import statement, absolute or relative, imports from."""
    if not statement.level:
        return str(statement.module)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(statement.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{statement.module}" if statement.module else package


def parse_module(module: str) -> tuple[pathlib.Path, ast.Module]:
    """The file and the syntax tree of a module, given by its dotted name or as a path that ends in .py."""
    file = pathlib.Path(module) if module.endswith(".py") else file_of(module)
    if file is None:
        raise UnveilError(f"module {module!r} was not found: check the spelling, and whether its package is installed")
    try:
        return file, parsed(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnveilError(f"{file} cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        where = f"{file}:{error.lineno}" if isinstance(error, SyntaxError) else str(file)
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UnveilError(f"{where} is not valid Python: {reason}") from None


@lru_cache(maxsize=256)
def parsed(text: str) -> ast.Module:
    """The syntax tree of a source, which nobody changes: commands of one process look at the same files again and again."""
    return ast.parse(text)


@lru_cache(maxsize=256)
def names_at_top(tree: ast.Module) -> frozenset[str]:
    """The variables and classes at the top of a module."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    targets = {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(targets | {node.name for node in tree.body if isinstance(node, ast.ClassDef)})


def file_of(module: str) -> pathlib.Path | None:
    """The file of a module, found without importing the module or its packages; None if there is none."""
    parts, folders, spec = module.split("."), None, None
    for end in range(1, len(parts) + 1):
        try:
            name = ".".join(parts[:end])
            spec = importlib.util.find_spec(name) if end == 1 else importlib.machinery.PathFinder.find_spec(name, folders)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        folders = spec.submodule_search_locations
    return pathlib.Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def options_of(path: str) -> list[Option]:
    """The options of the dataclass "module:Class", after those of its base classes.

    Raises:
        UnveilError: If the class is missing, or a default or type can be read neither from the source nor by importing.
    """
    source = ClassSource.find(path)
    if not any("dataclass" in ast.unparse(decorator) for each in source.lineage() for decorator in each.node.decorator_list):
        raise UnveilError(
            f"{source.file}:{source.node.lineno}: {source.node.name} holds options, so it must be a dataclass: write "
            f"@dataclass(frozen=True, kw_only=True) above it"
        )
    assigned = source.assigned("HIDDEN")
    hidden = ast.literal_eval(assigned[1]) if assigned else ()
    found: dict[str, Option] = {}
    for base in source.bases:
        found |= {option.name: option for option in options_of(base.path)}
    for node, after in zip(source.node.body, [*source.node.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        if node.value is None:
            raise UnveilError(f"{source.file}:{node.lineno}: option {node.target.id!r} of {path} has no default: give it one")
        text = str(after.value.value) if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        kind, default = type_and_default(source, path, node)
        if not is_parseable(kind):
            raise UnveilError(
                f"{source.file}:{node.lineno}: the option {node.target.id!r} has the type {ast.unparse(node.annotation)}, which "
                f"cannot be given on the command line: use int, float, bool, str, Literal, a tuple of them, or one of them or None"
            )
        found[node.target.id] = Option(node.target.id, kind, default, " ".join(text.split()))
    return [dataclasses.replace(option, hidden=option.hidden or option.name in hidden) for option in found.values()]


def type_and_default(source: ClassSource, path: str, node: ast.AnnAssign) -> tuple[Any, Any]:
    """The type and the default of a field: from the source if they are literals, else from the imported class."""
    assert isinstance(node.target, ast.Name)
    assert node.value is not None
    try:
        names = {name: value for name, value in TYPE_NAMES.items() if name not in source.own_names}
        kind, default = eval(ast.unparse(node.annotation), names), ast.literal_eval(node.value)
        if not isinstance(kind, str):  # a quoted type
            return kind, default
    except Exception:
        pass  # not a literal: import the class instead
    name, where = node.target.id, f"{source.file}:{node.lineno}"
    try:
        config = import_class(path)
        field = next(field for field in dataclasses.fields(config) if field.name == name)
        kind = typing.get_type_hints(config, include_extras=True)[name]
    except UnveilError:
        raise
    except Exception as error:
        found = f"{ast.unparse(node)!r}: {type(error).__name__}: {error}"
        raise UnveilError(f"{where}: the option {name!r} cannot be read ({found}): is {path} a dataclass?") from None
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return kind, default


def literal(module: str, name: str) -> Any:
    """The value of a variable at the top of a module, which must be a literal."""
    for node in parse_module(module)[1].body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
            return ast.literal_eval(node.value)
    raise KeyError(name)


def configure(options: Mapping[str, Any], *configs: type) -> list[Any]:
    """Distributes options to the configs that have a field of that name.

    Raises:
        UnveilError: For an option that no config has, or a value of the wrong type or out of range.
    """
    values = check_options(options, *configs)
    return [
        config(**{field.name: values[field.name] for field in dataclasses.fields(config) if field.name in values})
        for config in configs
    ]


def check_options(options: Mapping[str, Any], *configs: type) -> dict[str, Any]:
    """The options as plain values: see `check_value`. It builds and reads nothing, so it can stand before anything that takes time.

    Raises:
        UnveilError: As for `configure`.
    """
    kinds = {name: kind for config in configs for name, kind in typing.get_type_hints(config, include_extras=True).items()}
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    refuse_unknown(options, names)
    return {name: check_value(name, value, kinds[name]) for name, value in options.items()}


def known_to(options: Mapping[str, Any], *configs: type) -> dict[str, Any]:
    """The options that are fields of at least one of the configs."""
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    return {name: value for name, value in options.items() if name in names}


def refuse_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raises `UnveilError` for the first option that is not in `known`, and suggests similar names."""
    known = sorted(known)
    for name in options:
        if name not in known:
            guess = hint(name, known) or f"the options are: {', '.join(known)}"
            raise UnveilError(f"there is no option {name!r}; {guess}")
