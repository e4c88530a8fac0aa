"""Reads files of named tensors without running code in them, and writes such files atomically."""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil.atomic_files import fresh_name, move_into_place, share_with_folder
from unveil.errors import UnveilError
from unveil.json_files import parse_json
from unveil.train.checkpoint import Tensors


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like a safetensors file: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def is_torch(path: Path) -> bool:
    """Whether a file starts like a file of `torch.save`: a zip archive, or a pickle (before torch 1.6)."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def read_tensors(path: Path) -> Tensors:
    """The named tensors of a .safetensors file, or of a `torch.save` file, in which they may be under the key "model".

    Raises:
        UnveilError: If the file is neither, is damaged, or holds anything other than plain values.
    """
    if not path.is_file():
        raise UnveilError(f"{path} does not exist: check the path")
    if is_safetensors(path):
        try:
            tensors: Tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UnveilError(f"{path} is damaged: {one_line(error)}") from None
        return tensors
    if not is_torch(path):
        raise UnveilError(f"{path} is neither a .safetensors file nor a torch.save file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which the user cannot change
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or malicious file can raise any exception
        raise UnveilError(
            f"{path} cannot be read as plain tensors; anything else is refused because it could run code: {one_line(error)}"
        ) from None
    state = found.get("model", found) if isinstance(found, dict) else found
    if not (isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        keys = ", ".join(map(repr, list(found)[:8])) if isinstance(found, dict) else ""
        kind = f"a dict with {keys}" if keys else type(found).__name__
        raise UnveilError(f'{path} holds {kind}, expected named tensors, or {{"model": named tensors}}')
    return dict(state)


def one_line(error: Exception) -> str:
    """The first line of an error message."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def read_header(path: Path, key: str) -> dict[str, Any] | None:
    """The JSON object under a key in the metadata of a .safetensors file; None if there is none."""
    try:
        with safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnveilError(f"{path} is damaged: {one_line(error)}") from None
    return None if note is None else parse_json(note, f"the metadata {key!r} of {path}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file atomically; `metadata` goes into its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(path)
    try:
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, fresh, metadata={"format": "pt", **(metadata or {})})
        share_with_folder(fresh)
        move_into_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a `torch.save` file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(path)
    try:
        torch.save(dict(content), fresh)
        move_into_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
