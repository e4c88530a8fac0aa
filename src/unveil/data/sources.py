"""Opens DATA as a list of candidate images: a folder, an archive, shards, a pack, a named dataset, or arrays."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.archives import Archive, Folder, Shards, is_archive, open_archive
from unveil.data.images import IMAGE_SUFFIXES, image_format, read_class_map
from unveil.data.labels import SPLITS, TEST_ORDER, Labels, folder_labels, sample_names, split_folders, written_labels
from unveil.data.named_datasets import TORCHVISION_SETS, Listing, hugging_face_splits, torchvision_splits
from unveil.data.pack_reader import Pack, is_pack
from unveil.data.pixels import IGNORE, Unreadable, as_class_map
from unveil.errors import UnveilError
from unveil.paths import DIGITS, expand_braces, images_not_found
from unveil.paths import IMAGE_FORMS as FORMS

if TYPE_CHECKING:  # imports torch, which is not needed to list DATA
    from unveil.data.targets import Targets

T = TypeVar("T")
Raw = bytes | Image.Image | NDArray[Any]
Data = str | Path | NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]
"""DATA in Python: see `FORMS`; or an array of images; or a pair of arrays, images and labels."""
MASK_LAYOUT = "a folder images/ and a folder masks/ with a PNG of the same name for each image, both optionally with split folders"
"""The layout of files with class maps for `PixelTargets`, for error messages."""


@dataclass(frozen=True, eq=False)
class Source:
    """Candidate images in a fixed order. Any thread can read them. It may turn out that some of them cannot be read."""

    name: str
    """DATA as the user typed it."""
    names: Sequence[str]
    """One path per candidate, with slashes, sorted by code points."""
    labels: Labels | None
    """Class number of each candidate, -1 if it is unknown; None if the data has no class labels."""
    classes: list[str]
    """Names of the classes, which are the same for the train and the test split of DATA."""
    fingerprint: str
    """SHA-256 over names and sizes. It changes with the data, and is computed without reading images."""
    reader: Callable[[int], Raw] = field(repr=False)
    """Reads an image by its index; called by `read`."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Files that were skipped when listing, with the reason."""
    map_reader: Callable[[int], bytes | NDArray[Any]] | None = field(default=None, repr=False)
    """Reads a class map by its index; called by `read_map`. None if the data has no class maps."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Raw:
        """Returns the bytes of an image file, or the image itself. Safe to call from several threads.

        Raises:
            Unreadable: If the image cannot be read.
        """
        return self._read(self.reader, index)

    def read_map(self, index: int) -> bytes | NDArray[Any]:
        """Returns the class map of an image: the bytes of a PNG file, or an array (H, W). See `read`."""
        assert self.map_reader is not None
        return self._read(self.map_reader, index)

    def _read(self, reader: Callable[[int], T], index: int) -> T:
        try:
            return reader(index)
        except Unreadable as error:
            raise Unreadable(error.reason, self.names[index]) from None
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}", self.names[index]) from None

    def with_classes(self, classes: Sequence[str]) -> "Source":
        """The same images with labels numbered as in `classes`. Classes that are not in `classes` become -1.

        Needed for a separate test set: classes are numbered alphabetically within DATA, and a test set may lack a class of the
        training set. Class maps do not change.
        """
        if self.map_reader is not None:
            return replace(self, classes=list(classes))
        if self.labels is None or list(classes) == self.classes:
            return self
        number = {name: index for index, name in enumerate(classes)}
        table = np.array([*(number.get(name, -1) for name in self.classes), -1], dtype=np.int64)  # -1 stays -1
        return replace(self, labels=table[self.labels], classes=list(classes))


@dataclass(frozen=True)
class _Splits:
    """Functions that list the training split and the test split, if there is one."""

    train: Callable[[], Source]
    test: Callable[[], Source] | None


def open_source(data: Data, *, split: Literal["train", "test"] | None = None) -> Source:
    """Lists the images of one split of DATA, by default the training split. If DATA has no splits, lists all images.

    Args:
        data: See `FORMS`; or an array (N, H, W) or (N, H, W, C), or such an array and its labels. The name of a dataset has
            priority over a folder of that name: for the folder, write `./digits`.
        split: "test" means the test split or, if there is none, the validation split.

    Raises:
        UnveilError: If DATA does not exist, is damaged, holds no images, or has no test split.
    """
    splits = _splits(data)
    if split != "test":
        return splits.train()
    if splits.test is None:
        raise UnveilError(f"{_quoted(data)} has no test split: expected a folder named {' or '.join(TEST_ORDER)}")
    return splits.test()


def open_both(data: Data, *, targets: "type[Targets] | None" = None) -> tuple[Source, Source | None]:
    """Lists the training split and, if there is one, the test split of DATA.

    Args:
        data: See `open_source`.
        targets: The kind of target: `ClassTargets` (the default; images may lack a class), or `PixelTargets` for one class per
            pixel, whose names are the lines of a file classes.txt, starting with class 0. Without this file, names are numbers.

    Raises:
        UnveilError: If DATA cannot be used, or has no such targets.
    """
    splits = _splits(data, _wants_maps(targets))
    return splits.train(), None if splits.test is None else splits.test()


def array_source(array: NDArray[Any], labels: NDArray[Any] | None = None, *, name: str = "array") -> Source:
    """Images in memory as a source.

    Args:
        array: (N, H, W) or (N, H, W, C).
        labels: (N,) class numbers; or (N, H, W) class maps, with 255 for pixels without a class.
        name: The name of the source, and the first part of the names of its images.
    """
    if array.ndim not in (3, 4) or not len(array):
        raise UnveilError(f"an array of shape {array.shape} holds no images: expected (N, H, W) or (N, H, W, C)")
    if labels is not None and len(labels) != len(array):
        raise UnveilError(f"there are {len(labels)} labels for {len(array)} images: expected one for each")
    names = [f"{name}/{index:06d}" for index in range(len(array))]
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    if labels is not None and labels.ndim != 1:
        maps = _checked_maps(np.asarray(labels), array)
        digest.update(np.ascontiguousarray(maps).view(np.uint8).data)
        classes = _numbers(int(maps.max(initial=0, where=maps != IGNORE)))
        return Source(name, names, None, classes, digest.hexdigest(), lambda i: array[i], map_reader=lambda i: maps[i])
    numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
    classes = [] if numbers is None else _numbers(int(numbers.max()))
    return Source(name, names, numbers, classes, digest.hexdigest(), lambda index: array[index])


def _checked_maps(maps: NDArray[Any], array: NDArray[Any]) -> NDArray[np.uint8]:
    if maps.shape != array.shape[:3]:
        raise UnveilError(f"labels of shape {maps.shape} do not fit images of shape {array.shape}: expected (N,) or (N, H, W)")
    try:
        return as_class_map(maps.reshape(len(maps), -1)).reshape(maps.shape)
    except Unreadable as error:
        raise UnveilError(f"the labels cannot be used: {error.reason}") from None


def _numbers(last: int) -> list[str]:
    return [str(number) for number in range(last + 1)]


def _wants_maps(targets: "type[Targets] | None") -> bool:
    if targets is None:
        return False
    from unveil.data.targets import BoxTargets, PixelTargets  # already imported by the caller, who has `targets`

    if issubclass(targets, BoxTargets):
        raise UnveilError("BoxTargets cannot be read from DATA yet: no layout of files with boxes is supported")
    return issubclass(targets, PixelTargets)


def _quoted(data: Data) -> str:
    return repr(str(data)) if isinstance(data, str | Path) else "the array"


def _splits(data: Data, with_maps: bool = False) -> _Splits:
    if isinstance(data, np.ndarray | tuple):
        array, labels = data if isinstance(data, tuple) else (data, None)
        if with_maps and (labels is None or labels.ndim == 1):
            raise UnveilError(
                "PixelTargets need a class for each pixel: give a pair of arrays, (N, H, W, C) images and (N, H, W) labels"
            )
        return _Splits(partial(array_source, array, labels), None)
    text = str(data)
    path = Path(text).expanduser()
    named = _named_splits(text) if isinstance(data, str) else None
    if with_maps and (named or (path.is_dir() and is_pack(path))):
        raise UnveilError(f"{text} has no class for each pixel: PixelTargets need {MASK_LAYOUT}")
    if named:
        return named
    list_archive = _map_splits if with_maps else _archive_splits
    if path.is_dir():
        return _pack_splits(text, path) if is_pack(path) else list_archive(text, _folder_or_shards(path))
    if path.is_file():
        return list_archive(text, open_archive(path) if is_archive(path) or not _is_image(path) else Folder(path))
    shards = [Path(each).expanduser() for each in expand_braces(text)]
    if len(shards) > 1:
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            raise UnveilError(f"{text}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}")
        return list_archive(text, Shards(shards))
    raise UnveilError(images_not_found(text))


def _named_splits(name: str) -> _Splits | None:
    if name in DIGITS:
        return _Splits(partial(_digits, name, "train"), partial(_digits, name, "test"))
    if name in TORCHVISION_SETS:
        return _listed_splits(name, torchvision_splits(name))
    if name.startswith("hf://"):
        return _listed_splits(name, hugging_face_splits(name))
    return None


def _is_image(path: Path) -> bool:
    with open(path, "rb") as file:
        return image_format(file.read(32)) is not None or path.suffix.lower() in IMAGE_SUFFIXES


def _digits(name: str, split: Literal["train", "test"]) -> Source:
    from unveil.data.digits import digits  # it imports torch and scikit-learn

    images, labels = digits(split, plain=name == "digits-plain")
    source = array_source(images, np.asarray(labels, dtype=np.int64), name=f"{name}/{split}")
    return replace(source, name=name, classes=[str(number) for number in range(10)])


def _listed_splits(name: str, listings: Mapping[str, Callable[[], Listing]]) -> _Splits:
    tests = [split for split in TEST_ORDER if split in listings and len(listings) > 1]
    train = "train" if "train" in listings else next((split for split in listings if split not in tests), "") or tests.pop()

    def make(split: str) -> Source:
        listing = listings[split]()
        if not listing.length:
            raise UnveilError(f"{name} holds no images in its split {split!r}")
        names = [f"{split}/{index:08d}" for index in range(listing.length)]
        digest = hashlib.sha256(f"{name} {split} {listing.length} {listing.version}".encode()).hexdigest()
        labelled = listing.labels is not None and bool((listing.labels >= 0).any())
        return Source(name, names, listing.labels if labelled else None, listing.classes, digest, listing.read)

    def make_test() -> Source:
        sources = [make(split) for split in tests]
        return next((source for source in sources if source.labels is not None), sources[0])

    return _Splits(partial(make, train), make_test if tests else None)


def _pack_splits(text: str, path: Path) -> _Splits:
    pack = Pack(path)

    def make(name: str) -> Source:
        split = pack.split(name)
        return Source(text, split.names, split.labels, split.classes, split.fingerprint, split.read, split.skipped)

    return _Splits(partial(make, "train"), partial(make, "test") if "test" in pack.facts["splits"] else None)


def _folder_or_shards(path: Path) -> Archive:
    """Opens a folder of images. If it has archives but no images, opens these as shards."""
    folder = Folder(path)
    shards = [path / name for name in folder.names if is_archive(Path(name)) and "/" not in name]
    return Shards(shards) if shards and not _candidates(folder) else folder


def _candidates(archive: Archive) -> list[int]:
    """Indices of files with the suffix of an image, and of files without a suffix that begin like an image."""
    indices = []
    for index, name in enumerate(archive.names):
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            indices.append(index)
            continue
        try:
            if image_format(archive.read(index, 32)) is not None:
                indices.append(index)
        except (OSError, Unreadable):
            continue
    return indices


def _candidates_or_error(text: str, archive: Archive) -> list[int]:
    candidates = _candidates(archive)
    if not candidates:
        others = f": none of its {len(archive.names):,} files is an image" if archive.names else ": it has no files at all"
        raise UnveilError(f"no images in {text!r}{others}. DATA is {FORMS}")
    return candidates


def is_label_file(name: str, samples: set[str]) -> bool:
    """Whether a file holds labels: a labels.csv, or a .cls or .json with the name of one of the samples."""
    stem, suffix = os.path.splitext(name)
    return name.rpartition("/")[2] == "labels.csv" or (suffix in (".cls", ".json") and stem in samples)


def _archive_splits(text: str, archive: Archive) -> _Splits:
    candidates = _candidates_or_error(text, archive)
    rest = (archive.names[index] for index in sorted(set(range(len(archive.names))) - set(candidates)))
    samples = {sample for index in candidates for sample in sample_names(archive.names[index])}
    unused = {name: "not an image, by its name or its first bytes" for name in rest if not is_label_file(name, samples)}
    names = _names_without_shards(archive, candidates)
    splits = split_folders(names) or {"train": list(range(len(names)))}
    labels: dict[str, Labels | None]
    written = written_labels(archive, candidates, text)
    if written:
        numbers, classes = written
        labels = {split: numbers[members] for split, members in splits.items()}
        labels = {split: own if own is not None and (own >= 0).any() else None for split, own in labels.items()}
    else:
        labels, classes = folder_labels(names, splits)

    def make(split: str) -> Source:
        members = [candidates[i] for i in splits[split]]
        own = labels[split]
        return Source(
            text,
            [archive.names[index] for index in members],
            own,
            classes if own is not None else [],
            _fingerprint(archive, members),
            lambda index: archive.read(members[index]),
            unused | dict(archive.refused),
        )

    tests = [split for split in TEST_ORDER if split in splits]
    tests.sort(key=lambda split: labels[split] is None)  # stable: labelled ones first
    train = "train" if "train" in splits else tests.pop()
    return _Splits(partial(make, train), partial(make, tests[0]) if tests else None)


def _fingerprint(archive: Archive, members: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for index in members:
        digest.update(f"{archive.names[index]}\0{archive.sizes[index]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _map_splits(text: str, archive: Archive) -> _Splits:
    """Images with one mask each: see `MASK_LAYOUT`."""
    indices = {name: index for index, name in enumerate(archive.names)}
    images = [index for index in _candidates_or_error(text, archive) if "images" in archive.names[index].split("/")[:-1]]
    expected = {image: _mask_name(archive.names[image], indices) for image in images}
    masks = {image: indices[name] for image, name in expected.items() if name in indices}
    candidates = [image for image in images if image in masks]
    if not candidates:
        raise UnveilError(f"no masks in {text!r}: PixelTargets need {MASK_LAYOUT}")
    others = set(images) - set(candidates) - set(masks.values())  # all of the data may be in a folder called images
    unused = {archive.names[image]: f"it has no mask {expected[image]}" for image in sorted(others)}
    names = _names_without_shards(archive, candidates)
    splits = split_folders(names) or {"train": list(range(len(names)))}
    classes = _named_classes(archive, text) or _numbered_classes(archive, list(masks.values()))

    def make(split: str) -> Source:
        members = [candidates[i] for i in splits[split]]
        maps = [masks[image] for image in members]
        return Source(
            text,
            [archive.names[index] for index in members],
            None,
            classes,
            _fingerprint(archive, [*members, *maps]),
            lambda index: archive.read(members[index]),
            unused | dict(archive.refused),
            lambda index: archive.read(maps[index]),
        )

    tests = [split for split in TEST_ORDER if split in splits]
    train = "train" if "train" in splits else tests.pop()
    return _Splits(partial(make, train), partial(make, tests[0]) if tests else None)


def _mask_name(image: str, indices: Mapping[str, int]) -> str:
    """The path of the mask of an image: its path with the folder "masks" in place of a folder "images"."""
    *folders, file = image.split("/")
    names = [
        "/".join([*folders[:depth], "masks", *folders[depth + 1 :], os.path.splitext(file)[0] + ".png"])
        for depth, folder in enumerate(folders)
        if folder == "images"
    ]
    return next((name for name in names if name in indices), names[-1])


def _named_classes(archive: Archive, text: str) -> list[str]:
    """The lines of classes.txt, if there is one."""
    files = sorted((name.count("/"), index) for index, name in enumerate(archive.names) if name.rpartition("/")[2] == "classes.txt")
    if not files:
        return []
    classes = [line.strip() for line in archive.read(files[0][1]).decode("utf-8-sig", "replace").strip().splitlines()]
    if not 0 < len(classes) <= IGNORE or "" in classes:
        raise UnveilError(f"{text}: classes.txt has {len(classes)} lines: expected one name per line, and 1 to {IGNORE} names")
    return classes


def _numbered_classes(archive: Archive, masks: Sequence[int]) -> list[str]:
    """Classes from 0 to the largest number in all masks. Reads all masks."""

    def largest(index: int) -> int:
        try:
            classes = read_class_map(archive.read(index))
        except (OSError, Unreadable):
            return 0  # the error is reported when its image is read
        return int(classes.max(initial=0, where=classes != IGNORE))

    with ThreadPoolExecutor(thread_name_prefix="masks") as pool:
        return _numbers(max(pool.map(largest, masks)))


def _names_without_shards(archive: Archive, candidates: Sequence[int]) -> list[str]:
    """Names from which splits and classes follow: the name of a shard becomes its split (`train-003.tar`), or is removed."""
    names = [archive.names[index] for index in candidates]
    if not isinstance(archive, Shards):
        return names
    word = {stem: re.sub(r"[-_.]?\d+$", "", stem).lower() for stem in archive.stems}
    shards, inner = zip(*(name.split("/", 1) for name in names), strict=True)
    if set(word.values()) <= set(SPLITS) and len(set(word.values())) > 1:
        return [f"{word[shard]}/{rest}" for shard, rest in zip(shards, inner, strict=True)]
    return list(inner)
