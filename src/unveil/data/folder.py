"""A folder of files of any depth, or a single file."""

import os
import stat
from array import array
from pathlib import Path

from unveil.data.archive import Archive
from unveil.data.regular_files import read_file, special_kind
from unveil.errors import UnveilError

SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
"""Their files are made by the kernel: some never end, and some wait for a device."""
RAM_DISK = "/dev/shm"
RUN_FILES = ("run.json", "config.json")
"""The files by which a run folder is known."""


class Folder(Archive):
    """A folder of any depth, or one file. Hidden files are ignored.

    Links to folders are followed, each folder once, so cycles end. A link to a folder in which this folder lies is not followed,
    because it would add files that have nothing to do with it. Nor is a run folder inside the data listed, since figures of
    `unveil reconstruct` are no data.
    """

    def __init__(self, path: Path):
        self.refused = {}
        self._root = os.fspath(path)
        sizes: dict[str, int] = {}
        if path.is_dir():
            self._scan(sizes)
        else:  # one image
            self._root = os.fspath(path.parent)
            sizes[path.name] = path.stat().st_size
        self.names = sorted(sizes)
        self.sizes = array("q", [sizes[name] for name in self.names])

    def _scan(self, sizes: dict[str, int]) -> None:
        visited: set[tuple[int, int]] = set()
        above = _above(self._root)
        folders, links = [""], list[str]()
        while folders or links:  # linked folders last, so that a folder is listed under its own name
            is_link = not folders
            prefix = links.pop() if is_link else folders.pop()
            path = os.path.join(self._root, prefix)
            try:
                status = os.stat(path)
                place = (status.st_dev, status.st_ino)
                if place in visited:
                    continue
                visited.add(place)
                if prefix and (reason := _reason_to_stay_out(path, is_link and place in above)):
                    self.refused[prefix.rstrip("/")] = reason
                    continue
                with os.scandir(path) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                if not prefix:
                    raise UnveilError(f"cannot list the folder {self._root!r}: {error.strerror}") from None
                self.refused[prefix.rstrip("/")] = f"folder cannot be listed: {error.strerror}"
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                try:
                    status = entry.stat()
                    mode = status.st_mode
                    if stat.S_ISREG(mode):
                        sizes[name] = status.st_size
                    elif stat.S_ISDIR(mode):
                        (links if entry.is_symlink() else folders).append(name + "/")
                    else:
                        self.refused[name] = f"not a file, but {'a link to ' * entry.is_symlink()}{special_kind(mode)}"
                except FileNotFoundError:
                    self.refused[name] = "a link to a file that does not exist"
                except OSError as error:
                    self.refused[name] = f"its size cannot be read: {error.strerror}"

    def _read(self, index: int, limit: int) -> bytes:
        return read_file(os.path.join(self._root, self.names[index]), limit)


def _above(root: str) -> set[tuple[int, int]]:
    """The folders in which a folder lies, by device and inode."""
    found = set()
    for parent in Path(os.path.realpath(root)).parents:
        status = os.stat(parent)
        found.add((status.st_dev, status.st_ino))
    return found


def _reason_to_stay_out(path: str, holds_root: bool) -> str:
    """Why a folder below the root is not listed, or ""."""
    if holds_root:
        return "a link to a folder in which this data lies"
    real = os.path.realpath(path) + "/"
    if real.startswith(tuple(f"{folder}/" for folder in SYSTEM_FOLDERS)) and not real.startswith(f"{RAM_DISK}/"):
        return "a folder of the system, not of images"
    if all(os.path.isfile(os.path.join(path, name)) for name in RUN_FILES):
        return "a run folder of unveil"
    return ""
