"""The types of options: which the command line can parse, and whether a value fits. Needs no torch.

Values from the command line and from Python pass the same check before anything is read or imported.
"""

import difflib
import math
import os
import pathlib
import types
import typing
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

from unveil import ranges
from unveil.errors import UnveilError
from unveil.plain_text import shorten

TYPE_NAMES: dict[str, Any] = {
    "Literal": typing.Literal,
    "Annotated": typing.Annotated,
    "Path": pathlib.Path,
    "Any": Any,
    **{name: value for name, value in vars(ranges).items() if name[0].isupper()},
}
"""Names that the type of an option may use, besides builtins."""
NOUNS = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "values of True or False"),
    str: ("a text", "texts"),
    pathlib.Path: ("a path", "paths"),
    type(None): ("None", "values of None"),
}
"""What a type holds, for messages: one value, and several."""


def plain_type(kind: Any) -> Any:
    """A type without the ranges in it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return plain_type(parts[0])
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(plain_type(part) for part in parts)]  # noqa: UP007 (the parts are known at run time only)
    if origin is tuple:
        return types.GenericAlias(tuple, tuple(part if part is Ellipsis else plain_type(part) for part in parts))
    return kind


def is_parseable(kind: Any) -> bool:
    """Whether the command line can parse a value of this type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return is_parseable(parts[0])
    if origin in (typing.Union, types.UnionType, tuple):
        return all(part is Ellipsis or is_parseable(part) for part in parts)
    return origin is typing.Literal or kind in (int, float, bool, str, pathlib.Path, type(None))


def from_words(words: Sequence[str], kind: Any) -> Any:
    """The value that words of a command line stand for. Words that are no value of this type stay as they are."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(from_words([word], parts[0]) for word in words)
    if origin is typing.Annotated:
        return from_words(words, parts[0])
    if origin in (typing.Union, types.UnionType):
        if words[0] == "None" and type(None) in parts:
            return None
        return from_words(words, next(part for part in parts if part is not type(None)))
    try:
        return kind(words[0]) if kind in (int, float) else words[0]
    except ValueError:
        return words[0]


def check_value(name: str, value: Any, kind: Any, shown: str = "") -> Any:
    """The value of an option as plain Python: numbers of NumPy become `int` and `float`, lists become tuples.

    Args:
        name: The option, for the message.
        value: The value.
        kind: Its type, with ranges as in `unveil.ranges`.
        shown: The value as the user wrote it; by default as Python writes it.

    Raises:
        UnveilError: If the value is of another type, is none of the choices, or is out of range.
    """
    try:
        return converted(value, kind)
    except ValueError:
        raise UnveilError(f"{name} is {shorten(shown or repr(value), 100)}{expectation(value, kind)}") from None


def converted(value: Any, kind: Any) -> Any:
    """As `check_value`. Raises `ValueError` if the value does not fit."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        value = converted(value, parts[0])
        if all(value in each for each in parts[1:] if isinstance(each, ranges.Range)):
            return value
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return converted(value, part)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in parts):
            return value
    elif origin is tuple:
        return tuple(_elements(value, parts))
    elif kind is type(None):
        if value is None:
            return None
    elif kind is int:
        if isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
    elif kind is float:
        if isinstance(value, Real) and not isinstance(value, bool):
            with suppress(OverflowError):  # of an integer of hundreds of digits
                if math.isfinite(number := float(value)):
                    return number
    elif kind is bool:
        if type(value).__name__ in ("bool", "bool_") or (isinstance(value, Integral) and value in (0, 1)):  # NumPy has its own
            return bool(value)
    elif kind is str:
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
    elif kind is pathlib.Path:
        if isinstance(value, str | os.PathLike):
            return pathlib.Path(value)
    else:
        return value  # a type of a plug-in, which is given in Python only
    raise ValueError


def _elements(value: Any, parts: tuple[Any, ...]) -> list[Any]:
    values = [value] if isinstance(value, str | Real) else list(value) if isinstance(value, list | tuple) else None
    if values is None:
        raise ValueError
    kinds = [parts[0]] * len(values) if parts[-1:] == (Ellipsis,) else list(parts)
    if len(kinds) != len(values):
        raise ValueError
    return [converted(each, kind) for each, kind in zip(values, kinds, strict=True)]


def expectation(value: Any, kind: Any) -> str:
    """The end of the message about a value that does not fit."""
    choices = choices_of(kind)
    near = difflib.get_close_matches(str(value), choices, n=1) if choices else []
    return f": did you mean {near[0]}?" if near else f", expected {described(kind)}"


def choices_of(kind: Any) -> list[str]:
    """The choices of a type that is a `Literal`, or a `Literal` or None; else nothing."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return [choice for part in parts for choice in choices_of(part)]
    return [str(choice) for choice in parts] if origin is typing.Literal else []


def described(kind: Any, many: bool = False) -> str:
    """A type in words: "a number from 0 to 1", "an integer of 1 or more, or None", "one of linear, knn, partial"."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return " ".join([described(parts[0], many), *(str(each) for each in parts[1:] if isinstance(each, ranges.Range))])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(described(part, many) for part in parts)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return described(parts[0], True) if parts[-1:] == (Ellipsis,) else f"{len(parts)} {described(parts[0], True)}"
    return NOUNS[kind][many] if kind in NOUNS else str(kind)
