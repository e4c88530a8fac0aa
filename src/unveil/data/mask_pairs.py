"""Which file is the mask of which image, from their paths alone.

images/train/7.jpg       masks/train/7.png                            or annotations/, labels/, SegmentationClass/, ...
train/7.jpg              train_labels/7.png, trainannot/7.png
leftImg8bit/val/7_leftImg8bit.png       gtFine/val/7_gtFine_labelIds.png
7.jpg                    7_mask.png, masks/7.png
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from unveil.data.archives import Archive
from unveil.data.label_table import examples
from unveil.data.split_folders import IMAGE_FOLDERS, MASK_FOLDERS, is_mask_folder
from unveil.plain_text import count_of

SUFFIXES = (
    "",
    "_mask",
    "-mask",
    "_masks",
    "_label",
    "_labels",
    "_seg",
    "_segmentation",
    "_gt",
    "_l",
    "_gtfine_labeltrainids",
    "_gtfine_labelids",
)
"""What the name of a mask has after that of its image; the first one that most masks have counts, for all of them."""
OTHER_SUFFIXES = ("_gtfine_color", "_gtfine_instanceids", "_gtfine_instancetrainids")
"""Of masks that are not of classes."""
OF_CITYSCAPES = "_leftimg8bit"
BESIDE, SUFFIX = "beside", "suffix"
"""Kinds of layouts without a folder of `MASK_FOLDERS`: train_labels/ beside train/, and 7_mask.png beside 7.jpg."""
NO_MASK = "it has no mask"
NO_IMAGE = "a mask without an image"
_BESIDE = re.compile(r"(.+?)[-_ ]?(?:masks?|labels?|annots?|annotations?|gt)")


class Key(NamedTuple):
    """What the paths of an image and of its mask have in common."""

    plain: str
    """In small letters."""
    exact: str


Table = dict[str, list[tuple[str, int]]]
"""The exact keys and the indices of masks, by their plain keys."""


@dataclass
class Pairs:
    """The mask of each image, by their indices in the archive."""

    masks: dict[int, int] = field(default_factory=dict)
    others: set[int] = field(default_factory=set)
    """Further masks of these images, which are not used."""
    notes: list[str] = field(default_factory=list)


def pairs_of(archive: Archive, candidates: Sequence[int]) -> Pairs:
    """The masks of images. All are of one kind: in one folder, and with one suffix, since other masks may have other classes."""
    tables: dict[tuple[str, int], Table] = {}
    for index in candidates:
        for kind, rank, key in mask_keys(archive.names[index]):
            tables.setdefault((kind, rank), {}).setdefault(key.plain, []).append((key.exact, index))
    if not tables:
        return Pairs()
    keys = {index: list(image_keys(archive.names[index])) for index in candidates}
    found = {each: pairs_in(table, keys) for each, table in tables.items()}
    order = [*MASK_FOLDERS, BESIDE, SUFFIX]
    chosen: dict[str, tuple[str, int]] = {}  # the suffix of each kind
    for kind in {kind for kind, _ in found}:
        ranks = sorted(rank for each, rank in found if each == kind and rank < len(SUFFIXES))
        most = max((len(found[kind, rank]) for rank in ranks), default=0)
        if most:
            chosen[kind] = kind, next(rank for rank in ranks if 2 * len(found[kind, rank]) > most)
    best = max(chosen, key=lambda kind: (len(found[chosen[kind]]), -order.index(kind)), default=None)
    if best is None:
        return Pairs()
    masks = found[chosen[best]]
    others = {mask for pairs in found.values() for image, mask in pairs.items() if image in masks} - set(masks.values())
    rest = [found[chosen[kind]] for kind in order if kind in chosen and kind not in (best, SUFFIX)]
    counts = [(pairs, len(pairs.keys() & masks.keys())) for pairs in rest]
    notes = [
        f"took the masks in {folder_of(archive, masks)}, and not the {count_of(count, 'mask')} of the same images in "
        f"{folder_of(archive, pairs)}: to use those, move the others out of DATA"
        for pairs, count in counts
        if count
    ]
    return Pairs(masks, others, notes)


def pairs_in(table: Table, keys: Mapping[int, Sequence[Key]]) -> dict[int, int]:
    """The mask of each image in a table. Names that differ in capitals only count where no name is exactly the same."""
    exact = {
        image: mask
        for image, own in keys.items()
        for key in reversed(own)  # so that the first key counts
        for written, mask in table.get(key.plain, ())
        if written == key.exact and mask != image
    }
    taken, pairs = set(exact.values()), dict[int, int]()
    for image, own in keys.items():
        alike = (mask for key in own for _, mask in table.get(key.plain, ()) if mask != image and mask not in taken)
        mask = exact.get(image, next(alike, None))
        if mask is not None:
            pairs[image] = mask
    masks = set(pairs.values())
    return {image: mask for image, mask in pairs.items() if image not in masks}


def image_keys(name: str) -> Iterator[Key]:
    """The keys of an image, one for each folder that may be that of the images."""
    steps, plain, stem = split_path(name)
    stem = stem[: -len(OF_CITYSCAPES)] if stem.lower().endswith(OF_CITYSCAPES) else stem
    yield key_of(steps, stem)
    for depth, step in enumerate(plain):
        if step in IMAGE_FOLDERS:
            yield key_of([*steps[:depth], *steps[depth + 1 :]], stem)


def mask_keys(name: str) -> Iterator[tuple[str, int, Key]]:
    """The keys of a mask, with the kind of layout, and the place of its suffix in `SUFFIXES`; behind them are `OTHER_SUFFIXES`."""
    steps, plain, stem = split_path(name)
    ends = [*SUFFIXES, *OTHER_SUFFIXES]
    for rank, end in enumerate(ends):
        if not stem.lower().endswith(end) or len(stem) == len(end):
            continue
        short = stem[: len(stem) - len(end)]
        for depth, step in enumerate(plain):
            if step in MASK_FOLDERS:
                yield step, rank, key_of([*steps[:depth], *steps[depth + 1 :]], short)
            elif found := _BESIDE.fullmatch(steps[depth].lower()):
                beside = steps[depth][: len(found[1])]
                yield BESIDE, rank, key_of([*steps[:depth], beside, *steps[depth + 1 :]], short)
        if rank:
            yield SUFFIX, rank, key_of(steps, short)


def key_of(steps: Sequence[str], stem: str) -> Key:
    """The key of a file in some folders."""
    exact = "/".join([*steps, stem])
    return Key(exact.lower(), exact)


def split_path(name: str) -> tuple[list[str], list[str], str]:
    """The folders of a file, the same in plain words, and the name of the file without its ending."""
    *steps, file = name.split("/")
    return steps, [plain_step(step) for step in steps], os.path.splitext(file)[0]


def plain_step(folder: str) -> str:
    """A folder in small letters; `Segmentation_Class` is `segmentationclass`."""
    short = folder.lower().replace("_", "")
    return short if short in MASK_FOLDERS else folder.lower()


def folder_of(archive: Archive, pairs: Mapping[int, int]) -> str:
    """The folder of masks: up to the step that images do not have."""
    image, mask = next(iter(pairs.items()))
    own, others = archive.names[mask].split("/")[:-1], archive.names[image].split("/")[:-1]
    depth = next((i for i, step in enumerate(own) if i >= len(others) or step != others[i]), len(own) - 1)
    return "/".join(own[: depth + 1]) + "/"


def unpaired(archive: Archive, candidates: Sequence[int], masks: Mapping[int, int], others: set[int]) -> dict[str, str]:
    """The images without a mask, and the masks without an image, with the reason why they are not used."""
    used, found = {*masks, *masks.values()}, dict[str, str]()
    folders = Counter(
        step for index in masks.values() for step in archive.names[index].split("/")[:-1] if plain_step(step) in MASK_FOLDERS
    )
    for index in candidates:
        if index in used:
            continue
        name = archive.names[index]
        steps = name.split("/")[:-1]
        if index in others:
            found[name] = "another mask of its image"
        elif any(step in folders for step in steps):
            found[name] = NO_IMAGE
        elif any(is_mask_folder(step) or "panoptic" in step.lower() for step in steps):
            found[name] = "another kind of mask"
        else:
            found[name] = f"{NO_MASK}{expected_mask(name, folders)}"
    return found


def expected_mask(name: str, folders: Mapping[str, int]) -> str:
    """Where the mask of an image should be: its path with the folder of the masks in place of that of the images."""
    *steps, file = name.split("/")
    depths = [depth for depth, step in enumerate(steps) if plain_step(step) in IMAGE_FOLDERS]
    if not depths or not folders:
        return ""
    mask = max(folders, key=lambda step: folders[step])
    return " " + "/".join([*steps[: depths[-1]], mask, *steps[depths[-1] + 1 :], os.path.splitext(file)[0] + ".png"])


def unpaired_notes(unused: Mapping[str, str]) -> list[str]:
    """Sentences about what is not used."""
    images = [name for name, why in unused.items() if why.startswith(NO_MASK)]
    masks = [name for name, why in unused.items() if why == NO_IMAGE]
    notes = [f"left out {count_of(len(images), 'image')} without a mask: {examples(images)}"] if images else []
    return notes + ([f"left out {count_of(len(masks), 'mask')} without an image: {examples(masks)}"] if masks else [])
