"""Atomic writes: after a kill or a power cut, a file is either complete or missing. Needs no torch.

A file is written under a temporary name in the same folder, synced to the disk, and then renamed. A reader gets the old file or the
new one, but never a partial one.
"""

import hashlib
import os
import uuid
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    fresh = fresh_name(path)
    try:
        fresh.write_text(text, encoding="utf-8", errors="surrogateescape")  # the text may quote file names, which may be any bytes
        move_into_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def fresh_name(path: Path) -> Path:
    """An unused hidden name in the folder of `path`, for a file that will be renamed to `path`."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")


def move_into_place(fresh: Path, path: Path) -> None:
    """Syncs a file or a folder that was written under a temporary name, and gives it its final name."""
    sync(fresh)
    os.replace(fresh, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Forces the content of a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def share_with_folder(path: Path) -> None:
    """Gives a file the read and write permissions of its folder; safetensors creates files that only their owner can read."""
    path.chmod(path.parent.stat().st_mode & 0o666)
