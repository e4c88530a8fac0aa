"""Objects in COCO json: boxes, crowds, and masks as polygons or run lengths."""

import re
from typing import Any, NoReturn

from unveil.data.image_finder import ImageFinder, Part, missing_note, unlisted_note
from unveil.data.label_table import examples
from unveil.data.object_rows import Row, Told
from unveil.data.rle import Segment
from unveil.data.split_folders import split_of, without_union
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
NUMBERS = {int, float}
"""Types of numbers in JSON; a boolean is none."""
HUGE = 2**31
"""No coordinate is larger."""
POLYGON = 6
"""Minimum numbers of a polygon: three points."""


def coco_parts(finder: ImageFinder) -> dict[str, Part] | None:
    """The parts of DATA with COCO json; None if there is no such file.

    Raises:
        UnveilError: If a file cannot be used, or there are two for a split.
    """
    files = _annotation_files(finder)
    if not files:
        return None
    chosen: dict[str, tuple[int, dict[str, Any], bytes]] = {}
    for part, index in files.items():
        raw = finder.archive.read_text(index, finder.text, LARGEST)
        name = finder.archive.names[index]
        content = parse_json(raw, f"{finder.text}: {name}")
        if len(files) == 1 and not {"images", "annotations"} & set(content) and _has_other_labels(finder):
            return None
        chosen[part] = index, content, raw
    used = set[int]()
    parts = {part: _part(finder, part, *each, used) for part, each in chosen.items()}
    rest = [finder.archive.names[i] for i in finder.candidates if i not in used]
    first = next(iter(parts.values()))
    first.notes += [unlisted_note(finder.text, rest)] if rest else []
    first.unused |= dict.fromkeys(rest, "it is in no annotation file")
    return parts


def _has_other_labels(finder: ImageFinder) -> bool:
    return any(name.endswith((".xml", ".txt", ".yaml")) for name in finder.archive.names)


def _annotation_files(finder: ImageFinder) -> dict[str, int]:
    """The annotation file of each split."""
    names = finder.archive.names
    found = [i for i, name in enumerate(names) if name.lower().endswith(".json") and not OTHERS.search(_file(name).lower())]
    of_images = {name.rpartition(".")[0] for name in (names[i] for i in finder.candidates)}
    found = [i for i in found if names[i].rpartition(".")[0] not in of_images]  # those are of one image each
    kinds = (
        [i for i in found if "instances" in _file(names[i]).lower()],
        [i for i in found if "coco" in _file(names[i]).lower()],
        [i for i in found if "annotation" in names[i].lower()],
        found,
    )
    found = next((kind for kind in kinds if kind), [])
    if len(found) > MOST_FILES:
        raise UnveilError(
            f"{finder.text} has {len(found):,} json files, the first is {names[found[0]]}: expected one COCO json for each split, "
            f"such as annotations/instances_train.json"
        )
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


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _split(name: str) -> str | None:
    """The split of an annotation file, by a word of its name or by its folders, from the innermost on."""
    stem = _file(name).rpartition(".")[0]
    for words in (re.split(r"[-_. ]+", stem), *([step] for step in reversed(name.split("/")[:-1]))):
        found = next((split for word in words if (split := split_of(word))), None)
        if found:
            return found
    return None


def _part(finder: ImageFinder, part: str, index: int, content: dict[str, Any], raw: bytes, used: set[int]) -> Part:
    name = finder.archive.names[index]
    reader = _Reader(f"{finder.text}: {name}", content)
    names, category_ids = reader.categories()
    places, images, sizes, ids, missing = dict[Any, int](), list[int](), list[tuple[int, int]](), list[Any](), list[str]()
    listed = reader.images()
    for id_, file, size in listed:
        found = finder.find(file, name, part)
        if found is None:
            missing.append(file)
            continue
        places[id_] = len(images)
        images.append(found)
        sizes.append(size)
        ids.append(id_)
    if not images:
        raise UnveilError(
            f"{finder.text}: none of the {count_of(len(listed), 'image')} of {name} is there: expected a file that ends with "
            f"{listed[0][1]} (the field file_name)"
        )
    used.update(images)
    known = {id_ for id_, *_ in listed}
    rows = reader.rows(places, known, {id_: number for number, id_ in enumerate(category_ids)})
    told = Told(reader.where, "bbox", EXPECTED, rows, sizes, ids, dict(zip(names, category_ids, strict=True)))
    note = missing_note(reader.where, missing, len(listed))
    return Part(images, told, names, raw, [*([note] if note else []), *reader.notes])


