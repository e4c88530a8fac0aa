"""Objects in YOLO txt: a line for each object with its class, and its box or polygon in shares of the image."""

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from unveil.data.archive import SAMPLE_TEXT_LIMIT
from unveil.data.archive_parts import names_without_shards
from unveil.data.archives import Archive
from unveil.data.image_finder import ImageFinder, Part
from unveil.data.object_rows import Row, Told
from unveil.data.split_folders import layout_of
from unveil.data.yolo_config import YoloFacts, yolo_config
from unveil.errors import UnveilError
from unveil.plain_text import count_of

EXPECTED = "a class and x, y, width, height of the box, as shares of the image from 0 to 1"
SLACK = 0.01
"""By how much a share may lie outside of 0 to 1, since tools round."""
LISTS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")
"""Files in a folder of labels that are of no image."""
MOST_CLASSES = 100_000
"""Maximum number of classes that no file names."""


def yolo_parts(finder: ImageFinder) -> dict[str, Part] | None:
    """The parts of DATA with YOLO txt; None if there is no such file.

    Raises:
        UnveilError: If a file cannot be used.
    """
    archive = finder.archive
    indices = {_path_key(name): i for i, name in enumerate(archive.names)}
    labels = {image: _label_file(archive.names[image], indices) for image in finder.candidates}
    if not any(index is not None for index in labels.values()):
        lost = _without_image(archive, labels)
        if lost:
            raise UnveilError(
                f"{finder.text}: {count_of(len(lost), 'txt file')} in labels/ {'has' if len(lost) == 1 else 'have'} the name of no "
                f"image, such as {lost[0]}: expected images/7.jpg beside labels/7.txt"
            )
        return None
    config = yolo_config(finder)
    splits = config.splits
    if not splits:
        layout = layout_of(names_without_shards(archive, finder.candidates))
        splits = {part: [finder.candidates[i] for i in members] for part, members in layout.parts.items()}
    splits = {part: images for part, images in splits.items() if any(labels[image] is not None for image in images)}
    if not splits:
        raise UnveilError(f"{finder.text}: no image in the splits of {config.file} has a txt file of boxes")
    parts = {part: _part(finder, {i: labels[i] for i in images}, config) for part, images in splits.items()}
    first = next(iter(parts.values()))
    first.notes += config.notes
    if config.keypoints is not None:
        first.notes.append(f"{finder.text}: {config.file} is of poses (kpt_shape): boxes are read, and keypoints are not")
    if not config.names:
        _name_by_numbers(finder, parts)
    bare = [i for part in parts.values() for i in part.images if labels[i] is None]
    if bare:
        first.notes.append(
            f"{finder.text}: {count_of(len(bare), 'image')} without a txt file, taken as images without objects, such as "
            f"{archive.names[bare[0]]}"
        )
    lost = _without_image(archive, labels)
    if lost:
        first.notes.append(f"{finder.text}: left out {count_of(len(lost), 'txt file')} without an image, such as {lost[0]}")
    used = {i for part in parts.values() for i in part.images}
    rest = [archive.names[i] for i in finder.candidates if i not in used]
    first.unused |= dict.fromkeys(rest, "its folder has no txt files of boxes, or it is in no split")
    return parts


def _label_file(image: str, indices: dict[str, int]) -> int | None:
    """The file of an image: in the folder labels/ in place of images/, or beside the image."""
    *folders, file = _path_key(image).split("/")
    text = os.path.splitext(file)[0] + ".txt"
    places = [i for i, folder in enumerate(folders) if folder == "images"]
    for chosen in (*([place] for place in reversed(places)), places):  # all of them in images.zip with a folder images/ inside
        found = indices.get("/".join(["labels" if i in chosen else folder for i, folder in enumerate(folders)] + [text]))
        if found is not None:
            return found
    return indices.get("/".join([*folders, text]))


