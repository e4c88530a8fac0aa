"""Data sets that have a name elsewhere: on the Hugging Face hub (extra `hf`), or in torchvision.

Both libraries are imported when one of their sets is asked for, and not before: they take seconds.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unveil.data.labels import Labels
from unveil.errors import UnveilError


class Listing(NamedTuple):
    """One part of a set: how many images, their classes, how to read one, and what tells this version from others."""

    length: int
    labels: Labels | None
    classes: list[str]
    read: Callable[[int], bytes | Image.Image]
    version: str


class TorchvisionSet(NamedTuple):
    """A class of torchvision.datasets, and what to call it with for each part."""

    class_name: str
    train: Mapping[str, Any]
    test: Mapping[str, Any] | None


_FLAG = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})

TORCHVISION_SETS = {
    "cifar10": TorchvisionSet("CIFAR10", *_FLAG),
    "cifar100": TorchvisionSet("CIFAR100", *_FLAG),
    "country211": TorchvisionSet("Country211", *_SPLIT),
    "dtd": TorchvisionSet("DTD", *_SPLIT),
    "eurosat": TorchvisionSet("EuroSAT", {}, None),
    "fashionmnist": TorchvisionSet("FashionMNIST", *_FLAG),
    "fgvcaircraft": TorchvisionSet("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    "flowers102": TorchvisionSet("Flowers102", *_SPLIT),
    "food101": TorchvisionSet("Food101", *_SPLIT),
    "gtsrb": TorchvisionSet("GTSRB", *_SPLIT),
    "imagenette": TorchvisionSet("Imagenette", {"split": "train"}, {"split": "val"}),
    "kmnist": TorchvisionSet("KMNIST", *_FLAG),
    "mnist": TorchvisionSet("MNIST", *_FLAG),
    "oxfordiiitpet": TorchvisionSet("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "stl10": TorchvisionSet("STL10", {"split": "train+unlabeled"}, {"split": "test"}),
    "sun397": TorchvisionSet("SUN397", {}, None),
    "svhn": TorchvisionSet("SVHN", *_SPLIT),
}


def torchvision_parts(name: str) -> dict[str, Callable[[], Listing]]:
    """The parts ("train", and "test" where there is one) of a set in `TORCHVISION_SETS`, downloaded when first read."""
    chosen = TORCHVISION_SETS[name]
    parts = {"train": partial(_torchvision_listing, chosen.class_name, chosen.train)}
    if chosen.test is not None:
        parts["test"] = partial(_torchvision_listing, chosen.class_name, chosen.test)
    return dict(parts)


def _torchvision_listing(class_name: str, options: Mapping[str, Any]) -> Listing:
    from torchvision import datasets  # it imports torch

    root = Path(os.environ.get("UNVEIL_DATA") or Path.home() / ".cache" / "unveil" / "data")
    maker = getattr(datasets, class_name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            dataset = maker(root, **options, download=False)
        except RuntimeError:  # it is not there yet; several sets refuse `download=True` where they are
            dataset = maker(root, **options, download=True)
    except Exception as error:
        raise UnveilError(f"cannot load torchvision's {class_name} in {root}: {_line(error)}") from error
    files = _first(dataset, "samples", "_samples", "_image_files", "_images")
    labels = _first(dataset, "targets", "labels", "_labels")
    if files is not None and len(files) and isinstance(files[0], tuple):
        labels = [label for _, label in files]
        files = [path for path, _ in files]
    classes = [entry if isinstance(entry, str) else entry[0] for entry in getattr(dataset, "classes", None) or []]
    numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
    if numbers is not None and not classes:
        classes = [str(number) for number in range(int(numbers.max()) + 1)]

    def read(index: int) -> bytes | Image.Image:
        if files is not None:
            return Path(files[index]).read_bytes()
        image: Image.Image = dataset[index][0]
        return image

    return Listing(len(dataset), numbers, classes, read, f"{class_name} {sorted(options.items())}")


def _first(holder: Any, *attributes: str) -> Any:
    return next((getattr(holder, each) for each in attributes if getattr(holder, each, None) is not None), None)


def hugging_face_parts(address: str) -> dict[str, Callable[[], Listing]]:
    """The splits of `hf://name`, `hf://name:config` or `hf://folder` (of `save_to_disk`, or any that `datasets` reads).

    Raises:
        UnveilError: `datasets` is not installed, the set cannot be loaded, or it holds no images.
    """
    # Counts of use are reported to the hub unless it is told not to: unveil sends nothing, ever.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    try:
        import datasets
    except ImportError:
        raise UnveilError(f"{address} needs the package `datasets`: pip install 'unveil[hf]'") from None
    name = address.removeprefix("hf://")
    if not name:
        raise UnveilError("hf:// wants the name of a data set, as in hf://cifar10 or hf://name:config")
    try:
        if any(Path(name, mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            loaded: Any = datasets.load_from_disk(name)
        else:
            name, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:
        raise UnveilError(f"cannot load {address}: {_line(error)}") from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(split): partial(_hugging_face_listing, address, part) for split, part in splits.items()}


def _hugging_face_listing(address: str, dataset: Any) -> Listing:
    import datasets

    features = dataset.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise UnveilError(f"{address} has no column of images: its columns are {', '.join(features)}")
    image = next((column for column in ("image", "img", "pixel_values") if column in images), images[0])
    named = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels, classes = None, list[str]()
    usual = [column for column in ("label", "labels", "fine_label") if column in features]
    label = next(iter(usual + named), "")
    if label in named:
        labels = np.asarray(dataset.with_format("numpy")[label][:], dtype=np.int64)
        classes = list(features[label].names)
    elif label and re.match(r"u?int", str(getattr(features[label], "dtype", ""))):
        labels = np.asarray(dataset.with_format("numpy")[label][:], dtype=np.int64)
        classes = [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
    encoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(index: int) -> bytes:
        cell = encoded[int(index)][image]
        if not cell:
            raise OSError("no image in this row")
        raw: bytes = cell["bytes"] or Path(cell["path"]).read_bytes()
        return raw

    return Listing(len(dataset), labels, classes, read, str(dataset._fingerprint))


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
