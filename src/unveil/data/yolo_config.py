"""Reads the data.yaml of YOLO: names of the classes, images of each split, and the numbers of a keypoint."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import yaml

from unveil.data.image_finder import ImageFinder
from unveil.errors import UnveilError
from unveil.plain_text import count_of

USUAL = re.compile(r"(data|dataset)\.ya?ml")
"""The name that this file usually has."""
NAMES = ("classes.txt", "obj.names", "_darknet.labels")
"""Files with a class on each line."""
YAML_LIMIT = 2**20
MOST_LISTS = 100
SPLITS = ("train", "val", "test")
"""Keys of splits: a folder, a file with the paths of images, or a list of these."""

ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:")
MOST_FILES = 50
"""Maximum number of files to look into."""
T = TypeVar("T")


@dataclass
class YoloFacts:
    """What data.yaml tells, as far as there is one."""

    names: list[str] = field(default_factory=list)
    file: str = ""
    """The file itself."""
    named_in: str = ""
    """The file that has the names, which may be a list of classes."""
    splits: dict[str, list[int]] = field(default_factory=dict)
    """The images of each split; empty if splits follow from the names of folders."""
    keypoints: int | None = None
    """How many numbers a line has after those of the box; None if the data is not of poses."""
    notes: list[str] = field(default_factory=list)


class _File(NamedTuple):
    rank: int
    """The lower, the likelier it is the one that is meant."""
    name: str
    content: dict[str, Any]
    has_splits: bool


def yolo_config(finder: ImageFinder) -> YoloFacts:
    """Reads data.yaml, or the file that is most like it, or else a list of classes.

    Raises:
        UnveilError: If it cannot be used, or several files are equally likely and have different names of classes.
    """
    archive = finder.archive
    by_depth = sorted(range(len(archive.names)), key=lambda i: (archive.names[i].count("/"), archive.names[i]))
    files, damaged = _yaml_files(finder, by_depth)
    named = _likeliest([file for file in files if file.content.get("names") is not None])
    splitting = sorted(_likeliest([file for file in files if file.has_splits]), key=lambda file: file not in named[:1])
    names = {file.name: _names(file.content, f"{finder.text}: {file.name}") for file in named}
    if len(set(map(tuple, names.values()))) > 1:
        first, second = list(names)[:2]
        raise UnveilError(f"{finder.text}: {first} and {second} have different names of classes: leave one of them")
    config = YoloFacts()
    for file in [*named[:1], *splitting[:1]]:
        config.keypoints = config.keypoints or _keypoints(file.content, f"{finder.text}: {file.name}")
    if named:
        config.named_in = config.file = named[0].name
        config.names = names[config.named_in]
        count = named[0].content.get("nc")
        if count is not None and count != len(config.names):
            raise UnveilError(
                f"{finder.text}: {config.named_in} has nc: {str(count)[:40]}, but {count_of(len(config.names), 'name')}: correct "
                "one of them"
            )
    if splitting:
        config.file = splitting[0].name
        _add_splits(config, finder, config.file, splitting[0].content)
        told = [[_entries(file.content, key) for key in SPLITS] for file in splitting]
        other = next((file.name for file, splits in zip(splitting, told, strict=True) if splits != told[0]), None)
        if other is not None:
            config.notes.append(f"{finder.text}: splits are read from {config.file}, and not from {other}")
    if not named:
        listed = next((i for i in by_depth if archive.names[i].rpartition("/")[2] in NAMES), None)
        if listed is None and damaged and not splitting:
            raise damaged[0]
        if listed is not None:
            text = archive.read_text(listed, finder.text, YAML_LIMIT).decode("utf-8-sig", "replace").strip()
            config.named_in = archive.names[listed]
            config.names = _distinct([line.strip() for line in text.splitlines()], f"{finder.text}: {config.named_in}")
    return config


def _yaml_files(finder: ImageFinder, by_depth: Sequence[int]) -> tuple[list[_File], list[UnveilError]]:
    """The files with names or splits, and what is wrong with others, which may be of another program."""
    archive = finder.archive
    chosen = [i for i in by_depth if archive.names[i].lower().endswith((".yaml", ".yml"))]
    chosen = sorted(chosen, key=lambda i: not _is_usual(archive.names[i]))[:MOST_FILES]
    files, damaged = list[_File](), list[UnveilError]()
    for i in chosen:
        name, usual = archive.names[i], _is_usual(archive.names[i])
        try:
            content = _parsed(archive.read_text(i, finder.text, YAML_LIMIT), f"{finder.text}: {name}")
        except UnveilError as error:
            if usual:
                raise
            damaged.append(error)
            continue
        has_splits = any(_entries(content, key) for key in SPLITS)
        if content.get("names") is not None or has_splits:
            files.append(_File(0 if usual else 1 if has_splits or "nc" in content else 2, name, content, has_splits))
    return files, damaged


def _likeliest(files: Sequence[_File]) -> list[_File]:
    return [file for file in files if file.rank == min(other.rank for other in files)]


def _is_usual(name: str) -> bool:
    return USUAL.fullmatch(name.rpartition("/")[2].lower()) is not None


def _entries(content: Mapping[str, Any], key: str) -> list[str]:
    """The paths of a split; nothing if it is something else, as in the settings of another program."""
    value = content.get(key)
    values = value if isinstance(value, list) else [value] if value else []
    return values if all(isinstance(each, str) for each in values) else []


def _parsed(raw: bytes, where: str) -> dict[str, Any]:
    if (lists := raw.count(b"[") + raw.count(b"{")) > MOST_LISTS:  # the time to parse them grows with the square of their depth
        raise UnveilError(f"{where} has {lists:,} lists: expected the names of the classes")
    try:
        content: Any = yaml.safe_load(raw)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UnveilError(f"{where} is damaged: it is not valid YAML ({' '.join(str(error).split())[:200]})") from None
    return content if isinstance(content, dict) else {}


def _names(content: Mapping[str, Any], where: str) -> list[str]:
    """The names of the classes: a list, or a name by its number."""
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UnveilError(f"{where}: names has the keys {', '.join(map(str, list(names)[:5]))}: expected 0, 1, 2, ...")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise UnveilError(f"{where}: names is no list of classes")
    wrong = next((name for name in names if isinstance(name, bool)), None)
    if wrong is not None:
        raise UnveilError(f"{where}: names has a class that YAML reads as {str(wrong).lower()}, such as yes or no: quote it")
    return _distinct([str(name).strip() for name in names], where)


def _distinct(names: list[str], where: str) -> list[str]:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None or "" in names or not names:
        raise UnveilError(
            f"{where}: {f'two classes are called {twice!r}' if twice else 'a class has no name'}: expected one name for each"
        )
    return names


def _keypoints(content: Mapping[str, Any], where: str) -> int | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(each) is int and 0 < each < 10_000 for each in shape):
        raise UnveilError(f"{where}: kpt_shape is {str(shape)[:80]}: expected [keypoints, numbers of each]")
    return int(shape[0] * shape[1])


def _add_splits(config: YoloFacts, finder: ImageFinder, name: str, content: Mapping[str, Any]) -> None:
    """Finds the images of the splits that data.yaml names; without those for training, splits follow from the folders."""
    if not any(_entries(content, key) for key in SPLITS):
        return
    where, find = f"{finder.text}: {name}", _Paths(finder, name, content.get("path"))
    splits, absent = dict[str, list[int]](), dict[str, str]()
    for key in SPLITS:
        images = {entry: find(entry) for entry in _entries(content, key)}
        lost = next((entry for entry, found in images.items() if not found), None)
        if lost is not None:
            absent[key] = lost
        if any(images.values()):
            splits[key] = sorted({i for found in images.values() for i in found})
    shown = " and ".join(f"{key} ({entry})" for key, entry in absent.items())
    if "train" not in splits:
        if absent:
            config.notes.append(f"{where}: found no images for {shown}, so splits follow from the names of folders")
        return
    if absent:
        config.notes.append(f"{where}: found no images for {shown}")
    for key in list(splits)[1:]:
        same = next((other for other in splits if other != key and splits[other] == splits[key]), None)
        if same is not None:
            del splits[key]
            config.notes.append(f"{where}: {key} has the images of {same}, so it is left out")
    counts = Counter(i for images in splits.values() for i in images)
    if counts and max(counts.values()) > 1:
        path = finder.archive.names[max(counts, key=counts.__getitem__)]
        raise UnveilError(f"{where}: {path} is in several of its splits: an image belongs to one split")
    rest = len(finder.candidates) - len(counts)
    if rest:
        config.notes.append(
            f"{where}: left out {count_of(rest, 'image')} that {'is' if rest == 1 else 'are'} in none of its splits"
        )
    config.splits = splits


class _Paths:
    """Finds the images of a path in data.yaml, which may begin on another machine, or beside the folder of the file."""

    def __init__(self, finder: ImageFinder, beside: str, root: object) -> None:
        self.finder = finder
        self.folder = beside.split("/")[:-1]
        self.root = _steps(root) if isinstance(root, str) else []
        names = finder.archive.names
        self._images = {names[i]: i for i in finder.candidates}
        self._files = {name: i for i, name in enumerate(names) if name.lower().endswith(".txt")}
        self._folders: dict[str, list[int]] = {}
        for i in finder.candidates:
            steps = names[i].split("/")[:-1]
            for depth in range(len(steps) + 1):
                self._folders.setdefault("/".join(steps[:depth]), []).append(i)

    def __call__(self, entry: str) -> list[int]:
        own = _steps(entry)
        steps, kept = [*self.root, *own], 1 if ABSOLUTE.match(entry) else len(own)
        if entry.lower().endswith(".txt"):
            file = self._first(self._files, steps, self.folder, kept)
            return [] if file is None else self._listed(file)
        return self._first(self._folders, steps, self.folder, kept) or []

    def _listed(self, file: int) -> list[int]:
        archive = self.finder.archive
        text = archive.read_text(file, self.finder.text).decode("utf-8-sig", "replace")
        folder = archive.names[file].split("/")[:-1]
        found = [self._first(self._images, _steps(line), folder, 1) for line in text.splitlines() if line.strip()]
        return [i for i in found if i is not None]

    def _first(self, known: Mapping[str, T], steps: Sequence[str], folder: Sequence[str], kept: int) -> T | None:
        """What is known under a path, below a folder or else below DATA, without as few of its first steps as possible.

        At least `kept` steps stay: a path that begins on another machine may lose all but its last one.
        """
        for start in range(len(steps) - kept + 1):
            for root in (folder, []):
                found = known.get("/".join([*root, *steps[start:]]))
                if found is not None:
                    return found
        return None


def _steps(path: str) -> list[str]:
    return [step for step in path.strip().replace("\\", "/").split("/") if step not in ("", ".", "..")]
