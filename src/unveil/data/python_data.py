"""DATA given in Python: lists, arrays, tensors, DataFrames and Datasets, with labels and splits beside them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from unveil.data.arrays import array_source, tensor_array, with_values
from unveil.data.data_frame import LABELS, columns_of, is_frame, is_missing
from unveil.data.image_list import is_path, is_torch_tensor, list_source
from unveil.data.label_values import LIST_COLUMNS, NUMBER_COLUMNS, SEPARATOR, LabelKind, MultiLabel, Number, Written
from unveil.data.labels import classes_sentence, number_labels, unified
from unveil.data.map_dataset import dataset_labels, dataset_source, numbered
from unveil.data.parts import DataParts
from unveil.data.python_maps import MapRequest, with_list_of_maps
from unveil.data.source import Source, version_2
from unveil.data.split_folders import split_of
from unveil.errors import UnveilError
from unveil.plain_text import count_of

TAKES = (
    "expected a path or a name, an array (N, H, W, C) or (N, H, W), a tensor (N, C, H, W), a list of paths, Pillow images, arrays "
    "or tensors, a DataFrame with a column of paths, a map-style Dataset, or a pair of one of these and its labels"
)


MAPS = (
    "give a pair of arrays, (N, H, W, C) images and (N, H, W) labels; or a pair of lists, of images and of masks, which are paths, "
    "Pillow images, or arrays (H, W)"
)
"""Images with class maps in Python, for error messages."""
LABEL_NAMES: dict[type, tuple[str, ...]] = {MultiLabel: LIST_COLUMNS, Number: NUMBER_COLUMNS}
"""Names of the column of a DataFrame with labels of another kind than one class."""


@dataclass(frozen=True, eq=False)
class Given:
    """Images, and what was given beside them with `labels=` and `split=`."""

    images: Any
    labels: Any = None
    """One label for each image; or the name of a column of a DataFrame."""
    splits: Any = None
    """The name of a split for each image."""


def with_columns(data: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """DATA with the labels and splits of its images among the options, and the other options.

    `labels` is also an option of probes and of fine-tuning, the number of labels to use; and `split` the name of the parts of DATA
    to use. A value for each image is told from them by its type.

    Raises:
        UnveilError: If they are given without DATA, or beside DATA that is a path or a name.
    """
    rest = dict(options)
    labels = rest.pop("labels") if _is_column(rest.get("labels"), (int, np.integer)) else None
    if isinstance(labels, str) and not is_frame(data):
        raise UnveilError(f"labels is {labels!r}: the name of a column needs a DataFrame; otherwise, give one label for each image")
    splits = rest.pop("split") if _is_column(rest.get("split"), (str,)) else None
    if labels is None and splits is None:
        return data, rest
    name = "labels" if labels is not None else "split"
    if data is None:
        raise UnveilError(f"{name}= is for images that are given with it: give DATA too")
    if is_path(data):
        raise UnveilError(
            f"{name}= is for images given in Python, whose order is known, but DATA is {str(data)!r}: give a list of paths or a "
            "DataFrame, or put the labels into folders or a labels.csv"
        )
    if isinstance(data, tuple) and labels is not None:
        raise UnveilError("DATA is a pair of images and labels, and there are labels= too: give them once")
    return (Given(*data, splits) if isinstance(data, tuple) and len(data) == 2 else Given(data, labels, splits)), rest


def python_parts(data: Any, *, maps: MapRequest | None = None, kind: LabelKind | None = None) -> DataParts:
    """Opens DATA that was given in Python.

    Args:
        data: See `Given`, and `TAKES`.
        maps: How class maps are read, if the labels have to be class maps.
        kind: The kind of labels, if it is neither classes nor maps.

    Raises:
        UnveilError: If it is something else, is empty, or its labels or splits do not fit.
    """
    given = data if isinstance(data, Given) else Given(*data) if isinstance(data, tuple) and len(data) == 2 else Given(data)
    images, labels, splits = given.images, given.labels, given.splits
    with_maps = maps is not None
    _refuse_others(images, isinstance(data, tuple) and len(data) == 2)
    if is_frame(images):
        table = columns_of(images, labels if isinstance(labels, str) else None, LABEL_NAMES.get(type(kind), LABELS))
        labels = table.labels if labels is None or isinstance(labels, str) else labels
        splits = table.splits if splits is None else splits
        what = "a DataFrame of paths" if all(map(is_path, table.images)) else "a DataFrame of images"
        source = list_source(table.images, name="dataframe", form=what)
    elif isinstance(images, np.ndarray) and not (images.ndim == 1 and images.dtype.kind in "OU"):
        return _parts(_of_array(images, labels, maps, kind=kind), splits)
    elif is_torch_tensor(images):
        array = tensor_array(images, "a tensor")
        about: dict[str, Any] = {"name": "tensor", "form": "a tensor in memory", "known_axes": True}
        return _parts(_of_array(array, labels, maps, kind=kind, **about), splits)
    elif _is_list(images):
        rows = list(images)
        if rows and labels is None and all(isinstance(row, tuple) and len(row) == 2 for row in rows):
            rows, labels = [row[0] for row in rows], [row[1] for row in rows]  # as `samples` of torchvision's ImageFolder
        source = list_source(rows)
    else:
        source = dataset_source(images)
        if labels is None:
            labels, names, note = dataset_labels(images, source)
            source = replace(source, notes=(*source.notes, *filter(None, [note])))
            if names is not None and labels is not None and kind is None:
                source = _checked_maps(with_maps, _labelled(source, labels, names))
                return _parts(source, splits)
    if maps is not None and labels is not None:
        return _parts(with_list_of_maps(source, labels, maps), splits)
    if kind is not None and labels is not None:
        return _parts(_with_kind(source, labels, kind), splits)
    source = source if labels is None else _labelled(source, label_values(labels, len(source)))
    return _parts(_checked_maps(with_maps, source), splits)


def label_values(labels: Any, count: int) -> list[str | None]:
    """Labels as text, None for those that are missing: whole numbers without a point, and without space around names.

    Args:
        labels: A list, array, tensor or column with one label for each image: a name, a number, or None, NaN or "" for no label.
        count: Number of images.

    Raises:
        UnveilError: If there are more or fewer, or one of them is something else.
    """
    values = _as_list(labels, "labels")
    if len(values) != count:
        raise UnveilError(f"there are {len(values)} labels for {count_of(count, 'image')}: expected one for each")
    found = [None if is_missing(value) else value.item() if hasattr(value, "item") else value for value in values]
    wrong = next((i for i, value in enumerate(found) if not isinstance(value, bool | int | float | str | bytes | None)), None)
    if wrong is not None:
        raise UnveilError(f"label {wrong} is a {type(found[wrong]).__name__}: expected a name, a number, or None for no label")
    whole = all(value.is_integer() for value in found if isinstance(value, float))
    return unified([None if value is None else _text(value, whole) for value in found])


def _text(value: Any, whole: bool) -> str:
    if isinstance(value, float) and whole:
        return str(int(value))
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value).strip()


def _labelled(source: Source, values: Sequence[Any], names: list[str] | None = None) -> Source:
    """A source with labels: names, or numbers of the classes `names`."""
    if names is None:
        labels, classes = number_labels({"train": values})["train"]
    else:
        labels, classes = numbered(values), names
        labels = labels if bool((labels >= 0).any()) else None
    if labels is None:
        return source
    fingerprint = version_2(source.fingerprint, *map(str, values))
    notes = (*source.notes, classes_sentence("the labels", labels, classes))
    return replace(source, labels=labels, classes=classes, fingerprint=fingerprint, notes=notes)


def _with_kind(source: Source, labels: Any, kind: LabelKind) -> Source:
    """A source with labels of another kind than one class: an array of numbers, cells as of a labels.csv, or lists of labels."""
    if is_torch_tensor(labels):
        labels = labels.detach().cpu().numpy()
    values = list(labels) if isinstance(labels, np.ndarray) else _as_list(labels, "labels")
    if len(values) != len(source):
        raise UnveilError(f"there are {len(values)} labels for {count_of(len(source), 'image')}: expected one for each")
    values = [None if is_missing(value) else value for value in values]
    shapes = {np.shape(value) if is_numeric(value) else None for value in values if value is not None}
    if None not in shapes and len(shapes) < 2:  # rows of an array; lists of label numbers have different lengths
        return with_values(source, kind, kind.read_array(np.array([np.nan if value is None else value for value in values])))
    cells = [None if value is None else (_cell(value),) for value in values]
    written = Written(list(cells), "the labels")
    read = kind.read(written, source.names, source.name)
    return with_values(source, kind, read, written.notes)


def is_numeric(value: Any) -> bool:
    """Whether a label is a number, or several as in a row of an array."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(isinstance(each, int | float | np.number) and not isinstance(each, bool) for each in value)
    return isinstance(value, int | float | np.number | np.ndarray)


