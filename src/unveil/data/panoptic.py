"""COCO panoptic masks: the number of a segment is R + 256 G + 65536 B, and a json names the category of each segment."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive
from unveil.data.class_files import beside
from unveil.data.images import read_mask
from unveil.data.mask_values import Colour, MaskConfig, MaskNames, MaskValues, Meaning, Survey, meaning_of
from unveil.data.pixels import IGNORE, ClassMap, Unreadable
from unveil.errors import UnveilError

WORD = "panoptic"
LIMIT = 2**30
"""Maximum number of bytes of a json; that of COCO's train2017 has 400 MB."""


@dataclass(frozen=True)
class Panoptic:
    """Panoptic masks, and what their json says."""

    archive: Archive = field(repr=False)
    categories: Mapping[int, str]
    """The names, by their ids."""
    colours: tuple[Colour, ...]
    segments: Mapping[int, Mapping[int, int]]
    """The category of each segment of each mask."""
    masks: dict[int, int]
    """The mask of each image, by their indices in the archive."""

    def meaning(self, config: MaskConfig, data: str) -> Meaning:
        """The classes: the categories, in the order of their ids, which are the values of masks."""
        too_large = next((each for each in self.categories if each >= IGNORE), None)
        if too_large is not None:
            name = self.categories[too_large]
            raise UnveilError(f"{data}: the category {name!r} has the id {too_large}, expected ids below {IGNORE}")
        named = MaskNames("the panoptic json", tuple(self.categories.values()), tuple(self.categories), self.colours)
        return meaning_of(Survey({}, {}, len(self.masks), False), named, config, data)

    def classes_of(self, index: int, values: MaskValues) -> ClassMap:
        """The class of each pixel (H, W) of a mask; pixels of the segment 0 have none.

        Raises:
            Unreadable: If the mask has a segment that the json does not have.
        """
        name = self.archive.names[index]
        mask = read_mask(self.archive.read(index), name=name).pixels
        channels = (mask if mask.ndim == 3 else np.repeat(mask[:, :, None], 3, axis=2)).astype(np.int64)
        ids = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
        number = {value: position for position, value in enumerate(values.stored)}
        segments = self.segments[index]
        present, places = np.unique(ids, return_inverse=True)
        wrong = [each for each in present.tolist() if each and each not in segments]
        if wrong:
            raise Unreadable(f"panoptic mask {name} with the segment {wrong[0]}, which its json does not have")
        classes = [number.get(segments[each], IGNORE) if each else IGNORE for each in present.tolist()]
        table: NDArray[np.uint8] = np.array(classes, np.uint8)
        result: ClassMap = table[places.reshape(ids.shape)]
        return result


def open_panoptic(archive: Archive, candidates: Sequence[int], data: str) -> Panoptic | None:
    """The panoptic masks of DATA; None if it has no panoptic json.

    Masks are found by the `file_name` that the json says, in folders or shards whose name has the word panoptic, and images by that
    without its ending.

    Raises:
        UnveilError: If the json lacks a field, or two of them disagree about a category.
    """
    categories: dict[int, str] = {}
    colours: dict[int, Colour] = {}
    of_file: dict[str, Mapping[int, int]] = {}
    for name, raw in panoptic_files(archive, data):
        facts = parsed(raw, name)
        for each in facts["categories"]:
            number, title = int(wanted(each, "id", name)), str(wanted(each, "name", name))
            if categories.setdefault(number, title) != title:
                raise UnveilError(f"{name}: the category {number} is {title!r}, but {categories[number]!r} in another json")
            if isinstance(each.get("color"), list) and len(each["color"]) == 3:
                red, green, blue = map(int, each["color"])
                colours[number] = (red, green, blue)
        for each in facts["annotations"]:
            listed = wanted(each, "segments_info", name)
            segments = {int(wanted(x, "id", name)): int(wanted(x, "category_id", name)) for x in listed}
            strange = next((value for value in segments.values() if value not in categories), None)
            if strange is not None:
                raise UnveilError(f"{name}: {each.get('file_name')} has a segment of the category {strange}, which is not listed")
            of_file[os.path.splitext(os.path.basename(str(wanted(each, "file_name", name))))[0]] = segments
    if not categories:
        return None
    stems = {index: os.path.splitext(archive.names[index].rpartition("/")[2])[0] for index in candidates}
    is_mask = {index: WORD in archive.names[index].rpartition("/")[0].lower() for index in candidates}
    masks = {stem: index for index, stem in stems.items() if is_mask[index] and stem in of_file}
    pairs = {index: masks[stem] for index, stem in stems.items() if not is_mask[index] and stem in masks}
    ordered = dict(sorted(categories.items()))
    found = tuple(colours[each] for each in ordered) if colours.keys() == categories.keys() else ()
    return Panoptic(archive, ordered, found, {index: of_file[stems[index]] for index in pairs.values()}, pairs)


def panoptic_files(archive: Archive, data: str) -> list[tuple[str, bytes]]:
    """The name and the content of each json with the word panoptic in its name, in DATA or beside its archives."""
    found = []
    for index, name in enumerate(archive.names):
        if name.lower().endswith(".json") and WORD in name.rpartition("/")[2].lower():
            found.append((name, archive.read_text(index, data, LIMIT)))
    folder = beside(archive, data)
    paths = sorted(folder.glob("*.json")) if folder else []
    return found + [(str(p), p.read_bytes()) for p in paths if WORD in p.name.lower() and p.stat().st_size <= LIMIT]


def parsed(raw: bytes, name: str) -> dict[str, Any]:
    """The content of a panoptic json. Raises `UnveilError` if it is none."""
    try:
        facts = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnveilError(f"{name} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
    found: dict[str, Any] = facts if isinstance(facts, dict) else {}
    for key in ("annotations", "categories"):
        if not isinstance(found.get(key), list):
            raise UnveilError(f"{name} has no list {key!r}, as a COCO panoptic json has")
    return found


def wanted(entry: Any, key: str, name: str) -> Any:
    """A field of an entry. Raises `UnveilError` if it is missing."""
    if not isinstance(entry, dict) or key not in entry:
        raise UnveilError(f"{name}: an entry lacks the field {key!r}: {str(entry)[:80]}")
    return entry[key]
