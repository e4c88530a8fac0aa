"""Named datasets: of the Hugging Face hub (extra `hf`), and of torchvision.

The libraries take seconds to import, so they are imported only when one of their datasets is opened.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unveil.data.labels import Labels, number_array
from unveil.data.regular_files import read_file
from unveil.errors import UnveilError


class Listing(NamedTuple):
    """One split of a dataset."""

    length: int
    labels: Labels | None
    classes: list[str]
    read: Callable[[int], bytes | Image.Image]
    version: str
    """A string that changes with the data."""


class TorchvisionSet(NamedTuple):
    """A class of torchvision.datasets, and its arguments for each split."""

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


def torchvision_splits(name: str) -> dict[str, Callable[[], Listing]]:
    """The splits ("train", and "test" if there is one) of a dataset in `TORCHVISION_SETS`, downloaded when first listed."""
    dataset = TORCHVISION_SETS[name]
    splits = {"train": partial(_torchvision_listing, dataset.class_name, dataset.train)}
    if dataset.test is not None:
        splits["test"] = partial(_torchvision_listing, dataset.class_name, dataset.test)
    return dict(splits)


def _torchvision_listing(class_name: str, options: Mapping[str, Any]) -> Listing:
    from torchvision import datasets

    root = Path(os.environ.get("UNVEIL_DATA") or Path.home() / ".cache" / "unveil" / "data")
    maker = getattr(datasets, class_name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            dataset = maker(root, **options, download=False)
        except RuntimeError:  # not downloaded yet; some datasets refuse `download=True` if they exist already
            dataset = maker(root, **options, download=True)
    except Exception as error:
        raise UnveilError(f"cannot load {class_name} of torchvision in {root}: {_one_line(error)}") from error
    files = _first_attribute(dataset, "samples", "_samples", "_image_files", "_images")
    labels = _first_attribute(dataset, "targets", "labels", "_labels")
    if files is not None and len(files) and isinstance(files[0], tuple):
        labels = [label for _, label in files]
        files = [path for path, _ in files]
    classes = [entry if isinstance(entry, str) else entry[0] for entry in getattr(dataset, "classes", None) or []]
    numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
    if numbers is not None and not classes:
        numbers, classes = number_array(numbers)

    def read(index: int) -> bytes | Image.Image:
        if files is not None:
            return read_file(files[index])
        image: Image.Image = dataset[index][0]
        return image

    return Listing(len(dataset), numbers, classes, read, f"{class_name} {sorted(options.items())}")


def _first_attribute(holder: Any, *attributes: str) -> Any:
    return next((getattr(holder, each) for each in attributes if getattr(holder, each, None) is not None), None)


def hugging_face_splits(address: str) -> dict[str, Callable[[], Listing]]:
    """The splits of `hf://name`, `hf://name:config` or `hf://folder` (of `save_to_disk`, or any that `datasets` reads).

    Raises:
        UnveilError: If `datasets` is not installed, the dataset cannot be loaded, or it has no images.
    """
    with _without_telemetry():
        try:
            import datasets
        except ImportError:
            raise UnveilError(f"{address} needs the package `datasets`: pip install 'unveil[hf]'") from None
    name = address.removeprefix("hf://")
    if not name:
        raise UnveilError("hf:// has no name of a dataset: expected for example hf://cifar10 or hf://name:config")
    try:
        if any(Path(name, file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded: Any = datasets.load_from_disk(name)
        else:
            name, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:
        raise UnveilError(f"cannot load {address}: {_one_line(error)}") from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(split): partial(_hugging_face_listing, address, dataset) for split, dataset in splits.items()}


def hugging_face_listings(data: Any) -> dict[str, Callable[[], Listing]]:
    """The splits of a Dataset or a DatasetDict of the library `datasets`, as `hugging_face_splits` gives them."""
    splits = data if isinstance(data, dict) else {"train": data}
    return {str(split): partial(_hugging_face_listing, "the Dataset", dataset) for split, dataset in splits.items()}


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Turns off the telemetry of `datasets` through environment variables, which the library reads on import."""
    before = dict(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    try:
        yield
    finally:
        for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS"):
            if name not in before:
                del os.environ[name]


def _hugging_face_listing(address: str, dataset: Any) -> Listing:
    import datasets

    features = dataset.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise UnveilError(f"{address} has no column of images; its columns are {', '.join(features)}")
    image = next((column for column in ("image", "img", "pixel_values") if column in images), images[0])
    named = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels, classes = None, list[str]()
    common = [column for column in ("label", "labels", "fine_label") if column in features]
    label = next(iter(common + named), "")
    if label in named:  # the library writes -1 for a missing class
        labels = np.array([-1 if number is None else number for number in dataset.with_format(None)[label][:]], dtype=np.int64)
        classes = list(features[label].names)
    elif label and re.match(r"u?int|bool|(large_)?string", str(getattr(features[label], "dtype", ""))):
        labels, classes = number_array(np.array(dataset.with_format(None)[label][:], dtype=object))
    encoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(index: int) -> bytes:
        cell = encoded[int(index)][image]
        if not cell:
            raise OSError("no image in this row")
        raw: bytes = cell["bytes"] or read_file(cell["path"])
        return raw

    return Listing(len(dataset), labels, classes, read, str(dataset._fingerprint))


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
