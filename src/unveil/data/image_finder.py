"""Finds the images that annotations name; and what every format of annotations tells about a part of DATA."""

import os
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
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


class _Fit(NamedTuple):
    """How well the folders of an image fit: the largest is meant."""

    agrees: bool
    """Whether no folder of the name contradicts those of the image."""
    same: int
    """How many of its last folders the name has."""
    of_split: bool
    """Whether a folder is called after a split of the annotations."""
    shared: int
    """How many of its first folders the annotations have."""
    height: int
    """The less deep, the larger."""


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
        found, agrees = self._best(self._by_file.get(file, []), "/".join(folders), beside, splits)
        if len(found) > 1 and agrees:
            paths = " and ".join(self.archive.names[i] for i in found[:2])
            raise UnveilError(f"{self.text}: {beside} names the image {name}, which may be {paths}: write its folder into the name")
        return Found(found[0], agrees) if len(found) == 1 else None

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
        found, _ = self._best(self._by_stem.get(stem, []), "", beside, splits)
        return found[0] if len(found) == 1 else None

    def elsewhere(self, name: str) -> str:
        """An image of this name in whatever folder; "" if there is none."""
        found = self._by_file.get(name.replace("\\", "/").rpartition("/")[2], [])
        return self.archive.names[found[0]] if found else ""

    def ids(self, images: Sequence[int]) -> list[str]:
        """Ids for images that annotations do not number: the file without its suffix, or the path if several are called so."""
        paths = [self.archive.names[i] for i in images]
        stems = [os.path.splitext(path.rpartition("/")[2])[0] for path in paths]
        counts = Counter(stems)
        return [stem if counts[stem] == 1 else path for stem, path in zip(stems, paths, strict=True)]

    def _best(self, candidates: Sequence[int], folders: str, beside: str, splits: Set[str]) -> tuple[list[int], bool]:
        """The candidates that fit best, and whether their folders agree with the name."""
        place, known = beside.rpartition("/")[0], frozenset(splits)
        fits = {i: _fit(self.archive.names[i].rpartition("/")[0], folders, place, known) for i in candidates}
        best = max((fit for fit in fits.values() if fit is not None), default=None)
        return [i for i, fit in fits.items() if fit is not None and fit == best], best is not None and best.agrees


@lru_cache(2**16)
def _fit(path: str, named: str, beside: str, splits: frozenset[str]) -> _Fit | None:
    """How well an image in the folder `path` fits a name with the folders `named` in annotations in the folder `beside`.

    None if it is in the folder of another split, which the name does not have.
    """
    own, folders, others = (steps.split("/") if steps else [] for steps in (path, named, beside))
    same = _shared(own[::-1], folders[::-1])
    shared = _shared(own, others)
    rest = own[min(shared, len(own) - same) : len(own) - same]  # of which neither the name nor the annotations tell
    below = set[str]().union(*map(splits_of, own[shared:]))
    if splits and below.isdisjoint(splits) and any(map(splits_of, rest)):
        return None
    return _Fit(not rest or same == len(folders), same, any(splits_of(step) & splits for step in own), shared, -len(own))


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many folders two paths have in common, from the first on."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
