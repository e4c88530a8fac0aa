"""Reads files of `torch.save`, which are pickles: a format in which a file can name functions for its reader to call.

A file is looked at before torch reads it. torch then builds nothing but tensors and plain values, so no code in a file ever runs.
"""

import argparse
import contextlib
import io
import pickletools
import stat
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UnveilError
from unveil.models.weights import one_line
from unveil.plain_text import printable
from unveil.train.checkpoint import Tensors

SHARED = 4
"""Tensors may share their values in a file, but not so that they take more than this many times its size."""
TYPES = ("Size", "device")
HARMLESS = {
    "argparse.Namespace",
    "collections.OrderedDict",
    "collections.Counter",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "_codecs.encode",
    "builtins.set",
    "builtins.complex",
    "__builtin__.set",
    "__builtin__.complex",
}
"""What a pickle of tensors may name besides `torch._utils._rebuild...`, storages and types. torch checks each call once more."""
LARGEST_PICKLE = 2**26
"""Maximum bytes of the pickle in a torch.save file, which describes its tensors and does not hold their values."""


OLD_PICKLES = 5
"""A file from before torch 1.6 begins with this many pickles. The values of its tensors follow."""


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a regular file; nothing of a folder, a FIFO or a device, of which opening may wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        return b""
    with path.open("rb") as file:
        return file.read(count)


def read_pickled_tensors(path: Path) -> Tensors:
    """The named tensors of a `torch.save` file, in which they may be under the key "model" or "state_dict".

    Raises:
        UnveilError: If the file is damaged, or holds anything other than plain values.
    """
    found, size = load_pickle(path), path.stat().st_size
    state = found.get("model", found.get("state_dict", found)) if isinstance(found, dict) else found
    if not (isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        keys = ", ".join(repr(key)[:40] for key in list(found)[:8]) if isinstance(found, dict) else ""
        kind = f"a dict with {keys}" if keys else type(found).__name__
        raise UnveilError(f'{path} holds {kind}, expected named tensors, or {{"model": named tensors}}')
    for name, tensor in state.items():
        refuse_phantom(name, tensor, path)
    values = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if values > SHARED * size + 2**20:
        raise UnveilError(f"{path} is damaged: its tensors have {values:,} bytes, but the file has {size:,}")
    return dict(state)


def load_pickle(path: Path) -> Any:
    """The content of a torch.save file. Only tensors and plain values are built; no code in it runs.

    Raises:
        UnveilError: If the file is damaged, would unpack to more than its size, or holds anything else.
    """
    if first_bytes(path, 4) == b"PK\x03\x04":
        check_zip(path)
    named = functions_of(path)
    if named:
        raise UnveilError(refusal(path, named))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which the user cannot change
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or malicious file can raise any exception
        damaged = isinstance(error, EOFError | OSError) or "PytorchStreamReader" in str(error)
        fault = "it is damaged or cut" if damaged else "it is damaged, or holds something else than tensors and plain values"
        raise UnveilError(f"{path} cannot be read as plain tensors: {fault}") from None


def check_zip(path: Path) -> None:
    """Compares the table of a zip archive with the file, and its content with its checksums, before torch reads it.

    Raises:
        UnveilError: If it would unpack to more than its size, which torch.save never does, or is damaged.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UnveilError(
                    f"{path} is refused: it is compressed, and unpacks from {size:,} to {unpacked:,} bytes; torch.save does not "
                    f"compress, so save it again"
                )
            damaged = archive.testzip() if any(entry.CRC for entry in entries) else None  # torch can be told to compute none
    except UnveilError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, NotImplementedError) as error:
        # NotImplementedError: zipfile does not know the compression, or the version
        raise UnveilError(f"{path} cannot be read as plain tensors: it is damaged ({one_line(error)})") from None
    if damaged is not None:
        raise UnveilError(f"{path} is damaged: the checksum of {damaged} does not match. Copy it again")


def refuse_phantom(name: str, tensor: Tensor, path: Path) -> None:
    """Raises `UnveilError` for a tensor whose values are not all in the file: strides of 0 make gigabytes of a few bytes."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UnveilError(f"{path} is damaged: {name} of shape {tuple(tensor.shape)} has more values than the file holds")


def refusal(path: Path, functions: list[str]) -> str:
    """Why a pickle is not loaded. torch's own message advises to load it without protection, so it is not quoted."""
    named = sorted(set(functions), key=lambda name: (name.startswith("torch."), name))
    shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    noun = "function" if len(named) == 1 else "functions"
    return f"{path} cannot be read as plain tensors: it holds the {noun} {shown}, which loading would run. Nothing was run"


def functions_of(path: Path) -> list[str]:
    """The functions and classes that a torch.save file names besides those of tensors, such as `posix.system`. Nothing is run."""
    try:
        if first_bytes(path, 4) != b"PK\x03\x04":
            with path.open("rb") as file:
                return globals_of(file.read(LARGEST_PICKLE))
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
            return [found for name in pickles for found in globals_of(archive.open(name).read(LARGEST_PICKLE))]
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return []  # damaged, encrypted, or compressed in a way that zipfile does not know: torch cannot read it either


def globals_of(raw: bytes) -> list[str]:
    """The names of functions and classes in pickles, one after the other, that are not needed for tensors."""
    found, stream = list[str](), io.BytesIO(raw)
    with contextlib.suppress(Exception):  # after the last pickle, or where it is cut
        for _ in range(OLD_PICKLES):
            texts = list[str]()
            for code, value, _ in pickletools.genops(stream):
                if code.name in ("GLOBAL", "INST"):
                    found.append(str(value).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    found.append(".".join(texts[-2:]))
                elif isinstance(value, str):
                    texts.append(value)
    return [printable(name)[:100] for name in found if not is_harmless(name)]


def is_harmless(name: str) -> bool:
    """Whether a name in a pickle only builds tensors and plain values, without more memory than the file has."""
    module, _, attribute = name.rpartition(".")
    if module in ("torch", "torch.storage"):
        return (
            attribute.endswith(("Storage", "Tensor"))
            or isinstance(getattr(torch, attribute, None), torch.dtype)
            or attribute in TYPES
        )
    return name in HARMLESS or (module == "torch._utils" and attribute.startswith("_rebuild"))
