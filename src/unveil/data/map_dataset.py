"""Map-style Datasets, such as those of torch and torchvision: objects with `__len__` and `__getitem__`, which are read lazily."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unveil.data.image_list import TAKES, checksum, is_path, raw_image
from unveil.data.labels import Labels
from unveil.data.regular_files import read_file
from unveil.data.source import Raw, Source, evenly_spaced, version_2
from unveil.errors import UnveilError

SAMPLES = 8
"""A fingerprint covers the pixels of this many samples."""
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "target", "class")
"""Keys of samples that are dictionaries. The first one that a sample has is used."""
TARGETS = ("targets", "labels", "_labels")
"""Attributes that hold the labels of a Dataset, as in torchvision."""


class DatasetReader:
    """Reads the samples of a Dataset one at a time, since few Datasets can be read by several threads."""

    def __init__(self, dataset: Any, names: Sequence[str]) -> None:
        self.dataset, self.names, self._lock = dataset, names, threading.Lock()

    def sample(self, index: int) -> tuple[Any, Any]:
        """The image and the label of a sample; None in place of a label that is missing."""
        with self._lock:
            return parts_of(self.dataset[index], self.names[index])

    def __call__(self, index: int) -> Raw:
        with self._lock:
            image = parts_of(self.dataset[index], self.names[index])[0]
            if is_path(image):
                return read_file(image)
            raw = raw_image(image, self.names[index])
            if isinstance(raw, Image.Image):
                raw.load()  # a Dataset may close its file, or use it for the next sample
                return raw
            return raw.copy() if isinstance(raw, np.ndarray) else raw


def parts_of(sample: Any, name: str) -> tuple[Any, Any]:
    """The image and the label of a sample: an image, a pair or a longer tuple, or a dictionary."""
    if isinstance(sample, Mapping):
        image = next((sample[key] for key in IMAGE_KEYS if key in sample), None)
        if image is None:
            raise UnveilError(f"{name} is a dictionary without an image: expected a key {' or '.join(IMAGE_KEYS)}")
        return image, next((sample[key] for key in LABEL_KEYS if key in sample), None)
    if isinstance(sample, tuple | list):
        if not sample:
            raise UnveilError(f"{name} is empty: {TAKES}, or such an image and its label")
        return sample[0], sample[1] if len(sample) > 1 else None
    return sample, None


def dataset_source(dataset: Any) -> Source:
    """A Dataset as a source without labels, in its order.

    Its samples are images as for `unveil.data.image_list.raw_image`, pairs of an image and a label, or dictionaries with such keys.

    Raises:
        UnveilError: If it is empty, or its first sample is no image.
    """
    count, kind = len(dataset), type(dataset).__name__
    if not count:
        raise UnveilError(f"DATA is a {kind} without samples")
    names = [f"sample-{index:06d}" for index in range(count)]
    read = DatasetReader(dataset, names)
    try:
        first, again = checksum(read(0)), checksum(read(0))
    except UnveilError:
        raise
    except Exception:  # a broken sample, of which there may be more: they are listed when they are read
        first = again = ""
    notes: tuple[str, ...] = ()
    if first != again:
        notes = (
            f"the {kind} gives another image each time that it is asked for sample 0: leave random transforms out of it, and use "
            "augment=. Images that are kept in memory are drawn once, and evaluations see them too",
        )
    contents = [] if notes else [_checksum(read, index) for index in evenly_spaced(range(count), SAMPLES)]
    listing = hashlib.sha256(f"{kind} {count}".encode()).hexdigest()
    return Source(
        "dataset",
        names,
        None,
        [],
        version_2(listing, *contents),
        read,
        listing_fingerprint=listing,
        notes=notes,
        form=f"a Dataset ({kind})",
    )


def dataset_labels(dataset: Any, source: Source) -> tuple[list[Any] | None, list[str] | None, str]:
    """The labels of a Dataset and, if it numbers named classes, their names; and what the user should know.

    They are those of its attribute `targets` or `labels`, if there is one; or else each sample is read once.
    """
    values, names, note = _attribute(dataset, TARGETS), class_names(dataset), ""
    if values is None:
        read = source.reader
        assert isinstance(read, DatasetReader)
        if not any(_is_label(_sample(read, index)) for index in range(min(len(source), SAMPLES))):
            return None, None, ""
        values = [label if _is_label(label := _sample(read, index)) else None for index in range(len(source))]
        note = f"read all {len(source):,} samples for their labels: labels=, or an attribute targets of the Dataset, saves that"
    values = [value.item() if hasattr(value, "item") else value for value in values]
    numbers = {value for value in values if isinstance(value, int) and not isinstance(value, bool)}
    if names and len(numbers) and all(isinstance(each, int) or each is None for each in values) and max(numbers) < len(names):
        return [None if each is None or each < 0 else each for each in values], names, note
    return values, None, note


def numbered(values: Sequence[int | None]) -> Labels:
    """Labels that are numbers of named classes already; -1 for None."""
    return np.array([-1 if value is None else value for value in values], dtype=np.int64)


def _attribute(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    """An attribute with one value for each sample, also of the Dataset of which this one is a subset."""
    if getattr(dataset, "target_transform", None) is not None:  # which changes what the attribute says
        return None
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:
        found = _attribute(inner, names)
        return None if found is None else [found[index] for index in indices]
    for name in names:
        value = getattr(dataset, name, None)
        if value is not None and hasattr(value, "__len__") and len(value) == len(dataset) and not isinstance(value, Mapping | str):
            values = list(value.tolist() if hasattr(value, "tolist") else value)
            if all(_is_label(each) or each is None for each in values):
                return values
    return None


def class_names(dataset: Any) -> list[str] | None:
    """The attribute `classes`: names, or tuples that begin with a name."""
    found = getattr(dataset, "classes", None)
    if found is None and getattr(dataset, "indices", None) is not None:
        return class_names(getattr(dataset, "dataset", None))
    if not isinstance(found, list | tuple):
        return None
    names = [each[0] if isinstance(each, tuple) and each else each for each in found]
    return [str(name) for name in names] if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) else None


def _is_label(value: Any) -> bool:
    if isinstance(value, bool | int | float | str | np.generic):
        return True
    return hasattr(value, "item") and getattr(value, "ndim", None) == 0


def _sample(read: DatasetReader, index: int) -> Any:
    """The label of a sample; None if it has none, or cannot be read."""
    try:
        return read.sample(index)[1]
    except Exception:
        return None


def _checksum(read: DatasetReader, index: int) -> str:
    try:
        return checksum(read(index))
    except Exception:
        return "cannot be read"
