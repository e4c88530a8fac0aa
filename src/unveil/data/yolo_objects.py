"""Objects in YOLO txt: a line for each object with its class, and its box or polygon in shares of the image."""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import yaml

from unveil.data.archive import SAMPLE_TEXT_LIMIT
from unveil.data.archive_parts import names_without_shards
from unveil.data.image_finder import ImageFinder, Part
from unveil.data.object_rows import Row, Told
from unveil.data.split_folders import layout_of
from unveil.errors import UnveilError
from unveil.plain_text import count_of

EXPECTED = "a class and x, y, width, height of the box, as shares of the image from 0 to 1"
SLACK = 0.01
"""By how much a share may lie outside of 0 to 1, since tools round."""
NAMES = ("classes.txt", "obj.names", "_darknet.labels")
"""Files with a class on each line."""
YAML_LIMIT = 2**20
MOST_LISTS = 100
MOST_CLASSES = 100_000
"""Maximum number of classes that no file names."""


def yolo_parts(finder: ImageFinder) -> dict[str, Part] | None:
    """The parts of DATA with YOLO txt; None if there is no such file.

    Raises:
        UnveilError: If a file cannot be used.
    """
    archive = finder.archive
    indices = {name: i for i, name in enumerate(archive.names)}
    labels = {image: _label_file(archive.names[image], indices) for image in finder.candidates}
    if not any(index is not None for index in labels.values()):
        return None
    names, where = _class_names(finder)
    layout = layout_of(names_without_shards(archive, finder.candidates))
    parts = {}
    for part, members in layout.parts.items():
        images = [finder.candidates[i] for i in members]
        if any(labels[image] is not None for image in images):
            parts[part] = _part(finder, images, [labels[image] for image in images], names, where)
    first = next(iter(parts.values()))
    if not names:
        _name_by_numbers(finder, parts)
    bare = [i for part in parts.values() for i in part.images if labels[i] is None]
    if bare:
        first.notes.append(
            f"{finder.text}: {count_of(len(bare), 'image')} without a txt file, taken as images without objects, such as "
            f"{archive.names[bare[0]]}"
        )
    used = {i for part in parts.values() for i in part.images}
    rest = [archive.names[i] for i in finder.candidates if i not in used]
    first.unused |= dict.fromkeys(rest, "its folder has no txt files of boxes")
    return parts


def _label_file(image: str, indices: dict[str, int]) -> int | None:
    """The file of an image: in the folder labels/ in place of images/, or beside the image."""
    *folders, file = image.split("/")
    text = os.path.splitext(file)[0] + ".txt"
    for depth in reversed(range(len(folders))):
        if folders[depth] == "images":
            found = indices.get("/".join([*folders[:depth], "labels", *folders[depth + 1 :], text]))
            if found is not None:
                return found
    return indices.get("/".join([*folders, text]))


def _class_names(finder: ImageFinder) -> tuple[list[str], str]:
    """The names of the classes, and the file that has them; nothing if no file has."""
    archive = finder.archive
    by_depth = sorted(range(len(archive.names)), key=lambda i: (archive.names[i].count("/"), archive.names[i]))
    for i in by_depth:
        name = archive.names[i]
        if name.lower().endswith((".yaml", ".yml")):
            names = _yaml_names(archive.read_text(i, finder.text, YAML_LIMIT), f"{finder.text}: {name}")
            if names:
                return names, name
    for i in by_depth:
        name = archive.names[i]
        if name.rpartition("/")[2] in NAMES:
            text = archive.read_text(i, finder.text, YAML_LIMIT).decode("utf-8-sig", "replace").strip()
            return _distinct([line.strip() for line in text.splitlines()], f"{finder.text}: {name}"), name
    return [], ""


def _yaml_names(raw: bytes, where: str) -> list[str]:
    """The names in a data.yaml: a list, or a name by its number; empty if it has none."""
    if (lists := raw.count(b"[") + raw.count(b"{")) > MOST_LISTS:  # the time to parse them grows with the square of their depth
        raise UnveilError(f"{where} has {lists:,} lists: expected the names of the classes")
    try:
        content: Any = yaml.safe_load(raw)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UnveilError(f"{where} is damaged: it is not valid YAML ({' '.join(str(error).split())[:200]})") from None
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        return []
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UnveilError(f"{where}: names has the keys {', '.join(map(str, list(names)[:5]))}: expected 0, 1, 2, ...")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise UnveilError(f"{where}: names is no list of classes")
    return _distinct([str(name).strip() for name in names], where)


def _distinct(names: list[str], where: str) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or "" in names or not names:
        raise UnveilError(
            f"{where}: {f'two classes are called {twice!r}' if twice else 'a class has no name'}: expected one name for each"
        )
    return names


def _part(finder: ImageFinder, images: list[int], files: Sequence[int | None], names: Sequence[str], where: str) -> Part:
    archive = finder.archive

    def read(place: int) -> tuple[list[Row], bytes]:
        index = files[place]
        if index is None:
            return [], b"none"
        raw = archive.read_text(index, finder.text, SAMPLE_TEXT_LIMIT)
        return _rows(raw, place, f"{finder.text}: {archive.names[index]}", archive.names[index], (names, where)), raw

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
        [os.path.splitext(archive.names[i].rpartition("/")[2])[0] for i in images],
        {name: number for number, name in enumerate(names)},
        relative=True,
    )
    return Part(images, told, list(names), digest.digest())


def _rows(raw: bytes, place: int, where: str, file: str, known: tuple[Sequence[str], str]) -> list[Row]:
    """The objects of a file; `known` are the classes, and the file that names them."""
    names, named_in = known
    rows = []
    for number, line in enumerate(raw.decode("utf-8-sig", "replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            _fail(where, number, f"has {line.strip()[:60]!r}")
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            _fail(where, number, f"has {count_of(len(values), 'number')}")
        label, shares = values[0], values[1:]
        if label != int(label) if math.isfinite(label) else True:
            _fail(where, number, f"has the class {words[0]}")
        if not 0 <= label < (len(names) or MOST_CLASSES):
            listed = (
                f"{named_in} has the classes 0 to {len(names) - 1}"
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
