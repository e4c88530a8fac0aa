"""Splits and class labels of images, from the names of files and folders and from label files."""

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
"""Names of the test split, by preference. A split with labels is preferred to one without."""


def common_folders(names: Sequence[str]) -> int:
    """The number of leading folders that all names share."""
    return os.path.commonprefix([min(names), max(names)]).count("/")  # noqa: RUF071 (only its slashes are counted)


def split_folders(names: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each split, if the first folder level at which names differ has only split folders; else {}."""
    depth = common_folders(names)
    splits: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        steps = name.split("/", depth + 1)
        split = steps[depth].lower() if len(steps) == depth + 2 else ""
        if split not in SPLITS:
            return {}
        splits.setdefault(split, []).append(index)
    return splits


def folder_labels(names: Sequence[str], splits: dict[str, list[int]]) -> tuple[dict[str, Labels | None], list[str]]:
    """Labels of each split from its class folders, and the classes of all splits. Class numbers are the same for train and test."""
    class_of: dict[str, list[str] | None] = {}
    class_depth, train_classes = -1, set[str]()
    for split in sorted(splits, key=SPLITS.index):  # train first: it determines the depth of the class folders
        own = [names[index] for index in splits[split]]
        steps = [name.split("/") for name in own]
        level = class_depth if train_classes and min(map(len, steps)) > class_depth + 1 else common_folders(own)
        folders = [step[level] if len(step) > level + 1 else "" for step in steps]
        several = len(set(folders)) > 1 or not train_classes.isdisjoint(folders)
        class_of[split] = folders if several and "" not in folders else None
        if class_of[split] and not train_classes:
            class_depth, train_classes = level, set(folders)
    classes = sorted({folder for folders in class_of.values() if folders for folder in folders})
    number = {name: index for index, name in enumerate(classes)}
    return {
        split: None if folders is None else np.array([number[folder] for folder in folders], dtype=np.int64)
        for split, folders in class_of.items()
    }, classes


def class_numbers(values: Sequence[str | None], where: str) -> tuple[Labels, list[str]]:
    """The class number of each label, and the names of the classes. Whole numbers are kept; names are numbered alphabetically.

    A missing label or a negative number becomes -1.
    """
    classes = sorted({value for value in values if value})
    if classes and all(re.fullmatch(r"[+-]?\d{1,18}", value) for value in classes):
        numbers = np.array([int(value) if value else -1 for value in values], dtype=np.int64)
        top = int(numbers.max())
        if top >= 1_000_000:
            raise UnveilError(f"{where}: label {top} is too large for a class number: expected less than 1,000,000, or names")
        return np.maximum(numbers, -1), [str(number) for number in range(top + 1)]
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[value] if value else -1 for value in values], dtype=np.int64), classes


def written_labels(archive: Archive, candidates: Sequence[int], where: str) -> tuple[Labels, list[str]] | None:
    """Labels from `sample.cls` or `sample.json` next to each candidate (WebDataset), or from `labels.csv` at the root."""
    values = _sample_labels(archive, candidates) or _table_labels(archive, candidates, where)
    return class_numbers(values, where) if values else None


def sample_names(name: str) -> tuple[str, str]:
    """Two names of a file without its suffix: up to the first dot, as in WebDataset, and up to the last dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".")[0], os.path.splitext(name)[0]


def _sample_labels(archive: Archive, candidates: Sequence[int]) -> list[str | None]:
    for suffix, read in ((".cls", _class_text), (".json", _json_label)):
        files = {name.removesuffix(suffix): index for index, name in enumerate(archive.names) if name.endswith(suffix)}
        if not files:
            continue
        label_files = []
        for candidate in candidates:
            to_first_dot, to_last_dot = sample_names(archive.names[candidate])
            label_files.append(files.get(to_first_dot, files.get(to_last_dot)))
        present = [index for index in label_files if index is not None]
        # JSON files often hold outlines or captions. Only the first one is checked for a label, so a million need not be read.
        if present and (suffix == ".cls" or read(archive.read(present[0])) is not None):
            return [None if index is None else read(archive.read(index)) for index in label_files]
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


def _table_labels(archive: Archive, candidates: Sequence[int], where: str) -> list[str | None]:
    names = [archive.names[index] for index in candidates]
    above = names[0].split("/")[: common_folders(names)]
    tables = {name: index for index, name in enumerate(archive.names) if name.endswith("labels.csv")}
    for depth in range(len(above) + 1):
        root = "".join(step + "/" for step in above[:depth])
        if root + "labels.csv" not in tables:
            continue
        text = archive.read(tables[root + "labels.csv"]).decode("utf-8-sig", "replace")
        rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise UnveilError(f"{where}: labels.csv has the columns {rows.fieldnames}, expected file,label")
        labels = {root + (row["file"] or "").removeprefix("./"): (row["label"] or "").strip() for row in rows}
        values = [labels.get(name) or None for name in names]
        if not any(values):
            example = next(iter(labels), "nothing")
            raise UnveilError(
                f"{where}: no file in labels.csv is an image of the data: it lists {example!r}, an image is {names[0]!r}"
            )
        return values
    return []
