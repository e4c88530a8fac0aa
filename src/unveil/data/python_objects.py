"""Objects of images that are given in Python: a pair of images and dictionaries of boxes, or a Dataset, as those of torchvision."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.arrays import array_source, tensor_array
from unveil.data.coco_entries import ID, CocoEntries, is_id
from unveil.data.from_pillow import orientation
from unveil.data.image_list import is_torch_tensor, list_source
from unveil.data.map_dataset import DatasetReader, class_names, dataset_source
from unveil.data.object_rows import Row, Told, checked_objects, class_sentence
from unveil.data.parts import DataParts
from unveil.data.python_data import Given
from unveil.data.rle import Segment, encoded
from unveil.data.source import Source, version_2
from unveil.errors import UnveilError
from unveil.plain_text import count_of

TAKES = (
    "BoxTargets need a folder or an archive with annotations; a pair of images and a list with a dictionary for each, of boxes "
    "(n, 4) left, top, right, bottom in pixels, labels (n,) and perhaps masks (n, H, W); or a map-style Dataset of such pairs"
)
BACKGROUND = ("__background__", "background")
"""What class 0 is called by data of torchvision's detectors. No object has it."""


def python_object_parts(data: Any) -> DataParts:
    """Opens images with objects that were given in Python: see `TAKES`.

    Raises:
        UnveilError: If they are something else, or boxes, labels and masks do not fit.
    """
    ids: dict[str, Any] | None = None
    if isinstance(data, Given):
        if data.splits is not None:
            raise UnveilError("split= is not read for boxes: give the test images and their boxes as test=")
        data = data.images if data.labels is None else (data.images, data.labels)
    if isinstance(data, tuple) and len(data) == 2:
        images, targets = data
        source = _images(images)
        sizes = _sizes(images, source)
        targets = list(targets) if isinstance(targets, list | tuple) else None
        if targets is None or len(targets) != len(source):
            given = "no list of targets" if targets is None else f"a list of {count_of(len(targets), 'target')}"
            raise UnveilError(f"DATA has {count_of(len(source), 'image')}, and {given}: {TAKES}")
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, list | dict | np.ndarray):
        source = dataset_source(data)
        reader = source.reader
        assert isinstance(reader, DatasetReader)
        targets, sizes = [], []
        for index in range(len(source)):
            image, target = reader.sample(index)
            targets.append(target)
            sizes.append(_size(image))
        ids = _class_ids(data, targets)
        note = f"read all {count_of(len(source), 'sample')} for their boxes"
        source = replace(source, notes=(*source.notes, note))
    else:
        raise UnveilError(f"DATA is a {type(data).__name__} without boxes: {TAKES}")
    told = _told(source, targets, sizes, ids)
    objects, notes = checked_objects(told)
    classes = list(told.category_ids)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in (objects.starts, objects.boxes, objects.labels)))
    digest.update(repr(objects.segments).encode())
    found = replace(
        source,
        labels=None,
        classes=classes,
        objects=objects,
        fingerprint=version_2(source.fingerprint, digest.hexdigest(), *classes),
        notes=(*source.notes, class_sentence(source.name, objects, classes), *notes),
    )
    return DataParts(source.name, {"train": lambda: found})


def _images(images: Any) -> Source:
    if is_torch_tensor(images):
        return array_source(tensor_array(images, "a tensor"), name="tensor", form="a tensor in memory", known_axes=True)
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        return array_source(images)
    if isinstance(images, list | tuple | np.ndarray):
        return list_source(list(images))
    raise UnveilError(f"the images are a {type(images).__name__}: {TAKES}")


def _sizes(images: Any, source: Source) -> list[tuple[int, int]]:
    """The height and the width of each image, 0 if it is not in memory."""
    if is_torch_tensor(images) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OU"):
        return [_size(source.reader(0))] * len(source)
    return [_size(image) for image in images]


def _size(image: Any) -> tuple[int, int]:
    """The height and the width of an image in memory; 0 if it is a path, or is turned: boxes may be of the upright image."""
    if isinstance(image, Image.Image):
        return (0, 0) if orientation(image) else (image.height, image.width)
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) not in (2, 3):  # which is told when the image is read
        return 0, 0
    return (shape[-2], shape[-1]) if is_torch_tensor(image) else (shape[0], shape[1])


def _told(source: Source, targets: Sequence[Any], sizes: Sequence[tuple[int, int]], ids: Mapping[str, Any] | None) -> Told:
    """What dictionaries, or COCO's annotations, say about the images; `ids` are the labels of named classes."""
    rows, labels, told_sizes = list[Row](), list[Any](), list[tuple[int, int]]()
    for place, target in enumerate(targets):
        where = f"the target of {source.names[place]}"
        found, size = _coco_rows(target, where) if isinstance(target, list) else _dict_rows(target, where)
        rows += [row._replace(image=place, name=f"{source.names[place]}, {row.name}") for row, _ in found]
        labels += [label for _, label in found]
        told_sizes.append(size or sizes[place])
    distinct = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if not distinct:
        raise UnveilError(f"{source.name} has no boxes: {TAKES}")
    if ids is None or not set(distinct) <= set(ids.values()):
        ids = {str(label): label for label in distinct}
    first = next(iter(ids))
    if first in BACKGROUND and ids[first] not in distinct:
        ids = {name: label for name, label in ids.items() if name != first}
    number = {label: place for place, label in enumerate(ids.values())}
    rows = [row._replace(label=number[label]) for row, label in zip(rows, labels, strict=True)]
    expected = "boxes (n, 4) with left, top, right, bottom in pixels"
    return Told(source.name, "box", expected, rows, told_sizes, list(range(len(targets))), dict(ids))


