"""COCO panoptic masks: the number of a segment is R + 256 G + 65536 B, and a json names the category of each segment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive
from unveil.data.class_files import beside
from unveil.data.images import read_mask
from unveil.data.mask_meaning import Meaning, Survey, meaning_like, meaning_of
from unveil.data.mask_values import Colour, KnownMasks, MaskConfig, MaskNames, MaskValues
from unveil.data.pixels import IGNORE, ClassMap, Unreadable
from unveil.data.split_folders import split_of
from unveil.errors import UnveilError
from unveil.json_files import parse_json

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

    def meaning(self, config: MaskConfig, data: str, known: KnownMasks | None = None) -> Meaning:
        """The classes: the categories, in the order of their ids, which are the values of masks; for `known` see `map_parts`."""
        too_large = next((each for each in self.categories if each >= IGNORE), None)
        if too_large is not None:
            name = self.categories[too_large]
            raise UnveilError(f"{data}: the category {name!r} has the id {too_large}, expected ids below {IGNORE}")
        named = MaskNames("the panoptic json", tuple(self.categories.values()), tuple(self.categories), self.colours)
        survey = Survey({}, {}, len(self.masks), False)
        return meaning_of(survey, named, config, data) if known is None else meaning_like(known, survey, named, config, data)

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

    Masks lie in folders or shards whose name has the word panoptic. A mask is found by the `file_name` that its json says, and its
    image by that without its ending: see `Place`.

    Raises:
        UnveilError: If the json lacks a field, two of them disagree about a category, or it is not clear which mask is meant.
    """
    categories: dict[int, str] = {}
    colours: dict[int, Colour] = {}
    masks, images = dict[str, list[int]](), dict[str, list[int]]()
    for index in candidates:
        folder, _, file = archive.names[index].rpartition("/")
        (masks if WORD in folder.lower() else images).setdefault(os.path.splitext(file)[0], []).append(index)
    segments, said_by = dict[int, Mapping[int, int]](), dict[int, str]()
    for name, raw in panoptic_files(archive, data):
        facts = parse_json(raw, name)
        read_categories(facts, name, categories, colours)
        of_json = Place.of_file(name.rpartition("/")[2] if os.path.isabs(name) else name)
        for each in listed(facts, "annotations", name):
            file = str(field_of(each, "file_name", name))
            found = segments_of(each, file, name, categories)
            steps = [step for step in file.replace("\\", "/").split("/") if step not in ("", ".", "..")]
            place = of_json.joined(steps[:-1])
            alike = masks.get(os.path.splitext(steps[-1])[0], []) if steps else []
            mask = nearest(alike, place, archive, f"{name}: the mask {file}")
            if mask is None:
                continue
            if segments.setdefault(mask, found) != found:
                raise UnveilError(
                    f"{said_by[mask]} and {name} differ in the segments of {archive.names[mask]}: leave out one of them"
                )
            said_by[mask] = name
    if not categories:
        return None
    pairs: dict[int, int] = {}
    for mask in sorted(segments):
        folder, _, file = archive.names[mask].rpartition("/")
        place = Place.of_folders(folder)
        image = nearest(images.get(os.path.splitext(file)[0], []), place, archive, f"{data}: the image of {archive.names[mask]}")
        if image is not None and image in pairs:
            raise UnveilError(
                f"{archive.names[image]} has two masks, {archive.names[pairs[image]]} and {archive.names[mask]}: keep one"
            )
        if image is not None:
            pairs[image] = mask
    ordered = dict(sorted(categories.items()))
    palette = tuple(colours[each] for each in ordered) if colours.keys() == categories.keys() else ()
    return Panoptic(archive, ordered, palette, segments, pairs)


class Place(NamedTuple):
    """Where a file lies: what a json, a mask and its image have in common if their names are not unique."""

    words: frozenset[str]
    """The folders in small letters, without the word panoptic and what separates it."""
    split: str | None
    """The split that the innermost folder with such a name is called after."""

    @classmethod
    def of_folders(cls, folders: str) -> "Place":
        """The place of a file in these folders, with slashes between them."""
        words = [step.replace(WORD, "").strip("-_. ") for step in folders.lower().split("/")]
        return cls(frozenset(words) - {""}, next((split for word in reversed(words) if (split := split_of(word))), None))

    @classmethod
    def of_file(cls, name: str) -> "Place":
        """The place of what a json describes: panoptic_train2017.json is of the folder train2017."""
        return cls.of_folders(os.path.splitext(name)[0])

    def joined(self, folders: Sequence[str]) -> "Place":
        """The place of a file in further folders."""
        inner = Place.of_folders("/".join(folders))
        return Place(self.words | inner.words, inner.split or self.split)


