"""The parts of images with one mask each: see `unveil.data.mask_pairs` and `unveil.data.panoptic` for the layouts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from unveil.data.archive_parts import candidates_or_error, names_without_shards, sizes_of
from unveil.data.archives import Archive
from unveil.data.class_files import class_files
from unveil.data.label_table import examples
from unveil.data.mask_meaning import Meaning, meaning_like, meaning_of
from unveil.data.mask_pairs import Pairs, pairs_of, unpaired, unpaired_notes
from unveil.data.mask_survey import SURVEYED, survey_of
from unveil.data.mask_values import PLAIN, KnownMasks, MaskConfig, MaskValues
from unveil.data.panoptic import Panoptic, open_panoptic
from unveil.data.parts import DataParts
from unveil.data.source import Source, archive_fingerprints, evenly_spaced, version_2
from unveil.data.split_folders import Layout, layout_of
from unveil.data.voc_lists import listed_members, split_lists
from unveil.errors import UnveilError
from unveil.plain_text import count_of

MASK_LAYOUT = (
    "a folder images/ and a folder masks/ or annotations/ with a PNG of the same name for each image, both optionally with split "
    "folders; or images and panoptic/ with a panoptic json"
)
"""The layouts of files with class maps for `PixelTargets`, for error messages."""
LISTS = "Segmentation"
"""The folder below VOC's ImageSets/ with the lists of images that have masks."""


def map_parts(text: str, archive: Archive, *, config: MaskConfig = PLAIN, known: KnownMasks | None = None) -> DataParts:
    """The parts of images with one mask each: see `MASK_LAYOUT`.

    Args:
        text: DATA as the user typed it.
        archive: Its files.
        config: What is no class.
        known: The masks of the train set, for a test set: its masks are read like those.

    Raises:
        UnveilError: If there are no masks, or it is not clear what they mean.
    """
    candidates = candidates_or_error(text, archive)
    pairs, panoptic = pairs_of(archive, candidates), None
    if not pairs.masks:
        panoptic = open_panoptic(archive, candidates, text)
        pairs = Pairs(panoptic.masks) if panoptic else pairs
    masks = pairs.masks
    if not masks:
        raise UnveilError(
            f"no masks in {text!r}: PixelTargets need {MASK_LAYOUT}. With --instances, the masks of objects (COCO json, YOLO "
            "polygons, a PNG for each object) are drawn as class maps"
        )
    images = [index for index in candidates if index in masks]
    unused = unpaired(archive, candidates, masks, pairs.others)
    layout, unlisted = layout_by_lists(text, archive, images)
    meaning = panoptic.meaning(config, text, known) if panoptic else _meaning(archive, sorted(masks.values()), config, text, known)
    notes = (*pairs.notes, *meaning.notes, *unpaired_notes(unused))
    if unlisted:
        notes += (f"left out {count_of(len(unlisted), 'image')} that no list in ImageSets/{LISTS} has: {examples(unlisted)}",)
        unused |= dict.fromkeys(unlisted, f"it is in no list of ImageSets/{LISTS}")

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
            _reader(archive, maps, meaning.values, panoptic),
            listing,
            notes=notes,
            sizes=sizes_of(archive, members),
            mask_values=meaning.values,
        )

    makers = {part: partial(make, part) for part in layout.parts}
    return DataParts(text, makers, layout.folders, {part: len(members) for part, members in layout.parts.items()})


def layout_by_lists(text: str, archive: Archive, images: Sequence[int]) -> tuple[Layout, list[str]]:
    """The splits of images, by the lists of VOC or else by their folders; and the images that the lists do not have."""
    names = [archive.names[index] for index in images]
    lists = split_lists(archive, text, LISTS, names)
    if not lists:
        return layout_of(names_without_shards(archive, images), keep_masks=True), []
    members = listed_members(names, lists, LISTS, text)
    known = {i for own in members.values() for i in own}
    return Layout(members), [name for i, name in enumerate(names) if i not in known]


def _reader(archive: Archive, maps: Sequence[int], values: MaskValues, panoptic: Panoptic | None) -> Any:
    """Reads the mask of an image: the bytes of its file, or the classes of the segments of COCO panoptic."""
    if panoptic is None:
        return lambda index: archive.read(maps[index])
    return lambda index: panoptic.classes_of(maps[index], values)


def _meaning(archive: Archive, masks: Sequence[int], config: MaskConfig, text: str, known: KnownMasks | None) -> Meaning:
    """What masks mean, from their values and a file with names; or from the masks of the train set."""
    files = class_files(archive, text)
    some = evenly_spaced(masks, SURVEYED) if files.exist or known else masks
    survey = survey_of(archive.read, archive.names, some, text)
    if known is None:
        return meaning_of(survey, files.of_masks(survey.in_colour), config, text)
    return meaning_like(known, survey, files.of_masks(known.values.in_colour), config, text)