def _cell(value: Any) -> str:
    """A label, or a list of labels, as in a labels.csv."""
    if isinstance(value, list | tuple | set | frozenset):
        wrong = next((name for name in value if not isinstance(name, str | int) or SEPARATOR in str(name)), None)
        if wrong is not None:
            raise UnveilError(f"a list of labels has {wrong!r}: expected names without {SEPARATOR}")
        return SEPARATOR.join(map(str, value)) or SEPARATOR
    return str(value).strip()


def _of_array(array: Any, labels: Any, maps: MapRequest | None, *, kind: LabelKind | None, **about: Any) -> Source:
    if isinstance(array, np.ma.MaskedArray) and array.mask.any():
        raise UnveilError("DATA is an array with masked values: choose what they should be, such as array.filled(0)")
    if kind is not None and labels is not None:
        return _with_kind(array_source(array, **about), labels, kind)
    if is_torch_tensor(labels):
        labels = labels.detach().cpu().numpy()
    if maps is not None and (isinstance(labels, list) or (labels is not None and maps != MapRequest())):
        return with_list_of_maps(array_source(array, **about), labels, maps)
    if labels is not None:
        labels = np.asarray(labels if isinstance(labels, np.ndarray) else _as_list(labels, "labels"))
        if labels.dtype.kind == "O" and labels.ndim == 1:
            labels = np.array([None if is_missing(value) else value for value in labels.tolist()], dtype=object)
    if maps is not None and (labels is None or labels.ndim == 1):
        raise UnveilError(f"PixelTargets need a class for each pixel: {MAPS}")
    return array_source(array, labels, **about)


