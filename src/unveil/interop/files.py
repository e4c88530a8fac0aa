"""Files of named tensors: read without running anything that they hold, and written whole or not at all."""

import argparse
import json
import os
import sys
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil.errors import UnveilError
from unveil.train.checkpoint import share_with_folder, sync

Tensors = dict[str, Tensor]


def tell(text: str) -> None:
    """Says something on the standard error stream."""
    print(text, file=sys.stderr)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def is_torch(path: Path) -> bool:
    """Whether a file begins as those of `torch.save` do: a zip archive, or, before torch 1.6, a pickle."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file, or of one of `torch.save`: a mapping of names, or one under the key "model".

    Raises:
        UnveilError: When it is neither, is damaged, or holds what could run code.
    """
    if not path.is_file():
        raise UnveilError(f"there is no file {path}")
    if is_safetensors(path):
        try:
            tensors: Tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UnveilError(f"{path} is damaged: {one_line(error)}") from None
        return tensors
    if not is_torch(path):
        raise UnveilError(f"{path} is neither a .safetensors file nor one of torch.save: it begins otherwise")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles: no user can change them
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can raise anything here
        raise UnveilError(
            f"{path} cannot be read as plain tensors, and nothing else is read, as it could run code: {one_line(error)}"
        ) from None
    state = found.get("model", found) if isinstance(found, dict) else found
    if not (isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        keys = ", ".join(map(repr, list(found)[:8])) if isinstance(found, dict) else ""
        kind = f"a dict with {keys}" if keys else type(found).__name__
        raise UnveilError(f'{path} holds {kind}, expected {{"model": named tensors}}, or named tensors alone')
    return dict(state)


def one_line(error: Exception) -> str:
    """The first sentence of an error."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def read_note(path: Path, key: str) -> dict[str, Any] | None:
    """The JSON object that stands under a key in the header of a .safetensors file; None where there is none."""
    try:
        with safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnveilError(f"{path} is damaged: {one_line(error)}") from None
    return None if note is None else parse_object(note, f"the note {key!r} of {path}")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises `UnveilError` where it holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnveilError(f"{path} cannot be read: {one_line(error)}") from None
    return parse_object(text, str(path))


def parse_object(text: str, source: str) -> dict[str, Any]:
    """A JSON object. Raises `UnveilError` for any other text."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UnveilError(f"{source} is no valid JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UnveilError(f"{source} holds a JSON {type(found).__name__}, expected an object")
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file in one move; `notes` go into its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(path)
    try:
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, fresh, metadata={"format": "pt", **(notes or {})})
        share_with_folder(fresh)
        settle(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of `torch.save` in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(path)
    try:
        torch.save(dict(content), fresh)
        settle(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def fresh_name(path: Path) -> Path:
    """A name beside a path that nothing has."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")


def settle(fresh: Path, path: Path) -> None:
    """Gives a file that was written under a temporary name its own."""
    sync(fresh)
    os.replace(fresh, path)
    sync(path.parent)