def nearest(found: Sequence[int], place: Place, archive: Archive, what: str) -> int | None:
    """The file with the most in common with a place, which is of no other split; None if there is none.

    Raises:
        UnveilError: If there are several such files.
    """
    if not found:
        return None
    places = {index: place_of_folder(archive.names[index].rpartition("/")[0]) for index in found}
    common = {
        index: (each.split == place.split, len(each.words & place.words), -len(each.words - place.words))
        for index, each in places.items()
        if None in (each.split, place.split) or each.split == place.split
    }
    best = [index for index, count in common.items() if count == max(common.values())]
    if len(best) > 1:
        paths = " or ".join(archive.names[index] for index in best[:2])
        raise UnveilError(
            f"{what} may be {paths}: give the folder of the masks the name of that of the images, or other file names"
        )
    return best[0] if best else None


@lru_cache(4096)
def place_of_folder(folder: str) -> Place:
    """`Place.of_folders`, once for each folder."""
    return Place.of_folders(folder)


def read_categories(facts: Mapping[str, Any], name: str, categories: dict[int, str], colours: dict[int, Colour]) -> None:
    """Adds the categories of a json, and their colours. Raises `UnveilError` if they differ from those of another one."""
    for each in listed(facts, "categories", name):
        number, title = whole(each, "id", name), str(field_of(each, "name", name))
        if categories.setdefault(number, title) != title:
            raise UnveilError(f"{name}: the category {number} is {title!r}, but {categories[number]!r} in another json")
        colour = each.get("color")
        if isinstance(colour, list) and len(colour) == 3 and all(type(level) is int and 0 <= level <= 255 for level in colour):
            colours[number] = (colour[0], colour[1], colour[2])


def segments_of(entry: Any, file: str, name: str, categories: Mapping[int, str]) -> dict[int, int]:
    """The category of each segment of an annotation. Raises `UnveilError` if one is not listed."""
    found = {whole(each, "id", name): whole(each, "category_id", name) for each in listed(entry, "segments_info", name)}
    strange = next((value for value in found.values() if value not in categories), None)
    if strange is not None:
        raise UnveilError(f"{name}: {file} has a segment of the category {strange}, which is not listed")
    return found


def panoptic_files(archive: Archive, data: str) -> list[tuple[str, bytes]]:
    """The name and the content of each json with the word panoptic in its name, in DATA or beside its archives."""
    found = []
    for index, name in enumerate(archive.names):
        if name.lower().endswith(".json") and WORD in name.rpartition("/")[2].lower():
            found.append((name, archive.read_text(index, data, LIMIT)))
    folder = beside(archive, data)
    paths = sorted(folder.glob("*.json")) if folder else []
    return found + [(str(p.absolute()), p.read_bytes()) for p in paths if WORD in p.name.lower() and p.stat().st_size <= LIMIT]


def listed(entry: Any, key: str, name: str) -> list[Any]:
    """A list of an entry. Raises `UnveilError` if it is none."""
    found = field_of(entry, key, name) if key == "segments_info" else entry.get(key)
    if not isinstance(found, list):
        raise UnveilError(f"{name} has no list {key!r}, as a COCO panoptic json has")
    return found


def whole(entry: Any, key: str, name: str) -> int:
    """A whole number of an entry. Raises `UnveilError` if it is none."""
    found = field_of(entry, key, name)
    if type(found) is not int:
        raise UnveilError(
            f"{name}: the field {key!r} of an entry is {str(found)[:40]!r}, expected a whole number: {str(entry)[:80]}"
        )
    return found


def field_of(entry: Any, key: str, name: str) -> Any:
    """A field of an entry. Raises `UnveilError` if it is missing."""
    if not isinstance(entry, dict) or key not in entry:
        raise UnveilError(f"{name}: an entry lacks the field {key!r}: {str(entry)[:80]}")
    return entry[key]