def _parts(source: Source, splits: Any) -> DataParts:
    """A source, divided by the name of the split of each image, if there are such."""
    if splits is None:
        return DataParts(source.name, {"train": lambda: source})
    values = _as_list(splits, "split")
    if len(values) != len(source):
        raise UnveilError(f"there are {len(values)} splits for {count_of(len(source), 'image')}: expected one for each")
    members: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        part = split_of(value.strip()) if isinstance(value, str) else None
        if part is None:
            raise UnveilError(f"the split of image {index} is {value!r}: expected train, val, test or unlabeled")
        members.setdefault(part, []).append(index)
    in_train = set(members.get("train", ()))
    sources = {part: _ordered(source, chosen, in_train) for part, chosen in members.items()}
    if repeated := _in_several(source, members):
        first = next(iter(sources))
        verb = "are" if repeated > 1 else "is"
        note = f"{count_of(repeated, 'file')} of {source.name} {verb} in several splits: scores may be too high"
        sources[first] = replace(sources[first], notes=(*sources[first].notes, note))
    counts = {part: len(chosen) for part, chosen in members.items()}
    return DataParts(source.name, {part: partial(sources.__getitem__, part) for part in sources}, counts=counts)


def _ordered(source: Source, chosen: Sequence[int], in_train: set[int]) -> Source:
    """The images of a split. Classes that no training image has follow after the others, as those of folders do."""
    part = source.taken(chosen)
    if source.labels is None or not source.is_labelled or not in_train:
        return part
    seen = {source.classes[label] for label in source.labels[sorted(in_train)].tolist() if label >= 0}
    trained = [name for name in source.classes if name in seen]
    found = part.with_classes(trained) if trained else part
    return found if found.is_labelled else replace(found, labels=None, classes=[])


