"""Reads the knobs of a file without running it, so that `--help` need not wait for torch.

A knob is a field of a frozen dataclass beside the class that it configures. The command line is made of these fields: their
names, their types, their defaults, and the sentence under each.
"""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unveil.errors import UnveilError

NAMES = {"Literal": typing.Literal, "Path": pathlib.Path, "Any": Any}  # what a knob's type may be made of, beside builtins


@dataclass(frozen=True)
class Option:
    """One option."""

    name: str
    type: Any
    default: Any
    help: str


def source_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8"))


def options_of(place: str) -> list[Option]:
    """The knobs of a dataclass, given as "module:class": those of the dataclasses that it extends come first."""
    module, _, name = place.partition(":")
    tree = source_of(module)
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
    result = [knob for base in bases for knob in options_of(f"{home_of(base, tree, module)}:{base}")]
    for node, after in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            text = str(after.value.value) if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            kind = eval(ast.unparse(node.annotation), dict(NAMES))
            result.append(Option(node.target.id, kind, ast.literal_eval(node.value), " ".join(text.split())))
    return result


def home_of(name: str, tree: ast.Module, module: str) -> str:
    """The module that a name of this one comes from."""
    brought = [node for node in tree.body if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names)]
    return str(brought[0].module) if brought else module


def literal(module: str, name: str) -> Any:
    """The value of a literal at the top of a module."""
    for node in source_of(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
            return ast.literal_eval(node.value)
    raise KeyError(name)


def configure(options: Mapping[str, Any], *configs: type) -> list[Any]:
    """Deals options out to the configs that have a field of that name. Raises `UnveilError` for one that none has."""
    fields = {config: {field.name for field in dataclasses.fields(config)} for config in configs}
    known: set[str] = set().union(*fields.values())
    refuse_unknown(options, known)
    return [config(**{k: v for k, v in options.items() if k in names}) for config, names in fields.items()]


def known_to(options: Mapping[str, Any], *configs: type) -> dict[str, Any]:
    """Those of the options that some config has a field for."""
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    return {name: value for name, value in options.items() if name in names}


def refuse_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raises `UnveilError` for the first option that is not known, with what may have been meant."""
    known = sorted(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
            raise UnveilError(f"there is no option {name!r}; {hint}")
