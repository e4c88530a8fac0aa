"""Class labels of images: from label files, and as numbers."""

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.archive import SAMPLE_TEXT_LIMIT, Archive
from unveil.data.label_table import TABLE, Reading, examples, table_labels
from unveil.plain_text import count_of

Labels = NDArray[np.int64]
_INTEGER, _DECIMAL = re.compile(r"[+-]?[0-9]{1,400}"), re.compile(r"[+-]?[0-9]{0,40}\.?[0-9]{1,40}")
MISSING = ("nan", "na", "n/a", "null", "none", "?")
"""Words that tables have for a missing value, without case."""
SHOWN_CLASSES = 6
"""Maximum number of class names in a message."""
SAMPLED_JSON = 100
"""How many JSON files beside images are read to see whether any of them has a label."""


class WrittenLabels(NamedTuple):
    """Labels from label files."""

    values: list[str | None]
    """The label of each image; None if it has none."""
    where: str
    """What kind of file they are from; "" if a table has no labels."""
    notes: list[str]
    """Problems, each in one sentence."""


def class_order(names: Iterable[str]) -> list[str]:
    """The distinct names in the order of their class numbers: by value if all are numbers (-1, 5, 2019), else alphabetically."""
    distinct = set(names)
    if all(_INTEGER.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    if all(_DECIMAL.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (float(name), name))
    return sorted(distinct)


def number_labels(values: Mapping[str, Sequence[str | None]]) -> dict[str, tuple[Labels | None, list[str]]]:
    """The class numbers and the class names of each part of DATA.

    Only labels that occur are numbered. The classes of the train split are numbered first; those that occur in another part only
    follow after them. A label of None becomes -1, and a part without any label has None.
    """
    values = composed(values)
    occurring = {part: class_order(value for value in own if value is not None) for part, own in values.items()}
    first = occurring.get("train") or class_order(name for names in occurring.values() for name in names)
    known = set(first)
    numbered: dict[str, tuple[Labels | None, list[str]]] = {}
    for part, own in values.items():
        classes = [*first, *(name for name in occurring[part] if name not in known)]
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([-1 if value is None else number[value] for value in own], dtype=np.int64)
        numbered[part] = (labels, classes) if occurring[part] else (None, [])
    return numbered


def composed(values: Mapping[str, Sequence[str | None]]) -> Mapping[str, Sequence[str | None]]:
    """Labels of which two that look the same, because an accent is a character of its own in one of them, are one class."""
    distinct = {value for own in values.values() for value in own if value is not None}
    one = {value: unicodedata.normalize("NFC", value) for value in distinct}
    if len(set(one.values())) == len(distinct):
        return values
    return {part: [None if value is None else one[value] for value in own] for part, own in values.items()}


def number_array(labels: NDArray[Any]) -> tuple[Labels, list[str]]:
    """The class numbers and class names of an array of labels (N,): numbers, strings or bytes. NaN and empty strings become -1."""
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "surrogateescape")
    if labels.dtype.kind not in "biuf":
        values = [None if value is None or value != value else str(value) or None for value in labels.tolist()]
        named, classes = number_labels({"train": values})["train"]
        return np.full(len(labels), -1, np.int64) if named is None else named, classes
    missing = ~np.isfinite(labels) if labels.dtype.kind == "f" else np.zeros(len(labels), bool)
    distinct, inverse = np.unique(labels[~missing], return_inverse=True)
    numbers = np.full(len(labels), -1, np.int64)
    numbers[~missing] = inverse.reshape(-1)
    whole = labels.dtype.kind != "f" or bool((distinct == np.floor(distinct)).all())
    return numbers, [str(int(value)) if whole else str(value) for value in distinct.tolist()]


def classes_sentence(where: str, labels: Labels, classes: Sequence[str], noun: str = "image") -> str:
    """A sentence for the user: "took the folders as classes: a, b, c (12 images each)"."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    named = [(name, int(count)) for name, count in zip(classes, counts, strict=True) if count]
    least, most = min(count for _, count in named), max(count for _, count in named)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    shown = ", ".join(f"{name!r}" if "," in name else name for name, _ in named[:SHOWN_CLASSES])
    many = f", ... ({len(named):,} classes, " if len(named) > SHOWN_CLASSES else " ("
    doubts = "".join(f". {doubt}" for doubt in doubtful([name for name, _ in named]))
    return f"took {where} as classes: {shown}{many}{each} {noun}{'s' * (most != 1)} each){doubts}"


def doubtful(classes: Sequence[str]) -> list[str]:
    """Sentences about classes that may be mistakes: names that differ in case or spaces only, and words for a missing value."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    found = [
        f"{' and '.join(map(repr, names))} differ only in case or spaces, and are {len(names)} classes"
        for names in alike.values()
        if len(names) > 1
    ]
    missing = [name for name in classes if name.strip().casefold() in MISSING]
    return found[:3] + [f"{name!r} is a class as well: leave the label of an image empty if it has none" for name in missing]


