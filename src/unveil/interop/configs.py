"""Reads configs from JSON, which has no tuples and no paths, and may have options of other versions."""

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from unveil.errors import UnveilError
from unveil.option_types import check_value

Config = TypeVar("Config")


def config_from_json(kind: type[Config], values: Any, owner: str) -> Config:
    """Builds a config from a JSON object. Lists become tuples.

    Args:
        kind: A dataclass.
        values: The JSON object.
        owner: A description of the config, for error messages.

    Raises:
        UnveilError: If the object is missing, or its options do not match the dataclass.
    """
    if not is_dataclass(kind):
        raise UnveilError(f"{owner} cannot be read: its config {kind!r} is not a dataclass")
    if not isinstance(values, Mapping):
        raise UnveilError(f"{owner} are missing: the file is damaged, or was written by another version of unveil")
    unknown = sorted(values.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise UnveilError(f"{owner} have options that this version of unveil does not have: {', '.join(unknown)}")
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # a type that only the module of a plug-in can resolve
        hints = {field.name: field.type for field in fields(kind)}
    try:
        plain = {name: check_value(name, from_json(value, hints[name]), hints[name]) for name, value in values.items()}
        config: Config = kind(**plain)
    except UnveilError as error:
        raise UnveilError(f"{owner} are damaged: {error}") from None
    except TypeError as error:
        raise UnveilError(f"{owner} are incomplete: {error}") from None
    return config


def checked(config: Config) -> Config:
    """The same config, which was built from the file of another library. Raises `UnveilError` if a value is out of range."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        check_value(name, getattr(config, name), hint)
    return config


def from_json(value: Any, hint: Any) -> Any:
    """Converts a JSON value to the type `hint`: lists, also nested ones, to tuples, and strings to paths."""
    if isinstance(value, list):
        return tuple(from_json(x, None) for x in value)
    return Path(value) if isinstance(value, str) and Path in (hint, *typing.get_args(hint)) else value
