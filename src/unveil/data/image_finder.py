"""Finds the images that annotations name; and what every format of annotations tells about a part of DATA."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from unveil.data.archive_parts import candidates_or_error
from unveil.data.archives import Archive
from unveil.data.label_table import examples
from unveil.data.object_rows import Told
from unveil.data.split_folders import split_of
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


class ImageFinder:
    """Finds images by the names that annotations have for them."""

    def __init__(self, text: str, archive: Archive) -> None:
        self.text, self.archive = text, archive
        self.candidates = candidates_or_error(text, archive)
        self._by_file: dict[str, list[int]] = {}
        self._by_stem: dict[str, list[int]] = {}
        for index in self.candidates:
            self._by_file.setdefault(archive.names[index].rpartition("/")[2], []).append(index)

    def find(self, name: str, beside: str, part: str) -> int | None:
        """The image of this name; None if there is none.

        Args:
            name: A file, or a path that ends with it. As much of the end of the path counts as any image has.
            beside: The annotation file, for which the images in the nearest folder are meant.
            part: The split, for which the images in a folder of that split are meant.

        Raises:
            UnveilError: If it may be one of several images.
        """
        steps = [step for step in name.replace("\\", "/").split("/") if step not in ("", ".", "..")]
        found = self._by_file.get(steps[-1], []) if steps else []
        for depth in range(2, len(steps) + 1):
            deeper = [i for i in found if self.archive.names[i].split("/")[-depth:] == steps[-depth:]]
            if not deeper:
                break
            found = deeper
        for narrower in (partial(self._of_split, part=part), partial(self._nearest, beside=beside)):
            found = narrower(found) if len(found) > 1 else found
        if len(found) > 1:
            paths = " and ".join(self.archive.names[i] for i in found[:2])
            raise UnveilError(f"{self.text}: {beside} names the image {name}, which may be {paths}: write its folder into the name")
        return found[0] if found else None

    def with_stem(self, stem: str, beside: str) -> int | None:
        """The image that is called like an annotation file, but for the suffix; None if there is none, or several."""
        if not self._by_stem:
            for index in self.candidates:
                self._by_stem.setdefault(self.archive.names[index].rpartition("/")[2].rpartition(".")[0], []).append(index)
        found = self._by_stem.get(stem, [])
        found = self._nearest(found, beside) if len(found) > 1 else found
        return found[0] if len(found) == 1 else None

    def _of_split(self, found: Sequence[int], part: str) -> list[int]:
        same = [i for i in found if any(split_of(step) == part for step in self.archive.names[i].split("/")[:-1])]
        return same or list(found)

    def _nearest(self, found: Sequence[int], beside: str) -> list[int]:
        """The images of the folder that has the most in common with that of the annotations and, among those, is the least deep."""
        folder = beside.split("/")[:-1]

        def nearness(index: int) -> tuple[int, int]:
            steps = self.archive.names[index].split("/")[:-1]
            differ = next((i for i, (a, b) in enumerate(zip(steps, folder, strict=False)) if a != b), min(len(steps), len(folder)))
            return differ, -len(steps)

        most = max(map(nearness, found))
        return [i for i in found if nearness(i) == most]


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
