"""Files of weights as safetensors, with a checksum over all that they say.

A byte that flips on a disk or on the way changes a weight, or a number in the config, and the file still loads. So the metadata of
each file holds a SHA-256 over the rest of the metadata and over the name, type, shape and bytes of each tensor. Files of earlier
versions and of other libraries have none, and are not verified.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unveil.errors import UnveilError

CHECKSUM = "unveil_sha256"
"""The key of the checksum in the metadata."""
Shapes = dict[str, tuple[int, ...]]


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of tensors and metadata as hexadecimal digits; the order of names does not matter."""
    found = hashlib.sha256()
    for key in sorted(metadata.keys() - {CHECKSUM, "format"}):
        found.update(f"{key}\0{metadata[key]}\0".encode(errors="surrogatepass"))
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode(errors="surrogatepass"))
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a new file with its checksum."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, path, metadata={"format": "pt", **metadata, CHECKSUM: digest(plain, metadata)})


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        UnveilError: If the file is damaged, or does not match its checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnveilError(f"{path} is damaged: {one_line(error)}") from None
    if CHECKSUM in metadata and digest(tensors, metadata) != metadata[CHECKSUM]:
        raise UnveilError(f"{path} is damaged: its content does not match its checksum, so copy it again")
    return tensors, metadata


def read_shapes(path: Path) -> Shapes:
    """The names and the shapes of the tensors of a file, from its header. Raises `UnveilError` if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UnveilError(f"{path} is damaged: {one_line(error)}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, from its header. Raises `UnveilError` if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UnveilError(f"{path} is damaged: {one_line(error)}") from None


def refuse_non_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises `UnveilError` if a weight is NaN or infinite."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UnveilError(
            f"{source} has weights that are not finite, in {bad[0]}{others}: the training diverged, so use another run or "
            f"an earlier checkpoint"
        )


def one_line(error: Exception) -> str:
    """The first line of an error message."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
