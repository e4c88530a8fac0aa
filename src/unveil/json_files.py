"""Reads JSON from disk. Any file that is not the expected JSON object gives one sentence that names it. Needs no torch.

Python's parser alone is not enough for files that others may have written: it recurses without a limit of ours, keeps the last of
two equal keys, and takes NaN and 1e999, which no later code expects.
"""

import json
import math
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from unveil.errors import UnveilError

LARGEST = 2**26
"""Maximum number of bytes of a file."""
DEEPEST = 64
"""Maximum depth of lists and objects inside each other. Copying or writing deeper values would exceed the stack of Python."""
CHECKSUM = "checksum"
"""The key of the checksum that `json_text` adds. Disks and copies do flip bits, and a changed digit is still valid JSON."""


def json_text(content: Mapping[str, Any]) -> str:
    """An object as JSON text. Its first line is a checksum, which `read_json` verifies and removes."""
    return json.dumps({CHECKSUM: checksum_of(content), **content}, indent=1) + "\n"


def json_line(content: Mapping[str, Any]) -> str:
    """An object as a line of JSON, with a checksum at its end."""
    return json.dumps({**content, CHECKSUM: checksum_of(content)}) + "\n"


def checksum_of(content: Mapping[str, Any]) -> str:
    """The CRC-32 of an object's values, which does not depend on white space or on the order of keys."""
    plain = json.loads(json.dumps(content))  # tuples are lists, and keys are strings, as in the file
    return f"crc32:{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def is_unchanged(found: dict[str, Any]) -> bool:
    """Removes the checksum of an object, and tells whether it matches. True without one: earlier versions wrote none."""
    expected = found.pop(CHECKSUM, None)
    return expected is None or checksum_of(found) == expected


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UnveilError: If there is no such file, it cannot be read, is larger than `largest` bytes, or holds anything else than one
            object in UTF-8 with distinct keys and finite numbers, or if it does not match its checksum.
    """
    try:
        raw = read_regular(path, largest)
    except OSError as error:
        raise UnveilError(f"{path} cannot be read: {error.strerror or error}") from None
    found = parse_json(raw, str(path))
    if not is_unchanged(found):
        raise UnveilError(f"{path} is damaged: its checksum does not match (if you edited it, delete its line {CHECKSUM!r})")
    return found


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a regular file. Raises `OSError` for a folder or a device, and `UnveilError` for a larger file."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        raw = file.read(status.st_size) if status.st_size <= largest else b""  # a larger number would be allocated at once
    if status.st_size > largest:
        raise UnveilError(f"{path} has {status.st_size:,} bytes, expected at most {largest:,}")
    return raw


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else, opening a FIFO waits for a writer


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """Parses a JSON object, as `read_json` does; `source` is its name for error messages."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError:
        raise UnveilError(f"{source} is damaged: its lists and objects are more than {DEEPEST} deep") from None
    except UnicodeDecodeError as error:
        raise UnveilError(f"{source} is damaged: byte {error.start:,} is not UTF-8") from None
    except ValueError as error:
        raise UnveilError(f"{source} is damaged: it is not valid JSON ({_one_line(error)})") from None
    if not isinstance(found, dict):
        raise UnveilError(f"{source} is damaged: it holds a JSON {_kind(found)}, expected an object")
    if _is_deeper(found, DEEPEST):
        raise UnveilError(f"{source} is damaged: its lists and objects are more than {DEEPEST} deep")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects lie inside each other more than `limit` times. Looks at one level at a time, without recursion."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _one_line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200]
