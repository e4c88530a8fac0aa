"""What the JSON files of a run folder hold, as far as later code relies on it. A file that holds something else is damaged."""

import math
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Union

from unveil.errors import UnveilError
from unveil.plain_text import shorten

Numbers = dict[str, float | None]
Shape = dict[str, Any]
RUN: Shape = {
    "format": int,
    "kind": str,
    "config": dict,
    "data": dict,
    "encoder": dict[str, str],
    "teacher": dict[str, str],
    "extensions": list[dict[str, float]],
    "inputs": dict[str, str],
    "command": str,
    "commit": str | None,
    "started": str,
    "versions": dict[str, str],
    "hardware": dict,
    "world_size": int,
}
CONFIG: Shape = {
    "model": str | None,
    "method": str,
    "class": str | None,
    "epochs": float,
    "seed": int,
    "batch_size": int,
    "held_out": int,
}
DATA: Shape = {
    "name": str,
    "path": str | None,
    "fingerprint": str | None,
    "count": int | None,
    "texts": int | None,
    "size": list[int] | None,
    "classes": list[str] | None,
}
HARDWARE: Shape = {"host": str, "platform": str, "cores": int | None, "gpus": list[str]}
RESULTS: Shape = {
    "features": dict[str, dict[str, float]] | None,
    "judged_on": dict | None,
    "spread": dict[str, dict[str, float]] | None,
    "width": int,
    "held_out": Numbers | None,
    "words": Numbers | None,
    "bleu": dict[str, dict[str, float]] | None,
    "beams": int,
    "score": dict | None,
    "primary": str | None,
    "samples": str,
    "classes": list[str] | None,
    "unseen_classes": dict[str, int] | None,
    "seconds": float | None,
    "cost": dict | None,
    "images_seen": int | None,
    "sequences_seen": int | None,
    "task": str,
    "trained_on": int,
    "skipped": int,
    "unreadable": dict[str, int] | None,
    "kept_aside": bool,
    "encoder": dict[str, str] | None,
    "data": dict | None,
}
JUDGED: Shape = {"train": int, "test": int, "classes": int, "independent": int | None, "unseen_classes": dict[str, int] | None}
SCORE: Shape = {
    "top1": float,
    "top5": float,
    "per_class": list[float | None] | None,
    "confusion": list[list[int]] | None,
    "count": int | None,
    "independent": int | None,
}
COST: Shape = {"seconds": float | None, "memory": float | None, "planned": dict[str, float | None]}
"""The kinds of values by key. Other keys may hold anything."""


def check_run(facts: Mapping[str, Any], path: Path) -> None:
    """Raises `UnveilError` if the content of a `run.json` has values of another kind."""
    check(facts, RUN, path)
    for key, shape in {"config": CONFIG, "data": DATA, "hardware": HARDWARE}.items():
        check(facts.get(key) or {}, shape, path, f"{key}.")


def check_results(results: Mapping[str, Any], path: Path) -> None:
    """Raises `UnveilError` if the content of a `results.json` has values of another kind."""
    check(results, RESULTS, path)
    for key, shape in {"score": SCORE, "judged_on": JUDGED, "cost": COST}.items():
        check(results.get(key) or {}, shape, path, f"{key}.")


@contextmanager
def reading_results(folder: Path) -> Iterator[None]:
    """A context that draws the results of a run folder, which may be of any version and have been edited.

    Raises:
        UnveilError: Instead of the exceptions of values that are each of the right kind, but do not fit together.
    """
    try:
        yield
    except UnveilError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = shorten(f"{type(error).__name__}: {error}")
        path = folder / "results.json"
        raise UnveilError(f"{path}, or the run.json beside it, has values that do not fit together ({reason})") from error


def check(found: Mapping[str, Any], shape: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Raises `UnveilError` for the first key whose value is not of the kind in `shape`."""
    for key, kind in shape.items():
        if key in found and not fits(found[key], kind):
            raise UnveilError(f"{path} is damaged: {prefix}{key} is {shorten(repr(found[key]), 60)}, expected {words_of(kind)}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a kind: a type, `X | None`, `list[X]` or `dict[str, X]`. An integer is also a `float`."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, parts[1]) for each in value.values())
    if kind is type(None):
        return value is None
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool) and is_number(value)
    return isinstance(value, kind)


def is_number(value: float) -> bool:
    """Whether a number of JSON is one that can be computed with: finite, and an integer of 64 bits."""
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def words_of(kind: Any) -> str:
    """A kind of values in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(words_of(part) for part in parts)
    if origin is list:
        return f"a list of {words_of(parts[0])}"
    if origin is dict:
        return f"an object of {words_of(parts[1])}"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", dict: "an object", type(None): "null"}
    return names[kind]
