"""DATA in all its forms: a folder, an archive, shards, a pack, a named set or an array, as a list of candidate images."""

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.archives import Archive, Folder, Shards, is_archive, open_archive
from unveil.data.images import IMAGE_SUFFIXES, Unreadable, image_format
from unveil.data.labels import SPLITS, TEST_ORDER, Labels, folder_labels, keys_of, split_folders, written_labels
from unveil.data.named_datasets import TORCHVISION_SETS, Listing, hugging_face_parts, torchvision_parts
from unveil.data.pack_reader import Pack, is_pack
from unveil.errors import UnveilError

Raw = bytes | Image.Image | NDArray[Any]
Data = str | Path | NDArray[Any]
DIGITS = ("digits", "digits-plain")
"""Files beside images that may say what is in them."""
FORMS = (
    "a folder of images, a .tar, .tar.gz or .zip of one, what `unveil pack` wrote, shards-{000..099}.tar, hf://name, "
    f"or one of {', '.join((*DIGITS, *TORCHVISION_SETS))}"
)
"""What DATA may be, for error messages and help."""


@dataclass(frozen=True, eq=False)
class Source:
    """Candidate images in a fixed order, each readable on its own and from any thread; some may prove unreadable."""

    name: str
    """What the user typed."""
    names: Sequence[str]
    """One path per candidate, with slashes, sorted in code-point order."""
    labels: Labels | None
    """Number of each candidate's class (-1: unknown), or None where there are no labels at all."""
    classes: list[str]
    """Name of each class; the same for the train and test part of one DATA."""
    fingerprint: str
    """SHA-256 over the names and sizes: tells whether the data are the same without reading them."""
    reader: Callable[[int], Raw] = field(repr=False)
    """What `read` calls."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What was left out already when listing, and why."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Raw:
        """The bytes of an image's file, or the image itself; safe to call from several threads.

        Raises:
            Unreadable: this one image cannot be had.
        """
        try:
            return self.reader(index)
        except Unreadable as error:
            raise Unreadable(error.reason, self.names[index]) from None
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}", self.names[index]) from None

    def with_classes(self, classes: Sequence[str]) -> "Source":
        """The same images with labels numbered as in `classes`; a class that is not in it becomes -1.

        Numbers are alphabetical within one DATA: a test set given on its own may lack a class that training had.
        """
        if self.labels is None or list(classes) == self.classes:
            return self
        number = {name: index for index, name in enumerate(classes)}
        table = np.array([*(number.get(name, -1) for name in self.classes), -1], dtype=np.int64)  # -1 stays -1
        return replace(self, labels=table[self.labels], classes=list(classes))


@dataclass(frozen=True)
class _Parts:
    """The training part, and the test part where there is one; each is made when it is asked for."""

    train: Callable[[], Source]
    test: Callable[[], Source] | None


def open_source(data: Data, *, split: Literal["train", "test"] | None = None) -> Source:
    """List the images of DATA; where it has splits, those of one split (train if None), else all of them.

    Args:
        data: see `FORMS`, or an array (N, H, W) or (N, H, W, C). A name of a set wins over a folder of that name: write
            `./digits` for the folder.
        split: "test" takes the test split, or else the validation split.

    Raises:
        UnveilError: there is no such thing, it is damaged, it holds no images, or it has no test split.
    """
    parts = _parts(data)
    if split != "test":
        return parts.train()
    if parts.test is None:
        raise UnveilError(f"{_called(data)} has no test split: it would be a folder named {' or '.join(TEST_ORDER)}")
    return parts.test()


def open_test_source(data: Data) -> Source | None:
    """The test part of DATA if it has one; `open_both` spares listing an archive twice."""
    test = _parts(data).test
    return None if test is None else test()


def open_both(data: Data) -> tuple[Source, Source | None]:
    """The training part and, if there is one, the test part of DATA, listed once."""
    parts = _parts(data)
    return parts.train(), None if parts.test is None else parts.test()


def array_source(array: NDArray[Any], labels: Labels | None = None, *, name: str = "array") -> Source:
    """Images in memory as a source: (N, H, W) or (N, H, W, C), with labels or without."""
    if array.ndim not in (3, 4) or not len(array):
        raise UnveilError(f"an array of shape {array.shape} is no images: expected (N, H, W) or (N, H, W, C)")
    if labels is not None and len(labels) != len(array):
        raise UnveilError(f"{len(labels)} labels for {len(array)} images")
    names = [f"{name}/{index:06d}" for index in range(len(array))]
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
    classes = [] if numbers is None else [str(number) for number in range(int(numbers.max()) + 1)]
    return Source(name, names, numbers, classes, digest.hexdigest(), lambda index: array[index])


def _called(data: Data) -> str:
    return "the array" if isinstance(data, np.ndarray) else repr(str(data))


def _parts(data: Data) -> _Parts:
    if isinstance(data, np.ndarray):
        return _Parts(partial(array_source, data), None)
    text = str(data)
    if isinstance(data, str):
        if text in DIGITS:
            return _Parts(partial(_digits, text, "train"), partial(_digits, text, "test"))
        if text in TORCHVISION_SETS:
            return _listed_parts(text, torchvision_parts(text))
        if text.startswith("hf://"):
            return _listed_parts(text, hugging_face_parts(text))
    path = Path(text).expanduser()
    if path.is_dir():
        return _pack_parts(text, path) if is_pack(path) else _folder_parts(text, path)
    if path.is_file():
        if is_archive(path) or not _is_image(path):
            return _archive_parts(text, open_archive(path))
        return _archive_parts(text, Folder(path))
    shards = [Path(each).expanduser() for each in expand_braces(text)]
    if len(shards) > 1:
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            raise UnveilError(f"{text}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}")
        return _archive_parts(text, Shards(shards))
    raise UnveilError(_not_found(text, path))


def _is_image(path: Path) -> bool:
    with open(path, "rb") as file:
        return image_format(file.read(32)) is not None or path.suffix.lower() in IMAGE_SUFFIXES


def _not_found(text: str, path: Path) -> str:
    try:
        beside = os.listdir(path.parent)
    except OSError:
        beside = []
    near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, n=3)]
    near += difflib.get_close_matches(text.lower(), (*DIGITS, *TORCHVISION_SETS), n=2)
    guess = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"no file or folder {text!r}{guess} DATA is {FORMS}"


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` as a-08.tar, a-09.tar, a-10.tar, and `{a,b}.tar` as a.tar, b.tar, as a shell would."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        middles = listed.split(",")
    elif abs(int(last) - int(first)) > 100_000:
        raise UnveilError(f"{pattern}: more than 100,000 shards")
    else:
        middles = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    rest = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + middle + end for middle in middles for end in rest]


def _digits(name: str, split: Literal["train", "test"]) -> Source:
    from unveil.data.digits import digits  # it imports scikit-learn

    images, labels = digits(split, plain=name == "digits-plain")
    source = array_source(images, np.asarray(labels, dtype=np.int64), name=f"{name}/{split}")
    return replace(source, name=name, classes=[str(number) for number in range(10)])


def _listed_parts(name: str, parts: Mapping[str, Callable[[], Listing]]) -> _Parts:
    tests = [split for split in TEST_ORDER if split in parts and len(parts) > 1]
    train = "train" if "train" in parts else next((split for split in parts if split not in tests), "") or tests.pop()

    def make(split: str) -> Source:
        listing = parts[split]()
        if not listing.length:
            raise UnveilError(f"{name} holds no images in its split {split!r}")
        names = [f"{split}/{index:08d}" for index in range(listing.length)]
        digest = hashlib.sha256(f"{name} {split} {listing.length} {listing.version}".encode()).hexdigest()
        known = listing.labels is not None and bool((listing.labels >= 0).any())
        return Source(name, names, listing.labels if known else None, listing.classes, digest, listing.read)

    def make_test() -> Source:
        made = [make(split) for split in tests]
        return next((source for source in made if source.labels is not None), made[0])

    return _Parts(partial(make, train), make_test if tests else None)


def _pack_parts(text: str, path: Path) -> _Parts:
    pack = Pack(path)

    def make(name: str) -> Source:
        split = pack.split(name)
        return Source(text, split.names, split.labels, split.classes, split.fingerprint, split.read, split.skipped)

    return _Parts(partial(make, "train"), partial(make, "test") if "test" in pack.facts["splits"] else None)


def _folder_parts(text: str, path: Path) -> _Parts:
    folder = Folder(path)
    shards = [path / name for name in folder.names if is_archive(Path(name)) and "/" not in name]
    if shards and not _candidates(folder):
        return _archive_parts(text, Shards(shards))
    return _archive_parts(text, folder)


def _candidates(archive: Archive) -> list[int]:
    """What is called an image, and what has no such name but begins like one."""
    found = []
    for index, name in enumerate(archive.names):
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            found.append(index)
            continue
        try:
            if image_format(archive.read(index, 32)) is not None:
                found.append(index)
        except (OSError, Unreadable):
            continue
    return found


def speaks_of(name: str, keys: set[str]) -> bool:
    """Whether a file says something about images: a labels.csv, or a .cls or .json that is called like one of them."""
    stem, ending = os.path.splitext(name)
    return name.rpartition("/")[2] == "labels.csv" or (ending in (".cls", ".json") and stem in keys)


def _archive_parts(text: str, archive: Archive) -> _Parts:
    candidates = _candidates(archive)
    if not candidates:
        others = f"; its {len(archive.names):,} files are none" if archive.names else " and no files at all"
        raise UnveilError(f"no images in {text!r}{others}. DATA is {FORMS}")
    rest = (archive.names[index] for index in sorted(set(range(len(archive.names))) - set(candidates)))
    keys = {key for index in candidates for key in keys_of(archive.names[index])}
    unused = {name: "no image, by its name or its first bytes" for name in rest if not speaks_of(name, keys)}
    names = _told_names(archive, candidates)
    splits = split_folders(names)
    parts = splits or {"train": list(range(len(names)))}
    labels: dict[str, Labels | None]
    written = written_labels(archive, candidates, text)
    if written:
        classes = written[1]
        labels = {part: written[0][places] for part, places in parts.items()}
        labels = {part: own if own is not None and (own >= 0).any() else None for part, own in labels.items()}
    else:
        labels, classes = folder_labels(names, parts)

    tests = [part for part in TEST_ORDER if part in parts]
    tests.sort(key=lambda part: labels[part] is None)  # stable: labelled ones first
    train = "train" if "train" in parts else tests.pop()

    def make(part: str) -> Source:
        chosen = [candidates[place] for place in parts[part]]
        own = [archive.names[index] for index in chosen]
        digest = hashlib.sha256()
        for index in chosen:
            digest.update(f"{archive.names[index]}\0{archive.sizes[index]}\n".encode("utf-8", "surrogateescape"))
        known = labels[part]
        return Source(
            text,
            own,
            known,
            classes if known is not None else [],
            digest.hexdigest(),
            lambda index: archive.read(chosen[index]),
            unused | dict(archive.refused),
        )

    return _Parts(partial(make, train), partial(make, tests[0]) if tests else None)


def _told_names(archive: Archive, candidates: Sequence[int]) -> list[str]:
    """Names as the rules of splits and classes see them: a shard is a split (`train-003.tar`) or says nothing."""
    names = [archive.names[index] for index in candidates]
    if not isinstance(archive, Shards):
        return names
    word = {stem: re.sub(r"[-_.]?\d+$", "", stem).lower() for stem in archive.stems}
    shards, inner = zip(*(name.split("/", 1) for name in names), strict=True)
    if set(word.values()) <= set(SPLITS) and len(set(word.values())) > 1:
        return [f"{word[shard]}/{rest}" for shard, rest in zip(shards, inner, strict=True)]
    return list(inner)
