"""Objects in COCO json: boxes, crowds, and masks as polygons or run lengths."""

import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import Any

from unveil.data.coco_entries import HUGE, ID, NUMBERS, CocoEntries, is_id
from unveil.data.image_finder import ImageFinder, Part, missing_note, unlisted_note
from unveil.data.label_table import examples
from unveil.data.object_rows import Row, Told
from unveil.data.split_folders import split_of, splits_of, without_union
from unveil.errors import UnveilError
from unveil.json_files import parse_json
from unveil.plain_text import count_of

LARGEST = 2**30
"""Maximum bytes of a file: twice that of instances_train2017.json."""
MOST_FILES = 50
"""Maximum number of files to look into."""
OTHERS = re.compile(
    r"(captions|person_keypoints|panoptic|image_info|stuff|unlabeled)[-_ .]|(package|config|settings|results?)\.json$"
)
"""Names of files that come with COCO, or with other tools, and have no objects to detect."""
EXPECTED = "bbox as [left, top, width, height] in pixels"
FIELDS = ("images", "annotations", "categories")
"""The fields of COCO json."""


def coco_parts(finder: ImageFinder) -> dict[str, Part] | None:
    """The parts of DATA with COCO json; None if there is no such file.

    Raises:
        UnveilError: If a file cannot be used, or there are two for a split, or two entries for an image.
    """
    raws = {part: (i, finder.archive.read_text(i, finder.text, LARGEST)) for part, i in _annotation_files(finder).items()}
    is_coco = any(f'"{field}"'.encode() in raw for _, raw in raws.values() for field in FIELDS[:2])
    if not raws or (not is_coco and _has_other_labels(finder)):
        return None
    used = dict[int, str]()
    parts = {part: _part(finder, index, raw, used) for part, (index, raw) in raws.items()}
    rest = [finder.archive.names[i] for i in finder.candidates if i not in used]
    first = next(iter(parts.values()))
    first.notes += [unlisted_note(finder.text, rest)] if rest else []
    first.unused |= dict.fromkeys(rest, "it is in no annotation file")
    return parts


def _has_other_labels(finder: ImageFinder) -> bool:
    return any(name.endswith((".xml", ".txt", ".yaml")) for name in finder.archive.names)


def _annotation_files(finder: ImageFinder) -> dict[str, int]:
    """The annotation file of each split: those of one kind of names, and others that are called after a further split."""
    names = finder.archive.names
    every = [i for i, name in enumerate(names) if name.lower().endswith(".json") and not OTHERS.search(_file(name).lower())]
    of_images = {name.rpartition(".")[0] for name in (names[i] for i in finder.candidates)}
    every = [i for i in every if names[i].rpartition(".")[0] not in of_images]  # those are of one image each
    kinds = (
        [i for i in every if "instances" in _file(names[i]).lower()],
        [i for i in every if "coco" in _file(names[i]).lower()],
        [i for i in every if "annotation" in names[i].lower()],
        every,
    )
    found = next((kind for kind in kinds if kind), [])
    if len(found) > MOST_FILES:
        raise UnveilError(
            f"{finder.text} has {len(found):,} json files, the first is {names[found[0]]}: expected one COCO json for each split, "
            f"such as annotations/instances_train.json"
        )
    files = _by_split(finder, found)
    further = [i for i in every if i not in found and (split := _split(names[i])) and split not in files][:MOST_FILES]
    further = [i for i in further if _is_coco(finder, i)]
    return files | (_by_split(finder, further) if files and further else {})


