"""Objects in VOC xml: a file of boxes for each image, as of PASCAL VOC, LabelImg and others."""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, NoReturn
from xml.etree.ElementTree import Element

from unveil.data.archive import SAMPLE_TEXT_LIMIT
from unveil.data.archive_parts import names_without_shards
from unveil.data.image_finder import ImageFinder, Part, missing_note, unlisted_note
from unveil.data.object_rows import Row, Told
from unveil.data.split_folders import layout_of, splits_of
from unveil.data.voc_lists import listed_members, split_lists, stem_of
from unveil.data.xml_files import parse_xml
from unveil.errors import UnveilError
from unveil.plain_text import count_of

LISTS = "Main"
"""The folder of the lists of splits, below ImageSets."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    where: str


@dataclass
class _File:
    """What a file says about its image."""

    name: str
    """Of the file itself."""
    image: str
    size: tuple[int, int]
    objects: list[_Object]
    difficult: int


def voc_parts(finder: ImageFinder) -> dict[str, Part] | None:
    """The parts of DATA with VOC xml; None if there is no such file.

    Raises:
        UnveilError: If a file cannot be used.
    """
    names = finder.archive.names
    files = [i for i, name in enumerate(names) if name.lower().endswith(".xml")]
    if not files:
        return None

    def read(index: int) -> tuple[_File, bytes] | None:
        raw = finder.archive.read_text(index, finder.text, SAMPLE_TEXT_LIMIT)
        found = _read(raw, f"{finder.text}: {names[index]}", names[index])
        return None if found is None else (found, hashlib.sha256(raw).digest())

    with ThreadPoolExecutor(8, thread_name_prefix="xml") as pool:
        read_files = [each for each in pool.map(read, files) if each is not None]
    if not read_files:
        return None
    images, missing, told_twice = dict[int, tuple[_File, bytes]](), list[str](), list[str]()
    for file, digest in read_files:
        index = _image_of(finder, file)
        if index is None:
            missing.append(file.image)
        elif index in images:
            told_twice.append(f"{images[index][0].name} and {file.name}")
        else:
            images[index] = file, digest
    if told_twice:
        raise UnveilError(f"{finder.text}: {told_twice[0]} are both annotations of one image: keep one of them")
    if not images:
        raise UnveilError(
            f"{finder.text}: none of the images of {count_of(len(read_files), 'xml file')} is there: {read_files[0][0].name} is of "
            f"{missing[0]} (the field filename)"
        )
    used = sorted(images)
    members, rest = _members(finder, used)
    classes = sorted({each.name for file, _ in images.values() for each in file.objects})
    if not classes:
        raise UnveilError(f"{finder.text}: none of its {count_of(len(read_files), 'xml file')} has an object")
    parts = {part: _part(finder, [images[i] for i in own], own, classes) for part, own in members.items()}
    first = next(iter(parts.values()))
    unlisted = [names[i] for i in finder.candidates if i not in images]
    difficult = sum(file.difficult for file, _ in images.values())
    hard = f"{finder.text}: {count_of(difficult, 'object')} marked as difficult, used like the others" if difficult else ""
    zero = sum(min(each.box[:2]) < 1 for file, _ in images.values() for each in file.objects)
    before = f"; but {count_of(zero, 'box', 'boxes')} of them begin{'s' * (zero == 1)} before 1" if zero else ""
    origin = f"{finder.text}: boxes are read as VOC defines them, by their first and last pixel, counted from 1{before}"
    gone = missing_note(finder.text, missing, len(read_files))
    out = f"{finder.text}: left out {count_of(len(rest), 'image')} that no list in ImageSets has" if rest else ""
    first.notes += [note for note in (origin, gone, unlisted_note(finder.text, unlisted), out, hard) if note]
    first.unused |= dict.fromkeys(unlisted, "it has no xml file") | {names[i]: "it is in no list of ImageSets" for i in rest}
    return parts


def _image_of(finder: ImageFinder, file: _File) -> int | None:
    """The image of the name that a file gives; or else, since images get renamed, the one that is called like the file."""
    splits = {split for step in file.name.split("/")[:-1] for split in splits_of(step)}
    found = finder.find(file.image, file.name, splits)
    stem = stem_of(file.name)
    if found is not None and found.agrees and stem_of(finder.archive.names[found.image]) == stem:
        return found.image
    alike = finder.with_stem(stem, file.name, splits)
    return found.image if alike is None and found is not None else alike


def _members(finder: ImageFinder, used: Sequence[int]) -> tuple[dict[str, list[int]], list[int]]:
    """The images of each part: by the lists in ImageSets/Main, or by their folders; and those that are in no part."""
    archive, names = finder.archive, [finder.archive.names[i] for i in used]
    lists = split_lists(archive, finder.text, LISTS, names)
    if not lists:
        layout = layout_of(names_without_shards(archive, used))
        parts = {part: [used[i] for i in own] for part, own in layout.parts.items() if own}
        return parts or {"train": list(used)}, []
    members = {part: [used[i] for i in own] for part, own in listed_members(names, lists, LISTS, finder.text).items()}
    listed = {i for own in members.values() for i in own}
    return members, [i for i in used if i not in listed]


def _part(finder: ImageFinder, files: Sequence[tuple[_File, bytes]], images: list[int], classes: list[str]) -> Part:
    number = {name: i for i, name in enumerate(classes)}
    rows = [
        Row(place, number[each.name], (each.box[0] - 1, each.box[1] - 1, *each.box[2:]), each.where)
        for place, (file, _) in enumerate(files)
        for each in file.objects
    ]
    expected = "bndbox with xmin, ymin, xmax and ymax in pixels"
    category_ids = {name: i + 1 for name, i in number.items()}
    told = Told(finder.text, "bndbox", expected, rows, [file.size for file, _ in files], finder.ids(images), category_ids)
    return Part(images, told, classes, b"".join(digest for _, digest in files))


def _read(raw: bytes, where: str, name: str) -> _File | None:
    """What a file says; None if it is not about objects."""
    root = parse_xml(raw, where)
    if root.tag != "annotation":
        return None
    image = _text(root, "filename") or _text(root, "path")
    size = root.find("size")
    sides = (0, 0) if size is None else (_pixels(where, size, "height"), _pixels(where, size, "width"))
    objects, difficult = list[_Object](), 0
    for number, each in enumerate(root.findall("object"), 1):
        called, box = _text(each, "name"), each.find("bndbox")
        if not called:
            _fail(where, f"object {number} has no name")
        if box is None:
            _fail(where, f"object {number} ({called}) has no bndbox")
        corners = [_number(where, number, box, corner) for corner in CORNERS]
        objects.append(_Object(called, (corners[0], corners[1], corners[2], corners[3]), f"{name}, object {number}"))
        difficult += _text(each, "difficult") == "1"
    return _File(name, image or stem_of(name), sides, objects, difficult)


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _pixels(where: str, size: Element, tag: str) -> int:
    """A side of the image, 0 if it is not told."""
    text = _text(size, tag) or "0"
    if not text.isdecimal() or len(text) > 9:
        _fail(where, f"size has the {tag} {text!r}: expected a number of pixels")
    return int(text)


def _number(where: str, number: int, box: Element, corner: str) -> float:
    text = _text(box, corner)
    try:
        value = float(text)
    except ValueError:
        _fail(where, f"{corner} of object {number} is {text!r}: expected a number of pixels")
    if not math.isfinite(value):
        _fail(where, f"{corner} of object {number} is {text!r}: expected a number of pixels")
    return value


def _fail(where: str, what: str) -> NoReturn:
    raise UnveilError(f"{where}: {what}")