def _without_image(archive: Archive, labels: Mapping[int, int | None]) -> list[str]:
    """The txt files in folders called labels that are of no image, but for lists of classes or images."""
    used, found = set(labels.values()), []
    for i, name in enumerate(archive.names):
        *folders, file = _path_key(name).split("/")
        if i not in used and file.lower().endswith(".txt") and file.lower() not in LISTS and "labels" in folders:
            found.append(name)
    return found


def _path_key(path: str) -> str:
    """A path with its folders in lower case: Images/ and Labels/ are usual as well."""
    folder, slash, file = path.rpartition("/")
    return folder.lower() + slash + file


def _part(finder: ImageFinder, labels: Mapping[int, int | None], config: YoloFacts) -> Part:
    """The images of a split, with the file of each."""
    archive, images, files = finder.archive, list(labels), list(labels.values())

    def read(place: int) -> tuple[list[Row], bytes]:
        index = files[place]
        if index is None:
            return [], b"none"
        raw = archive.read_text(index, finder.text, SAMPLE_TEXT_LIMIT)
        return _rows(raw, place, f"{finder.text}: {archive.names[index]}", archive.names[index], config), raw

    with ThreadPoolExecutor(8, thread_name_prefix="txt") as pool:
        found = list(pool.map(read, range(len(images))))
    digest = hashlib.sha256()
    for _, raw in found:
        digest.update(hashlib.sha256(raw).digest())
    rows = [row for own, _ in found for row in own]
    told = Told(
        finder.text,
        "box",
        EXPECTED,
        rows,
        [(0, 0)] * len(images),
        finder.ids(images),
        {name: number for number, name in enumerate(config.names)},
        relative=True,
    )
    return Part(images, told, list(config.names), digest.digest())


def _rows(raw: bytes, place: int, where: str, file: str, config: YoloFacts) -> list[Row]:
    """The objects of a file."""
    names = config.names
    rows = []
    for number, line in enumerate(raw.decode("utf-8-sig", "replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            _fail(where, number, f"has {line.strip()[:60]!r}")
        if config.keypoints is not None:
            if len(values) not in (5, 5 + config.keypoints):
                _fail(where, number, f"has {count_of(len(values), 'number')}, and kpt_shape asks for {5 + config.keypoints}")
            values = values[:5]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            _fail(where, number, f"has {count_of(len(values), 'number')}")
        label, shares = values[0], values[1:]
        if label != int(label) if math.isfinite(label) else True:
            _fail(where, number, f"has the class {words[0]}")
        if not 0 <= label < (len(names) or MOST_CLASSES):
            listed = (
                f"{config.named_in} has the classes 0 to {len(names) - 1}"
                if names
                else f"classes are numbers from 0 to {MOST_CLASSES - 1}"
            )
            raise UnveilError(f"{where}, line {number}: has the class {label:.0f}, but {listed}")
        outside = next((each for each in shares if not -SLACK <= each <= 1 + SLACK), None)
        if outside is not None:
            _fail(where, number, f"has the value {outside:g}")
        segment = None
        if len(shares) == 4:
            x, y, width, height = shares
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            segment, box = [shares], (min(shares[0::2]), min(shares[1::2]), max(shares[0::2]), max(shares[1::2]))
        rows.append(Row(place, int(label), box, f"{file}, line {number}", segment=segment))
    return rows


def _name_by_numbers(finder: ImageFinder, parts: dict[str, Part]) -> None:
    """Classes without names are called by their numbers."""
    most = max((row.label for part in parts.values() for row in part.told.rows), default=0)
    names = [str(number) for number in range(most + 1)]
    for part in parts.values():
        part.classes = names
        part.told = part.told._replace(category_ids={name: int(name) for name in names})
    first = next(iter(parts.values()))
    first.notes.append(f"{finder.text}: no data.yaml or classes.txt names the classes, so they are called 0 to {most}")


def _fail(where: str, number: int, what: str) -> NoReturn:
    raise UnveilError(f"{where}, line {number}: {what}: expected {EXPECTED}; or the class and a polygon x y x y x y ...")
