"""Reads files of named tensors without running code in them, and writes such files atomically."""

import argparse
import pickletools
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from unveil.atomic_files import fresh_name, move_into_place, share_with_folder
from unveil.errors import UnveilError
from unveil.json_files import parse_json
from unveil.models.weights import one_line, read_metadata, read_weights, write_weights
from unveil.train.checkpoint import Tensors

__all__ = ["one_line"]
LARGEST_PICKLE = 2**26
"""Maximum bytes of the pickle in a torch.save file, which describes its tensors and does not hold their values."""


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a regular file; nothing of a folder, a FIFO or a device, of which opening may wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        return b""
    with path.open("rb") as file:
        return file.read(count)


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
    found = load_pickle(path)
    state = found.get("model", found) if isinstance(found, dict) else found
    if not (isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        keys = ", ".join(repr(key)[:40] for key in list(found)[:8]) if isinstance(found, dict) else ""
        kind = f"a dict with {keys}" if keys else type(found).__name__
        raise UnveilError(f'{path} holds {kind}, expected named tensors, or {{"model": named tensors}}')
    for name, tensor in state.items():
        refuse_phantom(name, tensor, path)
    return dict(state)


def load_pickle(path: Path) -> Any:
    """The content of a torch.save file. Only tensors and plain values are built; no code in it runs.

    Raises:
        UnveilError: If the file is damaged, would unpack to more than its size, or holds anything else.
    """
    if first_bytes(path, 4) == b"PK\x03\x04":
        check_zip(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which the user cannot change
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or malicious file can raise any exception
        raise UnveilError(refusal(path, error)) from None


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
        raise UnveilError(f"{path} cannot be read as plain tensors: it is damaged ({one_line(error)})") from None
    if damaged is not None:
        raise UnveilError(f"{path} is damaged: the checksum of {damaged} does not match. Copy it again")


def refuse_phantom(name: str, tensor: Tensor, path: Path) -> None:
    """Raises `UnveilError` for a tensor whose values are not all in the file: strides of 0 make gigabytes of a few bytes."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UnveilError(f"{path} is damaged: {name} of shape {tuple(tensor.shape)} has more values than the file holds")


def refusal(path: Path, error: Exception) -> str:
    """Why a pickle was not loaded. torch's own message advises to load it without protection, so it is not quoted."""
    kind = f"{path} cannot be read as plain tensors"
    named = sorted(set(functions_of(path)), key=lambda name: (name.startswith("torch."), name))
    if named:
        shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
        noun = "function" if len(named) == 1 else "functions"
        return f"{kind}: it holds the {noun} {shown}, which loading would run. Nothing was run"
    if isinstance(error, EOFError | OSError | zipfile.BadZipFile) or "PytorchStreamReader" in str(error):
        return f"{kind}: it is damaged or cut"
    return f"{kind}: it is damaged, or holds something else than tensors and plain values"


def functions_of(path: Path) -> list[str]:
    """The functions and classes that a torch.save file names and torch does not allow, such as `posix.system`. Nothing is run."""
    try:
        if first_bytes(path, 4) == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
                with archive.open(name) as file:
                    return globals_of(file)
        with path.open("rb") as file:
            return globals_of(file)
    except Exception:  # a broken file: what was found is not known
        return []


def globals_of(file: IO[bytes]) -> list[str]:
    """The names in a pickle that torch does not allow."""
    allowed = {*torch._weights_only_unpickler._get_allowed_globals(), "argparse.Namespace"}  # type: ignore[attr-defined]
    found, texts = list[str](), list[str]()
    try:
        for code, value, _ in pickletools.genops(file.read(LARGEST_PICKLE)):
            if code.name in ("GLOBAL", "INST"):
                found.append(str(value).replace(" ", "."))
            elif code.name == "STACK_GLOBAL" and len(texts) > 1:
                found.append(".".join(texts[-2:]))
            elif isinstance(value, str):
                texts.append(value)
    except Exception:  # cut: the names before the cut count
        pass
    return [name for name in found if name not in allowed and re.fullmatch(r"[\w.]{1,100}", name)]


def read_header(path: Path, key: str) -> dict[str, Any] | None:
    """The JSON object under a key in the metadata of a .safetensors file; None if there is none."""
    note = read_metadata(path).get(key)
    return None if note is None else parse_json(note, f"the metadata {key!r} of {path}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file with a checksum, atomically; `metadata` goes into its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(path)
    try:
        write_weights(fresh, tensors, metadata or {})
        share_with_folder(fresh)
        move_into_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a `torch.save` file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(path)
    try:
        with fresh.open("wb") as file:  # torch would take its name for that of the archive, and refuse one without an extension
            torch.save(dict(content), file)
        move_into_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