def _by_split(finder: ImageFinder, found: Sequence[int]) -> dict[str, int]:
    names = finder.archive.names
    if len({_split(names[i]) for i in found} - {None}) < len(found) > 1:  # not one for each split: some may be of another kind
        coco = [i for i in found if _is_coco(finder, i)]
        found = coco if coco or _has_other_labels(finder) else found
    if len(found) == 1:
        return {_split(names[found[0]]) or "train": found[0]}
    splits = {names[i]: split for i in found if (split := _split(names[i]))}
    splits = without_union(splits)
    files: dict[str, int] = {}
    for i in found:
        split = splits.get(names[i])
        if split is None and names[i] not in splits and _split(names[i]):
            continue  # trainval beside train and val
        if split is None:
            raise UnveilError(f"{finder.text}: {names[i]} is called after no split: rename it, as in instances_train.json")
        if split in files:
            raise UnveilError(
                f"{finder.text}: {names[files[split]]} and {names[i]} are both annotations of the split {split}: leave one of them"
            )
        files[split] = i
    return files


def _is_coco(finder: ImageFinder, index: int) -> bool:
    """Whether a file seems to have the fields of COCO json, without parsing it."""
    if finder.archive.sizes[index] > LARGEST:
        return False
    raw = finder.archive.read_text(index, finder.text, LARGEST)
    return all(f'"{field}"'.encode() in raw for field in FIELDS)


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _split(name: str) -> str | None:
    """The split of an annotation file, by a word of its name or by its folders, from the innermost on."""
    return next((split for word in _split_words(name) if (split := split_of(word))), None)


def _split_words(name: str) -> list[str]:
    """The words that are called after splits, all of them in the name of the file or in one of its folders."""
    stem = _file(name).rpartition(".")[0]
    for words in (re.split(r"[-_. ]+", stem), *([step] for step in reversed(name.split("/")[:-1]))):
        found = [word for word in words if split_of(word)]
        if found:
            return found
    return []


def _part(finder: ImageFinder, index: int, raw: bytes, used: dict[int, str]) -> Part:
    """The images of a file; `used` has the entry of each image that is known already."""
    name = finder.archive.names[index]
    reader = _Reader(f"{finder.text}: {name}", parse_json(raw.removeprefix(BOM_UTF8), f"{finder.text}: {name}"))
    names, category_ids = reader.categories()
    places, images, sizes, ids, missing = dict[Any, int](), list[int](), list[tuple[int, int]](), list[Any](), list[str]()
    listed = reader.images()
    splits = {split for word in _split_words(name) for split in splits_of(word)}
    hits, moved = finder.find_all([file for _, file, _ in listed], name, splits)
    for (id_, file, size), found in zip(listed, hits, strict=True):
        if found is None:
            missing.append(file)
            continue
        if found in used:
            raise UnveilError(
                f"{finder.text}: {finder.archive.names[found]} is the image of two entries: {used[found]}, and {file} in {name}. "
                "Expected one entry and one split for each image"
            )
        used[found] = f"{file} in {name}"
        places[id_] = len(images)
        images.append(found)
        sizes.append(size)
        ids.append(id_)
    if not images:
        other = finder.elsewhere(missing[0])
        hint = f". {other} is in another folder: if it is meant, write this path into file_name" if other else ""
        raise UnveilError(
            f"{finder.text}: none of the {count_of(len(listed), 'image')} of {name} is there: expected a file that ends with "
            f"{listed[0][1]} (the field file_name){hint}"
        )
    known = {id_ for id_, *_ in listed}
    rows = reader.rows(places, known, {id_: number for number, id_ in enumerate(category_ids)})
    told = Told(reader.where, "bbox", EXPECTED, rows, sizes, ids, dict(zip(names, category_ids, strict=True)))
    notes = [note for note in (missing_note(reader.where, missing, len(listed)), moved) if note]
    return Part(images, told, names, raw, [*notes, *reader.notes])