class _Reader:
    """Reads one file. Everything that is wrong names the file, the entry and the field."""

    def __init__(self, where: str, content: dict[str, Any]) -> None:
        self.where, self.notes = where, list[str]()
        for field in ("images", "annotations", "categories"):
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
        entries = self.content["categories"]
        used = {each["category_id"] for each in self.content["annotations"] if _is_id(each.get("category_id"))}
        above = {each.get("supercategory") for each in entries if isinstance(each.get("supercategory"), str)}
        names, ids = dict[str, Any](), dict[Any, str]()
        for i, each in enumerate(entries):
            id_, name = each.get("id"), each.get("name")
            if not _is_id(id_):
                self._fail(f"entry {i} of categories", "id", id_, "a number")
            if not isinstance(name, str) or not name.strip():
                self._fail(f"category {id_}", "name", name, "a text")
            name = name.strip()
            if id_ in ids:
                raise UnveilError(f"{self.where}: two categories have the id {id_}: {ids[id_]} and {name}")
            if name in names:
                raise UnveilError(f"{self.where}: two categories have the name {name}: those with the ids {names[name]} and {id_}")
            ids[id_] = name
            if id_ in used or name not in above:  # Roboflow lists the name of the project as well
                names[name] = id_
        if not names:
            raise UnveilError(f"{self.where}: the field categories is empty")
        return list(names), list(names.values())

    def images(self) -> list[tuple[Any, str, tuple[int, int]]]:
        """The id, the file and the size of each image."""
        found, ids, files = list[tuple[Any, str, tuple[int, int]]](), dict[Any, str](), dict[str, Any]()
        copies = 0
        for i, each in enumerate(self.content["images"]):
            id_, file = each.get("id"), each.get("file_name")
            if not _is_id(id_):
                self._fail(f"entry {i} of images", "id", id_, "a number or a text")
            if not isinstance(file, str) or not file.strip("/\\ "):
                self._fail(f"image {id_}", "file_name", file, "a path")
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
                    self._fail(f"image {id_} ({file})", side, value, "a number of pixels")
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
            name = f"annotation {id_}" if _is_id(id_) else f"entry {i} of annotations"
            if _is_id(id_):
                again += id_ in ids
                ids.add(id_)
            image, category = each.get("image_id"), each.get("category_id")
            if not _is_id(image):
                self._fail(name, "image_id", image, "the id of an image")
            if image not in known:
                orphans.append(name)
                continue
            if not _is_id(category) or category not in labels:
                listed = ", ".join(map(str, list(labels)[:8])) + ", ..." * (len(labels) > 8)
                self._fail(name, "category_id", category, f"an id that is listed in categories ({listed})")
            if image in places:
                rows.append(self._row(name, each, places[image], labels[category]))
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
        return rows

    def _row(self, name: str, each: dict[str, Any], place: int, label: int) -> Row:
        box, area, crowd = each.get("bbox"), each.get("area"), each.get("iscrowd", 0)
        segment = self._segment(name, each.get("segmentation"))
        if not isinstance(box, list) or len(box) != 4 or not set(map(type, box)) <= NUMBERS or max(map(abs, box)) > HUGE:
            self._fail(name, "bbox", box, "[left, top, width, height] in pixels")
        if area is not None and (type(area) not in NUMBERS or not 0 <= area <= HUGE**2):
            self._fail(name, "area", area, "a number of pixels")
        if crowd not in (0, 1, None):
            self._fail(name, "iscrowd", crowd, "0 or 1")
        left, top, width, height = map(float, box)
        corners = (left, top, left + width, top + height)
        return Row(place, label, corners, name, bool(crowd), float("nan") if area is None else float(area), segment)

    def _segment(self, name: str, value: Any) -> Segment | None:
        if value is None or value in ([], {}):
            return None
        if isinstance(value, dict):
            size, counts = value.get("size"), value.get("counts")
            if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
                self._fail(name, "segmentation.size", size, "[height, width]")
            if not isinstance(counts, str | list) or not counts:
                self._fail(name, "segmentation.counts", counts, "run lengths, as a list or as a text")
            return {"size": size, "counts": counts}
        if isinstance(value, list) and set(map(type, value)) <= NUMBERS:
            value = [value]  # one polygon without the list around it
        if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
            self._fail(name, "segmentation", value, "polygons [[x, y, x, y, ...], ...] or run lengths")
        for polygon in value:
            if len(polygon) % 2 or not set(map(type, polygon)) <= NUMBERS:
                self._fail(name, "segmentation", polygon, "polygons of numbers x, y, x, y, ...")
        drawn = [polygon for polygon in value if len(polygon) >= POLYGON]
        return drawn or None  # a point or a line has no pixels

    def _fail(self, entry: str, field: str, value: Any, expected: str) -> NoReturn:
        shown = "is missing" if value is None else f"is {str(value)[:80]}"
        raise UnveilError(f"{self.where}: {field} of {entry} {shown}: expected {expected}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
