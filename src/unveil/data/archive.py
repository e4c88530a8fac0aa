"""What folders, tar files and zip files have in common: a list of files that any thread can read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from unveil.data.images import IMAGE_SUFFIXES, image_format
from unveil.data.pixels import Unreadable
from unveil.data.regular_files import FILE_LIMIT
from unveil.errors import UnveilError

LARGE = 2**20
"""A larger file is not read whole before its first bytes are looked at."""
TEXT_LIMIT = 2**28
"""Maximum size of a file with labels: enough for ten million rows."""
SAMPLE_TEXT_LIMIT = 2**24
"""Maximum size of the label file of one sample; a JSON file may hold the image as well."""


class Archive(ABC):
    """Named files with their sizes, sorted by the code points of their names. `refused` maps excluded files to the reason."""

    names: list[str]
    sizes: Sequence[int]
    refused: dict[str, str]

    def read(self, index: int, limit: int = FILE_LIMIT) -> bytes:
        """The first `limit` bytes of a file; safe to call from several threads.

        Of a large file with the suffix of an image that does not begin like one, only the first bytes are read.

        Raises:
            OSError: If the file cannot be read.
            Unreadable: If the archive is damaged at this file, or the file cannot be an image.
        """
        size = self.sizes[index]
        is_large = min(limit, size) > LARGE and self.names[index].lower().endswith(IMAGE_SUFFIXES)
        if is_large and image_format(self._read(index, 32)) is None:
            raise Unreadable("not an image")
        return self._read(index, limit)

    def read_text(self, index: int, where: str, limit: int = TEXT_LIMIT) -> bytes:
        """The bytes of a file with labels, names of classes, or texts.

        Args:
            index: The file.
            where: DATA as the user typed it, for error messages.
            limit: Its maximum size in bytes.

        Raises:
            UnveilError: If it cannot be read, or is larger.
        """
        name, size = self.names[index], self.sizes[index]
        if size > limit:
            raise UnveilError(f"{where}: {name} has {size:,} bytes, expected at most {limit:,}")
        try:
            return self.read(index)
        except Unreadable as error:
            raise UnveilError(f"{where}: {name} cannot be read: {error.reason}") from None
        except OSError as error:
            raise UnveilError(f"{where}: {name} cannot be read: {error.strerror or error}") from None

    @abstractmethod
    def _read(self, index: int, limit: int) -> bytes:
        """`read` without a look at what kind of file it is."""


def clean_name(name: str) -> str:
    """The name of a member as a relative path without `.` and `..`, or "" if it is hidden."""
    if name and "/." not in name and "//" not in name and "__MACOSX" not in name and name[0] not in "./" and name[-1] != "/":
        return name  # the usual case, ten times faster
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "" if any(part.startswith(".") or part == "__MACOSX" for part in parts) else "/".join(parts)


def damaged(path: Path, error: Exception) -> UnveilError:
    """The error for an archive that cannot be listed."""
    if isinstance(error, OSError) and error.errno is not None:
        return UnveilError(f"cannot read {str(path)!r}: {error.strerror}")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RecursionError):
        reason = "its headers are nested too deeply"
    return UnveilError(f"{str(path)!r} is not a complete tar or zip ({reason}): if it was downloaded, download it again")
