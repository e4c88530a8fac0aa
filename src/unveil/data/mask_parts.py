"""The parts of images with one mask each: which file is the mask of which image, in the usual layouts.

images/train/7.jpg       masks/train/7.png                            or annotations/, labels/, SegmentationClass/, ...
train/7.jpg              train_labels/7.png, trainannot/7.png
leftImg8bit/val/7_leftImg8bit.png       gtFine/val/7_gtFine_labelIds.png
7.jpg                    7_mask.png, masks/7.png
images/train/7.jpg       panoptic/train/7.png and panoptic_train.json  (COCO panoptic)
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.archive_parts import candidates_or_error, names_without_shards, sizes_of
from unveil.data.archives import Archive
from unveil.data.class_files import names_of_classes
from unveil.data.images import read_mask
from unveil.data.label_table import examples
from unveil.data.mask_values import PLAIN, Colour, MaskConfig, MaskValues, Meaning, Survey, colour_codes, meaning_of
from unveil.data.panoptic import Panoptic, open_panoptic
from unveil.data.parts import DataParts
from unveil.data.pixels import Unreadable
from unveil.data.source import Source, archive_fingerprints, evenly_spaced, version_2
from unveil.data.split_folders import layout_of
from unveil.errors import UnveilError
from unveil.plain_text import count_of

MASK_LAYOUT = (
    "a folder images/ and a folder masks/ or annotations/ with a PNG of the same name for each image, both optionally with split "
    "folders; or images and panoptic/ with a panoptic json"
)
"""The layouts of files with class maps for `PixelTargets`, for error messages."""
IMAGES = frozenset({"images", "image", "imgs", "img", "jpegimages", "leftimg8bit"})
MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "segmentation", "gt", "gtfine")
"""Folders of masks. If there are several, the one with more masks is used, and of equals the first."""
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
"""What the name of a mask has after that of its image; the first one that there is counts."""
OF_CITYSCAPES = "_leftimg8bit"
NO_MASK = "it has no mask"
SURVEYED = 256
"""Masks that are read when DATA is listed, if its classes are named. Without names, all are."""
_BESIDE = re.compile(r"(.+?)[-_ ]?(?:masks?|labels?|annots?|annotations?|gt)")
"""A folder of masks beside one of images: train_labels beside train."""


class Place(NamedTuple):
    """A mask that an image may have."""

    rank: int
    """The place of its suffix in `SUFFIXES`."""
    mask: int
    """Its index in the archive."""


class Look(NamedTuple):
    """What one mask has."""

    values: Sequence[int] = ()
    """Its values, or the codes of its colours."""
    in_colour: bool = False
    palette: tuple[Colour, ...] = ()
    reason: str = ""
    """Why it cannot be read."""


def map_parts(text: str, archive: Archive, *, config: MaskConfig = PLAIN) -> DataParts:
    """The parts of images with one mask each: see `MASK_LAYOUT`.

    Args:
        text: DATA as the user typed it.
        archive: Its files.
        config: What is no class.

    Raises:
        UnveilError: If there are no masks, or it is not clear what they mean.
    """
    candidates = candidates_or_error(text, archive)
    masks, panoptic = pairs_of(archive, candidates), None
    if not masks:
        panoptic = open_panoptic(archive, candidates, text)
        masks = panoptic.masks if panoptic else {}
    if not masks:
        raise UnveilError(f"no masks in {text!r}: PixelTargets need {MASK_LAYOUT}")
    images = [index for index in candidates if index in masks]
    unused = unpaired(archive, candidates, masks)
    layout = layout_of(names_without_shards(archive, images), keep_masks=True)
    meaning = panoptic.meaning(config, text) if panoptic else surveyed(archive, sorted(masks.values()), config, text)
    notes = (*meaning.notes, *unpaired_notes(unused))

    def make(part: str) -> Source:
        members = [images[i] for i in layout.parts[part]]
        maps = [masks[image] for image in members]
        fingerprint, listing = archive_fingerprints(archive, [*members, *maps])
        changed = meaning.values.stored != tuple(range(len(meaning.classes))) or meaning.values.in_colour
        return Source(
            text,
            [archive.names[index] for index in members],
            None,
            meaning.classes,
            version_2(fingerprint, repr(meaning.values.stored)) if changed else fingerprint,
            lambda index: archive.read(members[index]),
            unused | dict(archive.refused),
            reader_of(archive, maps, meaning.values, panoptic),
            listing,
            notes=notes,
            sizes=sizes_of(archive, members),
            mask_values=meaning.values,
        )

    makers = {part: partial(make, part) for part in layout.parts}
    return DataParts(text, makers, layout.folders, {part: len(members) for part, members in layout.parts.items()})


def reader_of(archive: Archive, maps: Sequence[int], values: MaskValues, panoptic: Panoptic | None) -> Any:
    """Reads the mask of an image: the bytes of its file, or the classes of the segments of COCO panoptic."""
    if panoptic is None:
        return lambda index: archive.read(maps[index])
    return lambda index: panoptic.classes_of(maps[index], values)


def pairs_of(archive: Archive, candidates: Sequence[int]) -> dict[int, int]:
    """The mask of each image, by their indices."""
    tables: dict[str, dict[str, Place]] = {}
    for index in candidates:
        for word, rank, key in mask_keys(archive.names[index]):
            table = tables.setdefault(word, {})
            if key not in table or rank < table[key].rank:
                table[key] = Place(rank, index)
    found: dict[str, dict[int, int]] = {}
    for word, table in tables.items():
        pairs = {}
        for index in candidates:
            places = [table[key] for key in image_keys(archive.names[index]) if key in table and table[key].mask != index]
            if places:
                pairs[index] = min(places).mask
        found[word] = {image: mask for image, mask in pairs.items() if image not in pairs.values()}
    order = [*MASKS, "beside", "suffix"]
    best = max(found, key=lambda word: (len(found[word]), -order.index(word)), default=None)
    return found[best] if best is not None else {}


def image_keys(name: str) -> Iterator[str]:
    """What an image and its mask have in common, for each folder that may be that of the images."""
    *steps, stem = plain_steps(name)
    stem = stem.removesuffix(OF_CITYSCAPES)
    yield "/".join([*steps, stem])
    for depth, step in enumerate(steps):
        if step in IMAGES:
            yield "/".join([*steps[:depth], *steps[depth + 1 :], stem])


def mask_keys(name: str) -> Iterator[tuple[str, int, str]]:
    """As `image_keys`, for a mask: the kind of layout, the place of its suffix in `SUFFIXES`, and the key."""
    *steps, stem = plain_steps(name)
    stems = [(rank, stem.removesuffix(end)) for rank, end in enumerate(SUFFIXES) if stem.endswith(end) and stem != end]
    for rank, each in stems:
        for depth, step in enumerate(steps):
            if step in MASKS:
                yield step, rank, "/".join([*steps[:depth], *steps[depth + 1 :], each])
            elif found := _BESIDE.fullmatch(step):
                yield "beside", rank, "/".join([*steps[:depth], found[1], *steps[depth + 1 :], each])
        if rank:
            yield "suffix", rank, "/".join([*steps, each])


def plain_steps(name: str) -> list[str]:
    """The folders of a file in small letters, and its name without the ending."""
    *folders, file = name.split("/")
    return [*map(plain_step, folders), os.path.splitext(file)[0].lower()]


def plain_step(folder: str) -> str:
    """A folder in small letters; `Segmentation_Class` is `segmentationclass`."""
    short = folder.lower().replace("_", "")
    return short if short in MASKS else folder.lower()


def unpaired(archive: Archive, candidates: Sequence[int], masks: Mapping[int, int]) -> dict[str, str]:
    """The images without a mask, and the masks without an image, with the reason why they are not used."""
    used, found = {*masks, *masks.values()}, dict[str, str]()
    folders = Counter(
        step for index in masks.values() for step in archive.names[index].split("/")[:-1] if plain_step(step) in MASKS
    )
    for index in candidates:
        if index in used:
            continue
        name = archive.names[index]
        steps = name.split("/")[:-1]
        if any(step in folders for step in steps):
            found[name] = "a mask without an image"
        elif any(plain_step(step) in MASKS or "panoptic" in step.lower() for step in steps):
            found[name] = "another kind of mask"
        else:
            found[name] = f"{NO_MASK}{expected_mask(name, folders)}"
    return found


def expected_mask(name: str, folders: Mapping[str, int]) -> str:
    """Where the mask of an image should be: its path with the folder of the masks in place of that of the images."""
    *steps, file = name.split("/")
    depths = [depth for depth, step in enumerate(steps) if plain_step(step) in IMAGES]
    if not depths or not folders:
        return ""
    mask = max(folders, key=lambda step: folders[step])
    return " " + "/".join([*steps[: depths[-1]], mask, *steps[depths[-1] + 1 :], os.path.splitext(file)[0] + ".png"])


def unpaired_notes(unused: Mapping[str, str]) -> list[str]:
    """Sentences about what is not used."""
    images = [name for name, why in unused.items() if why.startswith(NO_MASK)]
    masks = [name for name, why in unused.items() if why == "a mask without an image"]
    notes = [f"left out {count_of(len(images), 'image')} without a mask: {examples(images)}"] if images else []
    return notes + ([f"left out {count_of(len(masks), 'mask')} without an image: {examples(masks)}"] if masks else [])


def surveyed(archive: Archive, masks: Sequence[int], config: MaskConfig, text: str) -> Meaning:
    """What masks mean, from their values and a file with names."""
    named = names_of_classes(archive, text)
    some = evenly_spaced(masks, SURVEYED) if named.names else list(masks)

    def look(index: int) -> Look:
        name = archive.names[index]
        try:
            mask = read_mask(archive.read(index), name=name)
        except Unreadable as error:
            return Look(reason=error.reason)  # told again when its image is read
        except OSError as error:
            return Look(reason=f"cannot be read: {error.strerror}")
        return Look(distinct(mask.pixels), mask.pixels.ndim == 3, mask.palette)

    with ThreadPoolExecutor(thread_name_prefix="masks") as pool:
        looks = list(pool.map(look, some))
    read = [each for each in looks if not each.reason]
    if not read:
        name, count = archive.names[some[0]], count_of(len(some), "mask")
        raise UnveilError(f"none of the {count} of {text} that were looked at can be read; the first: {name}: {looks[0].reason}")
    in_colour = 2 * sum(each.in_colour for each in read) > len(read)
    first: dict[int, str] = {}
    counts = Counter[int]()
    for index, each in zip(some, looks, strict=True):
        grey = in_colour and not each.in_colour  # a colour mask that happens to be grey
        values = [value * 0x010101 for value in each.values] if grey else each.values
        for value in values if in_colour or not each.in_colour else ():
            first.setdefault(value, archive.names[index])
            counts[value] += 1
    palette = next((each.palette for each in read if each.palette), ())
    return meaning_of(Survey(first, counts, len(read), in_colour, palette), named, config, text)


def distinct(mask: NDArray[np.generic]) -> list[int]:
    """The values, or the codes of the colours, of a mask."""
    values: list[int] = np.unique(colour_codes(mask) if mask.ndim == 3 else mask).tolist()
    return values