def _in_several(source: Source, members: Mapping[str, Sequence[int]]) -> int:
    """The number of files that are in more than one split."""
    if source.groups is None:
        return 0
    files = [file for chosen in members.values() for file in set(source.groups[list(chosen)].tolist())]
    return len(files) - len(set(files))


def _refuse_others(images: Any, in_pair: bool) -> None:
    """Raises `UnveilError` for anything that cannot be DATA in Python."""
    kind = type(images).__name__
    if is_path(images):
        raise UnveilError(
            f"DATA is a tuple with a {kind}: {TAKES}. Labels are given beside images whose order is known, such as a list of paths"
        )
    if in_pair and isinstance(images, tuple):
        raise UnveilError("DATA is a pair of pairs: give the second pair, of test images and their labels, as test=")
    if hasattr(images, "__next__"):
        raise UnveilError(f"DATA is a {kind}, which can be read only once: make a list of it, list(...)")
    if hasattr(images, "batch_sampler"):
        raise UnveilError(f"DATA is a {kind}, which gives batches: give its .dataset")
    if isinstance(images, set | frozenset):
        raise UnveilError("DATA is a set, whose order may change: make a list of it, sorted(...)")
    known = is_frame(images) or isinstance(images, np.ndarray) or is_torch_tensor(images) or _is_list(images)
    is_dataset = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    if not known and (not is_dataset or isinstance(images, Mapping | tuple | bytes | bytearray | range)):
        lazy = ": call its collect() first" if kind == "LazyFrame" else f": {TAKES}"
        raise UnveilError(f"DATA is a {kind}{lazy}")


def _checked_maps(with_maps: bool, source: Source) -> Source:
    if with_maps:
        raise UnveilError(f"{source.name} has no class for each pixel: in Python, PixelTargets need masks: {MAPS}")
    return source


def _is_column(value: Any, plain: tuple[type, ...]) -> bool:
    return value is not None and not isinstance(value, plain)


def _is_list(images: Any) -> bool:
    """Whether DATA is a list, an array of objects, or a column (Series) of a DataFrame."""
    if isinstance(images, np.ndarray):
        return images.ndim == 1 and images.dtype.kind in "OU"
    return isinstance(images, list) or type(images).__name__ in ("Series", "Index")


def _as_list(values: Any, name: str) -> list[Any]:
    if is_torch_tensor(values):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise UnveilError(f"{name} has the shape {values.shape}: expected one value for each image, (N,)")
        return list(values.tolist())
    if isinstance(values, str | bytes | Mapping | set) or not hasattr(values, "__iter__") or hasattr(values, "__next__"):
        raise UnveilError(
            f"{name} is a {type(values).__name__}: expected a list, an array or a column with one value for each image"
        )
    return list(values)


def is_hugging_face(data: Any) -> bool:
    """Whether DATA is a Dataset or a DatasetDict of the library `datasets`."""
    tables = list(data.values()) if isinstance(data, dict) else [data]
    return bool(tables) and all(hasattr(each, "features") and hasattr(each, "select_columns") for each in tables)


def absolute_paths(source: Source, root: str | None) -> list[str] | None:
    """The absolute path of each file of a source in a folder `root`, or of a list of paths; None if they are not files."""
    if source.form.endswith("paths"):
        return [os.path.abspath(os.path.expanduser(name)) for name in source.names]
    return None if source.form or root is None else [os.path.normpath(f"{root}/{name}") for name in source.names]
