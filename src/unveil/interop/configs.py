"""Configs from JSON, which knows neither tuples nor which options there are."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from unveil.errors import UnveilError

Config = TypeVar("Config")


def configured(kind: type[Config], values: Any, place: str) -> Config:
    """A config from JSON, with lists as tuples. Raises `UnveilError` for options that it does not have, or lacks."""
    if not isinstance(values, Mapping):
        raise UnveilError(f"{place} is missing: the file is damaged, or of another version of unveil")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - known)
    if unknown:
        raise UnveilError(f"{place} has options that this version of unveil does not know: {', '.join(unknown)}")
    try:
        return kind(**{name: as_tuple(value) for name, value in values.items()})
    except TypeError as error:
        raise UnveilError(f"{place} is not complete: {error}") from None


def as_tuple(value: Any) -> Any:
    """Lists, also inside of lists, as tuples."""
    return tuple(as_tuple(x) for x in value) if isinstance(value, list) else value
