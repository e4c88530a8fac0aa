"""Reads files of named tensors without running code in them, and writes such files atomically."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.atomic_files import replacing, share_with_folder
from unveil.errors import UnveilError
from unveil.interop.torch_files import first_bytes, read_pickled_tensors
from unveil.json_files import parse_json, read_json
from unveil.models.weights import read_metadata, read_weights, write_weights
from unveil.train.checkpoint import Tensors


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like a safetensors file: eight bytes of length, then a JSON object."""
    return first_bytes(path, 9)[8:] == b"{"


def is_torch(path: Path) -> bool:
    """Whether a file starts like a file of `torch.save`: a zip archive, or a pickle (before torch 1.6)."""
    start = first_bytes(path, 4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def read_tensors(path: Path) -> Tensors:
    """The named tensors of a .safetensors file, or of a `torch.save` file, in which they may be under the key "model".

    Raises:
        UnveilError: If the file is neither, is damaged, does not match its checksum, or holds anything other than plain values.
    """
    if not path.is_file():
        raise UnveilError(f"{path} does not exist: check the path")
    if is_safetensors(path):
        return read_weights(path)[0]
    if not is_torch(path):
        raise UnveilError(f"{path} is neither a .safetensors file nor a torch.save file")
    return read_pickled_tensors(path)


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The files of the weights in a folder, of which the first that exists is taken; or their indices, if they are in several files."""


def read_folder(folder: Path, model: str) -> Tensors:
    """The named tensors of a folder of transformers or timm, in one file or in several with an index.

    Args:
        folder: The folder.
        model: What it should hold, for messages.

    Raises:
        UnveilError: If there are none, or a file is missing, damaged, or outside of the folder.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return read_shards(folder / f"{name}.index.json")
    raise UnveilError(f"{folder} has a config.json of a {model}, but no {' or '.join(WEIGHTS)}, nor an index of shards")


def read_shards(index: Path) -> Tensors:
    """The tensors of several files, by the index that says which file has which tensor."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and name for name in places.values()):
        raise UnveilError(f"{index} is damaged: it has no weight_map from the names of tensors to files")
    found: Tensors = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UnveilError(f"{index} names the file {name!r}, expected files in its own folder")
        tensors = read_tensors(index.parent / name)
        wanted = {tensor for tensor, place in places.items() if place == name}
        if tensors.keys() != wanted:
            odd = sorted(tensors.keys() ^ wanted)[0]
            raise UnveilError(f"{index} does not fit {name}: the tensor {odd} is in only one of them")
        found |= tensors
    return found


def read_header(path: Path, key: str) -> dict[str, Any] | None:
    """The JSON object under a key in the metadata of a .safetensors file; None if there is none."""
    note = read_metadata(path).get(key)
    return None if note is None else parse_json(note, f"the metadata {key!r} of {path}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file with a checksum, atomically; `metadata` goes into its header."""
    with replacing(path, sum(value.numel() * value.element_size() for value in tensors.values())) as fresh:
        write_weights(fresh, tensors, metadata or {})
        share_with_folder(fresh)


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a `torch.save` file atomically."""
    with replacing(path) as fresh, fresh.open("wb") as file:  # by its name, torch would refuse a file without an extension
        torch.save(dict(content), file)
