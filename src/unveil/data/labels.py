"""Which image belongs to which split and class: rules over file names, and over the labels that lie beside them."""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive
from unveil.errors import UnveilError

Labels = NDArray[np.int64]
SPLITS = ("train", "test", "val", "valid", "validation")
TEST_ORDER = SPLITS[1:]
"""Which split is taken as the test part: the first that is there, but a labelled one before an unlabelled one."""


def common_folders(names: Sequence[str]) -> int:
    """How many leading folders all names share."""
    return os.path.commonprefix([min(names), max(names)]).count("/")  # noqa: RUF071 (only its slashes are counted)


def split_folders(names: Sequence[str]) -> dict[str, list[int]]:
    """The places of each split where the first level that differs holds split folders and nothing else; else {}."""
    depth = common_folders(names)
    parts: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        steps = name.split("/", depth + 1)
        split = steps[depth].lower() if len(steps) == depth + 2 else ""
        if split not in SPLITS:
            return {}
        parts.setdefault(split, []).append(place)
    return parts


def folder_labels(names: Sequence[str], parts: dict[str, list[int]]) -> tuple[dict[str, Labels | None], list[str]]:
    """Labels of each part by class folders, and the classes of all parts: numbers agree between train and test."""
    found: dict[str, list[str] | None] = {}
    depth, known = -1, set[str]()
    for part in sorted(parts, key=SPLITS.index):  # train first: it says how deep the classes lie
        own = [names[place] for place in parts[part]]
        steps = [name.split("/") for name in own]
        level = depth if known and min(map(len, steps)) > depth + 1 else common_folders(own)
        folders = [step[level] if len(step) > level + 1 else "" for step in steps]
        several = len(set(folders)) > 1 or not known.isdisjoint(folders)
        found[part] = folders if several and "" not in folders else None
        if found[part] and not known:
            depth, known = level, set(folders)
    classes = sorted({folder for folders in found.values() if folders for folder in folders})
    number = {name: index for index, name in enumerate(classes)}
    return {
        part: None if folders is None else np.array([number[folder] for folder in folders], dtype=np.int64)
        for part, folders in found.items()
    }, classes


def numbered(values: Sequence[str | None], where: str) -> tuple[Labels, list[str]]:
    """Class numbers and names of written labels: whole numbers stay as they are, names are numbered in order.

    A missing label, and a negative number, becomes -1.
    """
    known = {value for value in values if value}
    if known and all(re.fullmatch(r"[+-]?\d{1,18}", value) for value in known):
        numbers = np.array([int(value) if value else -1 for value in values], dtype=np.int64)
        top = int(numbers.max())
        if top >= 1_000_000:
            raise UnveilError(f"{where}: label {top} is too large for the number of a class; give names instead")
        return np.maximum(numbers, -1), [str(number) for number in range(top + 1)]
    classes = sorted(known)
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[value] if value else -1 for value in values], dtype=np.int64), classes


def written_labels(archive: Archive, candidates: Sequence[int], where: str) -> tuple[Labels, list[str]] | None:
    """Labels of the candidates from `key.cls` or `key.json` beside each (WebDataset), or `labels.csv` at the root."""
    values = _siblings(archive, candidates) or _table(archive, candidates, where)
    return numbered(values, where) if values else None


def keys_of(name: str) -> tuple[str, str]:
    """What the files that belong to an image are called, before their ending: up to the first dot (WebDataset), or the last."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".")[0], os.path.splitext(name)[0]


def _siblings(archive: Archive, candidates: Sequence[int]) -> list[str | None]:
    for ending, read in ((".cls", _class_text), (".json", _json_label)):
        files = {name.removesuffix(ending): at for at, name in enumerate(archive.names) if name.endswith(ending)}
        if not files:
            continue
        found = []
        for at in candidates:
            first, other = keys_of(archive.names[at])
            found.append(files.get(first, files.get(other)))
        present = [at for at in found if at is not None]
        # JSON beside images is as often an outline or a caption: the first one tells, without reading a million.
        if present and (ending == ".cls" or read(archive.read(present[0])) is not None):
            return [None if at is None else read(archive.read(at)) for at in found]
    return []


def _class_text(raw: bytes) -> str | None:
    return raw.decode("utf-8", "replace").strip() or None


def _json_label(raw: bytes) -> str | None:
    try:
        record: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    label = record.get("label") if isinstance(record, dict) else None
    return str(label) if isinstance(label, (int, str)) and not isinstance(label, bool) else None


def _table(archive: Archive, candidates: Sequence[int], where: str) -> list[str | None]:
    names = [archive.names[at] for at in candidates]
    above = names[0].split("/")[: common_folders(names)]
    places = {name: at for at, name in enumerate(archive.names) if name.endswith("labels.csv")}
    for depth in range(len(above) + 1):
        root = "".join(step + "/" for step in above[:depth])
        if root + "labels.csv" not in places:
            continue
        text = archive.read(places[root + "labels.csv"]).decode("utf-8-sig", "replace")
        rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise UnveilError(f"{where}: labels.csv has columns {rows.fieldnames}, expected file,label")
        labels = {root + (row["file"] or "").removeprefix("./"): (row["label"] or "").strip() for row in rows}
        values = [labels.get(name) or None for name in names]
        if not any(values):
            example = next(iter(labels), "nothing")
            raise UnveilError(f"{where}: labels.csv names no image: it has {example!r}, an image is {names[0]!r}")
        return values
    return []