class _Reader:
    """Reads one file. Everything that is wrong names the file, the entry and the field."""

    def __init__(self, where: str, content: dict[str, Any]) -> None:
        self.where, self.notes, self.entries = where, list[str](), CocoEntries(where)
        for field in FIELDS:
            if not isinstance(content.get(field), list):
                found = ", ".join(sorted(content)[:6]) or "none"
                what = f"{field} is no list" if field in content else f"the field {field} is missing"
                raise UnveilError(
                    f"{where}: {what}. Expected COCO json with images, annotations and categories; found the fields {found}"
                )
            wrong = next((i for i, each in enumerate(content[field]) if not isinstance(each, dict)), None)
            if wrong is not None:
                raise UnveilError(f"{where}: entry {wrong} of {field} is no object")
        self.content = content
        if not content["images"]:
            raise UnveilError(f"{where}: the field images is empty")

    def categories(self) -> tuple[list[str], list[Any]]:
        """The names of the classes, and their ids."""
        used = {each["category_id"] for each in self.content["annotations"] if is_id(each.get("category_id"))}
        return self.entries.categories(self.content["categories"], used)

    def images(self) -> list[tuple[Any, str, tuple[int, int]]]:
        """The id, the file and the size of each image."""
        found, ids, files = list[tuple[Any, str, tuple[int, int]]](), dict[Any, str](), dict[str, Any]()
        copies = 0
        for i, each in enumerate(self.content["images"]):
            id_, file = each.get("id"), each.get("file_name")
            if not is_id(id_):
                self.entries.fail(f"entry {i} of images", "id", id_, ID)
            if not isinstance(file, str) or not file.strip("/\\ "):
                self.entries.fail(f"image {id_}", "file_name", file, "a path")
            if ids.get(id_) == file:
                copies += 1
                continue
            if id_ in ids:
                raise UnveilError(f"{self.where}: two images have the id {id_}: {ids[id_]} and {file}")
            if file in files:
                raise UnveilError(f"{self.where}: the image {file} is listed twice, with the ids {files[file]} and {id_}: keep one")
            ids[id_], files[file] = file, id_
            sides = each.get("height", 0), each.get("width", 0)
            for side, value in zip(("height", "width"), sides, strict=True):
                if value is not None and (type(value) not in NUMBERS or not 0 <= value <= HUGE or value != int(value)):
                    self.entries.fail(f"image {id_} ({file})", side, value, "a number of pixels")
            found.append((id_, file, (int(sides[0] or 0), int(sides[1] or 0))))
        if copies:
            self.notes.append(f"{self.where}: {count_of(copies, 'image')} listed twice in the same way, and read once")
        return found

    def rows(self, places: dict[Any, int], known: set[Any], labels: dict[Any, int]) -> list[Row]:
        """The objects of the images in `places`; those of other images are left out, and said."""
        rows, orphans, ids, again = list[Row](), list[str](), set[Any](), 0
        entries = self.content["annotations"]
        for i, each in enumerate(entries):
            id_ = each.get("id")
            name = f"annotation {id_}" if is_id(id_) else f"entry {i} of annotations"
            if is_id(id_):
                again += id_ in ids
                ids.add(id_)
            image, category = each.get("image_id"), each.get("category_id")
            if not is_id(image):
                self.entries.fail(name, "image_id", image, "the id of an image")
            if image not in known:
                orphans.append(name)
                continue
            if not is_id(category) or category not in labels:
                listed = ", ".join(map(str, list(labels)[:8])) + ", ..." * (len(labels) > 8)
                self.entries.fail(name, "category_id", category, f"an id that is listed in categories ({listed})")
            if image in places:
                rows.append(self.entries.row(name, each, places[image], labels[category]))
        if orphans:
            share = f"{len(orphans):,} of {count_of(len(entries), 'annotation')}"
            if len(orphans) == len(entries):
                shown = ", ".join(repr(each) for each in list(known)[:3])
                raise UnveilError(
                    f"{self.where}: image_id of each annotation is the id of no image: {orphans[0]} has "
                    f"{entries[0].get('image_id')!r}, and images have ids such as {shown}"
                )
            self.notes.append(f"{self.where}: left out {share}, whose image_id is the id of no image: {examples(orphans)}")
        if again:
            self.notes.append(f"{self.where}: {count_of(again, 'annotation')} with the id of another one: all are used")
        scored = sum("score" in each for each in entries)
        if scored:
            self.notes.append(
                f"{self.where}: {count_of(scored, 'annotation')} with a score, as predictions have: all are used as objects, "
                f"whatever their score"
            )
        return rows
