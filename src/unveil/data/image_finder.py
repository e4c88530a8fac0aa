"""Finds the images that annotations name; and what every format of annotations tells about a part of DATA."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from unveil.data.archive_parts import candidates_or_error
from unveil.data.archives import Archive
from unveil.data.label_table import examples
from unveil.data.object_rows import Told
from unveil.data.split_folders import splits_of
from unveil.errors import UnveilError
from unveil.plain_text import count_of


@dataclass
class Part:
    """The images of one split, with what their annotations tell."""

    images: list[int]
    """Their indices in the archive."""
    told: Told
    classes: list[str]
    content: bytes
    """What the annotations hold, for the fingerprint."""
    notes: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    """Files that are not used, with the reason."""


class Found(NamedTuple):
    """The image that annotations name."""

    image: int
    """Its index in the archive."""
    agrees: bool
    """Whether no folder in the name contradicts those of the image, as seq2/1.png contradicts seq1/1.png."""


class ImageFinder:
    """Finds images by the names that annotations have for them."""

    def __init__(self, text: str, archive: Archive) -> None:
        self.text, self.archive = text, archive
        self.candidates = candidates_or_error(text, archive)
        self._by_file: dict[str, list[int]] = {}
        self._by_stem: dict[str, list[int]] = {}
        for index in self.candidates:
            file = archive.names[index].rpartition("/")[2]
            self._by_file.setdefault(file, []).append(index)
            self._by_stem.setdefault(os.path.splitext(file)[0], []).append(index)

    def find(self, name: str, beside: str, splits: Set[str]) -> Found | None:
        """The image of this name; None if there is none.

        Args:
            name: A file, or a path that ends with it. As much of the end of the path counts as any image has.
            beside: The annotation file, for which the images in the nearest folder are meant.
            splits: The splits of the annotations. Images in the folder of another split are not meant, unless the name has it.

        Raises:
            UnveilError: If it may be one of several images.
        """
        *folders, file = [step for step in name.replace("\\", "/").split("/") if step not in ("", ".", "..")] or [""]
        hits = {i: self._rest(i, folders, beside) for i in self._by_file.get(file, [])}
        hits = {i: rest for i, rest in hits.items() if not self._is_elsewhere(i, rest[1], beside, splits)}
        if not hits:
            return None
        agreements = {i: (not rest or same == len(folders), same) for i, (same, rest) in hits.items()}
        best = max(agreements.values())
        found = [i for i, agreement in agreements.items() if agreement == best]
        for narrower in (partial(self._of_split, splits=splits), partial(self._nearest, beside=beside)):
            found = narrower(found) if len(found) > 1 else found
        if len(found) > 1 and best[0]:
            paths = " and ".join(self.archive.names[i] for i in found[:2])
            raise UnveilError(f"{self.text}: {beside} names the image {name}, which may be {paths}: write its folder into the name")
        return Found(found[0], best[0]) if len(found) == 1 else None

    def find_all(self, names: Sequence[str], beside: str, splits: Set[str]) -> tuple[list[int | None], str]:
        """The image of each name as `find` does it, and a sentence for the user, or "".

        If some names agree with the folders of their images, so do all, and an image in another folder is another image. If none
        does, the images were moved.
        """
        hits = [self.find(name, beside, splits) for name in names]
        moved = [(name, hit.image) for name, hit in zip(names, hits, strict=True) if hit is not None and not hit.agrees]
        if not moved:
            return [hit and hit.image for hit in hits], ""
        if any(hit is not None and hit.agrees and re.search(r"[/\\]", name) for name, hit in zip(names, hits, strict=True)):
            return [hit.image if hit is not None and hit.agrees else None for hit in hits], ""
        name, image = moved[0]
        note = f"{self.text}: {beside} has other folders than the images: {name} is taken to be {self.archive.names[image]}"
        return [hit and hit.image for hit in hits], note

    def with_stem(self, stem: str, beside: str, splits: Set[str]) -> int | None:
        """The image that is called like an annotation file, but for the suffix; None if there is none, or several."""
        found = [i for i in self._by_stem.get(stem, []) if not self._is_elsewhere(i, self._rest(i, (), beside)[1], beside, splits)]
        found = self._nearest(found, beside) if len(found) > 1 else found
        return found[0] if len(found) == 1 else None

    def elsewhere(self, name: str) -> str:
        """An image of this name in whatever folder; "" if there is none."""
        found = self._by_file.get(name.replace("\\", "/").rpartition("/")[2], [])
        return self.archive.names[found[0]] if found else ""

    def ids(self, images: Iterable[int]) -> dict[int, str]:
        """Names for images that annotations do not number: the file without its suffix, or the path if several are called so."""
        paths = {i: self.archive.names[i] for i in images}
        stems = {i: os.path.splitext(path.rpartition("/")[2])[0] for i, path in paths.items()}
        counts = Counter(stems.values())
        return {i: stem if counts[stem] == 1 else paths[i] for i, stem in stems.items()}

    def _rest(self, index: int, folders: Sequence[str], beside: str) -> tuple[int, list[str]]:
        """How many folders of an image a name ends with, and the others, without those that it shares with the annotations."""
        own = self.archive.names[index].split("/")[:-1]
        both = list(zip(reversed(own), reversed(folders), strict=False))
        same = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
        return same, own[min(_shared(own, beside), len(own) - same) : len(own) - same]

    def _is_elsewhere(self, index: int, rest: Sequence[str], beside: str, splits: Set[str]) -> bool:
        """Whether an image is in a folder of another split, which the name does not have."""
        if not splits or not any(map(splits_of, rest)):
            return False
        own = self.archive.names[index].split("/")[:-1]
        return not any(splits_of(step) & splits for step in own[_shared(own, beside) :])

    def _of_split(self, found: Sequence[int], splits: Set[str]) -> list[int]:
        same = [i for i in found if any(splits_of(step) & splits for step in self.archive.names[i].split("/")[:-1])]
        return same or list(found)

    def _nearest(self, found: Sequence[int], beside: str) -> list[int]:
        """The images of the folder that has the most in common with that of the annotations and, among those, is the least deep."""

        def nearness(index: int) -> tuple[int, int]:
            steps = self.archive.names[index].split("/")[:-1]
            return _shared(steps, beside), -len(steps)

        most = max(map(nearness, found))
        return [i for i in found if nearness(i) == most]


def _shared(folders: Sequence[str], beside: str) -> int:
    """How many folders an image has in common with a file, from the outermost on."""
    pairs = list(zip(folders, beside.split("/")[:-1], strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def missing_note(where: str, names: Sequence[str], total: int) -> str:
    """A sentence about images that annotations have, and DATA has not; "" if there are none."""
    if not names:
        return ""
    return f"{where}: left out {len(names):,} of {count_of(total, 'image')}, whose files are missing: {examples(names)}"


def unlisted_note(where: str, names: Sequence[str]) -> str:
    """A sentence about images without annotations; "" if there are none."""
    if not names:
        return ""
    verb = "is" if len(names) == 1 else "are"
    return f"{where}: left out {count_of(len(names), 'image')} that {verb} not in the annotations: {examples(names)}"
