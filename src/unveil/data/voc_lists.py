"""The lists of VOC that say which image belongs to which split: ImageSets/Main/train.txt, val.txt, ..., or Segmentation/."""

import os
from collections.abc import Mapping, Sequence, Set

from unveil.data.archives import Archive
from unveil.data.images import IMAGE_SUFFIXES
from unveil.data.split_folders import SPLITS, split_of, without_union
from unveil.errors import UnveilError


def split_lists(archive: Archive, text: str, folder: str, names: Sequence[str]) -> dict[str, set[str]]:
    """The names, without endings, of the images of each split; empty if there are no lists.

    Args:
        archive: The files of DATA.
        text: DATA as the user typed it.
        folder: The folder of the lists below ImageSets/, such as Segmentation.
        names: The images, which lines of the lists may name.
    """
    known = {stem_of(name) for name in names}
    place = f"/imagesets/{folder}/".lower()
    found = [i for i, name in enumerate(archive.names) if place in f"/{name.lower()}" and name.lower().endswith(".txt")]
    splits = {i: split for i in found if (split := split_of(stem_of(archive.names[i])))}
    kept = without_union({archive.names[i]: split for i, split in splits.items()})
    lists: dict[str, set[str]] = {}
    for i, split in splits.items():
        if archive.names[i] in kept:
            lines = archive.read_text(i, text).decode("utf-8-sig", "replace").splitlines()
            lists.setdefault(split, set()).update(_listed(line, known) for line in lines if line.strip())
    return lists


def _listed(line: str, known: Set[str]) -> str:
    """The image on a line of a list: all of the line, or its first word, as in "000012 -1"; without the suffix of an image."""
    names = [os.path.splitext(name) for name in (line.strip(), line.split()[0])]
    stems = [stem if end.lower() in IMAGE_SUFFIXES else stem + end for stem, end in names]
    return next((stem for stem in stems if stem in known), stems[-1])


def listed_members(names: Sequence[str], lists: Mapping[str, set[str]], folder: str, text: str) -> dict[str, list[int]]:
    """The places in `names` of the images of each split.

    Raises:
        UnveilError: If the lists have none of them, or an image is in two.
    """
    stems = [stem_of(name) for name in names]
    both = next((stem for stem in stems if sum(stem in own for own in lists.values()) > 1), None)
    if both is not None:
        raise UnveilError(f"{text}: {both} is in several lists of ImageSets/{folder}: an image belongs to one split")
    members = {part: [i for i, stem in enumerate(stems) if stem in lists[part]] for part in SPLITS if part in lists}
    members = {part: own for part, own in members.items() if own}
    if not members:
        raise UnveilError(f"{text}: the lists in ImageSets/{folder} have none of its images: expected names such as {stems[0]}")
    return members


def stem_of(name: str) -> str:
    """The name of a file without its folders and its ending."""
    return os.path.splitext(name.rpartition("/")[2])[0]