def written_labels(
    archive: Archive, candidates: Sequence[int], roots: Sequence[str], where: str, *, optional: bool = False
) -> WrittenLabels | None:
    """Labels from `sample.cls` or `sample.json` next to each candidate (WebDataset), or from `labels.csv`.

    Args:
        archive: The files of DATA.
        candidates: Indices of the images.
        roots: Folders that may have a labels.csv, in order, each "" or with a slash at the end; see `table_labels`.
        where: DATA as the user typed it, for error messages.
        optional: Whether a labels.csv may have no labels.
    """
    found = sample_labels(archive, candidates, where, CLASS_FILES)
    if found is None:
        table = table_labels(archive, candidates, roots, where, Reading(optional=optional))
        if table is None:
            return None
        values = [None if cells is None else cells[0] for cells in table.cells]
        found = WrittenLabels(values, f"the labels in {TABLE}" if table.columns else "", table.notes)
    same = unified(found.values)
    if same == found.values:
        return found
    return found._replace(values=same, notes=[*found.notes, *filter(None, [joined_classes(found.values, same)])])


def joined_classes(written: Sequence[str | None], values: Sequence[str | None]) -> str:
    """A sentence on labels that `unified` made the same; "" if there are none."""
    several: dict[str, set[str]] = {}
    for before, value in zip(written, values, strict=True):
        if before is not None and value is not None:
            several.setdefault(value, set()).add(before)
    joined = [f"{' and '.join(sorted(each))} are one class, {value}" for value, each in several.items() if len(each) > 1]
    return f"all labels are numbers, so {examples(joined)}" if joined else ""


def unified(values: Sequence[str | None]) -> list[str | None]:
    """Labels, with the same text for the same number: if all are numbers, 01, 1 and 1.0 are the same class."""
    distinct = {value for value in values if value is not None}
    if all(_INTEGER.fullmatch(value) for value in distinct) and len({int(value) for value in distinct}) < len(distinct):
        return [None if value is None else str(int(value)) for value in values]
    if all(_DECIMAL.fullmatch(value) for value in distinct) and len({Decimal(value) for value in distinct}) < len(distinct):
        return [None if value is None else f"{Decimal(value).normalize():f}" for value in values]
    return list(values)


def sample_names(name: str) -> tuple[str, str]:
    """Two names of a file without its suffix: up to the first dot, as in WebDataset, and up to the last dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".")[0], os.path.splitext(name)[0]


def sample_labels(
    archive: Archive, candidates: Sequence[int], where: str, parsers: Mapping[str, Callable[[bytes], str | None]]
) -> WrittenLabels | None:
    """Labels from the files beside the images (WebDataset); None if there are none.

    Args:
        archive: The files of DATA.
        candidates: Indices of the images.
        where: DATA as the user typed it, for error messages.
        parsers: Reads the label of a file, by the suffix of the file; the first suffix that occurs is taken.
    """
    for suffix, parse in parsers.items():

        def read_one(index: int, parse: Callable[[bytes], str | None] = parse) -> str | None:
            return parse(archive.read_text(index, where, SAMPLE_TEXT_LIMIT))

        files = {name.removesuffix(suffix): index for index, name in enumerate(archive.names) if name.endswith(suffix)}
        if not files:
            continue
        label_files = []
        for candidate in candidates:
            to_first_dot, to_last_dot = sample_names(archive.names[candidate])
            label_files.append(files.get(to_first_dot, files.get(to_last_dot)))
        present = [index for index in label_files if index is not None]
        # JSON files often hold outlines or captions. Only a sample is checked for a label, so a million need not be read.
        sample = present[:: len(present) // SAMPLED_JSON + 1]
        if present and (suffix == ".cls" or any(read_one(index) is not None for index in sample)):
            values = [None if index is None else read_one(index) for index in label_files]
            missing = [archive.names[image] for image, value in zip(candidates, values, strict=True) if value is None]
            count = f"{count_of(len(missing), 'image')} {'have' if len(missing) > 1 else 'has'}"
            notes = [f"{count} no label in a {suffix} file: {examples(missing)}"] if missing else []
            if any(name.rpartition("/")[2] == TABLE for name in archive.names):
                notes.append(f"{TABLE} is not used, because the labels are in the {suffix} files")
            return WrittenLabels(values, f"the labels in the {suffix} files", notes)
    return None


def _class_text(raw: bytes) -> str | None:
    return raw.decode("utf-8", "replace").strip() or None


def _json_label(raw: bytes) -> str | None:
    try:
        record: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    label = record.get("label") if isinstance(record, dict) else None
    return str(label) or None if isinstance(label, (int, str)) and not isinstance(label, bool) else None


CLASS_FILES = {".cls": _class_text, ".json": _json_label}
"""Reads the class of a file beside an image, by the suffix of the file."""