def _class_ids(dataset: Any, targets: Sequence[Any]) -> dict[str, Any] | None:
    """The labels of the classes that a Dataset names: places in `classes`, or ids as in torchvision's `CocoDetection`."""
    names = class_names(dataset)
    if names is not None:
        return {name: place for place, name in enumerate(names)}
    categories = getattr(getattr(dataset, "coco", None), "cats", None)
    if not isinstance(categories, Mapping) or not all(isinstance(each, Mapping) for each in categories.values()):
        inner = getattr(dataset, "dataset", None)
        return None if inner is None or not hasattr(dataset, "indices") else _class_ids(inner, targets)
    entries = [each for target in targets if isinstance(target, list) for each in target if isinstance(each, Mapping)]
    used = {id_ for each in entries if is_id(id_ := each.get("category_id"))}
    found, ids = CocoEntries(f"the categories of the {type(dataset).__name__}").categories(list(categories.values()), used)
    return dict(zip(found, ids, strict=True))


def _dict_rows(target: Any, where: str) -> tuple[list[tuple[Row, Any]], tuple[int, int] | None]:
    """The objects of a dictionary with boxes and labels, and the size of the image if masks tell it."""
    if target is None or (isinstance(target, Mapping) and set(target) == {"image_id"}):  # as torchvision does it
        return [], None
    if not isinstance(target, Mapping) or "boxes" not in target or "labels" not in target:
        kind = f"has the keys {', '.join(map(str, target))}" if isinstance(target, Mapping) else f"is a {type(target).__name__}"
        raise UnveilError(
            f"{where} {kind}: expected a dictionary with boxes and labels. torchvision's wrap_dataset_for_transforms_v2 makes one"
        )
    boxes = _corners(target["boxes"], where)
    labels = [each.item() if hasattr(each, "item") else each for each in _array(target["labels"]).tolist()]
    if len(labels) != len(boxes):
        raise UnveilError(f"{where} has {count_of(len(boxes), 'box', 'boxes')}, and {count_of(len(labels), 'label')}")
    wrong = next((each for each in labels if isinstance(each, bool) or not isinstance(each, int | str)), None)
    if wrong is not None:
        raise UnveilError(f"{where} has the label {wrong!r}: expected whole numbers or names")
    crowd = _column(target, "iscrowd", len(boxes), where, 0)
    area = _column(target, "area", len(boxes), where, float("nan"))
    segments: list[Segment | None] = [None] * len(boxes)
    size = None
    if target.get("masks") is not None:
        masks = _array(target["masks"])
        if (masks.ndim != 3 or len(masks) != len(boxes)) and (masks.size or len(boxes)):
            raise UnveilError(f"{where} has masks {masks.shape}: expected ({len(boxes)}, H, W), one for each box")
        size = (masks.shape[1], masks.shape[2]) if masks.ndim == 3 and 0 not in masks.shape[1:] else None
        masks = masks if masks.ndim == 3 else masks.reshape(0, 0, 0)
        segments = [rle if drawn else None for rle, drawn in zip(encoded(masks != 0), (masks != 0).any(axis=(1, 2)), strict=True)]
    rows = [
        (Row(0, 0, (b[0], b[1], b[2], b[3]), f"box {i}", bool(crowd[i]), float(area[i]), segments[i]), labels[i])
        for i, b in enumerate(boxes.tolist())
    ]
    return rows, size


def _corners(boxes: Any, where: str) -> NDArray[np.float64]:
    """Boxes (n, 4) as left, top, right, bottom; those of torchvision know whether they are something else."""
    form = str(getattr(boxes, "format", "XYXY")).rpartition(".")[2].upper()
    values = _array(boxes).astype(np.float64)
    values = values.reshape(-1, 4) if values.size == 0 else values
    if values.ndim != 2 or values.shape[1] != 4:
        raise UnveilError(f"{where} has boxes {values.shape}: expected (n, 4), left, top, right, bottom in pixels")
    if form == "XYWH":
        return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)
    if form == "CXCYWH":
        return np.concatenate([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], axis=1)
    if form != "XYXY":
        raise UnveilError(f"{where} has boxes in the format {form}: expected XYXY")
    return values


def _coco_rows(target: list[Any], where: str) -> tuple[list[tuple[Row, Any]], None]:
    """The objects of a list of COCO's annotations, as torchvision's `CocoDetection` yields them."""
    entries, rows = CocoEntries(where), list[tuple[Row, Any]]()
    for i, each in enumerate(target):
        if not isinstance(each, Mapping) or not {"bbox", "category_id"} <= set(each):
            raise UnveilError(f"{where} is a list whose entry {i} is no annotation of COCO: expected bbox and category_id")
        entry = _plain(each)
        name, label = f"annotation {entry.get('id', i)}", entry["category_id"]
        if not is_id(label):
            entries.fail(name, "category_id", label, ID)
        rows.append((entries.row(name, entry, 0, 0), label))
    return rows, None


def _plain(value: Any) -> Any:
    """A value as JSON has it: arrays become lists, and run lengths as pycocotools writes them become text."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.tolist() if hasattr(value, "tolist") else value


def _column(target: Mapping[str, Any], key: str, count: int, where: str, default: float) -> list[float]:
    if target.get(key) is None:
        return [default] * count
    values = _array(target[key]).reshape(-1).tolist()
    if len(values) != count:
        raise UnveilError(f"{where} has {count_of(len(values), 'value')} of {key}: expected {count}, one for each box")
    return list(values)


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu().numpy() if is_torch_tensor(values) else values)
