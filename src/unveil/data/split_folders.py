"""Finds the splits of a dataset, its class folders, and its masks, from the paths of its images alone.

photos/train/cat/1.jpg          split train, class cat
photos/val/dog/2.jpg            split val, class dog
photos/train/cover.jpg          split train, no class: it lies beside the class folders
photos/extra/3.jpg              no split: it is reported, and not used
photos/masks/train/1.png        left out: a mask lies beside the images
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple, TypeVar

SPLIT_WORDS = {
    "train": ("train", "training", "trainval", "labeled", "labelled"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabeled": ("unlabeled", "unlabelled", "unsup", "unsupervised"),
}
"""Words for the splits, in names of folders, shards and splits of named datasets."""
SPLITS = tuple(SPLIT_WORDS)
OTHER = "other"
"""The part of DATA that lies beside its splits."""
PARTS = (*SPLITS, OTHER)

_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_WORD = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_SPLIT = re.compile(
    rf"(?:seg|data|dataset|images?|imgs?)?({_WORD})(?:set|split|data|dataset|images?|imgs?|jpe?gs?|photos|\d{{1,4}})?"
)
IMAGE_FOLDERS = frozenset(
    {"images", "image", "imgs", "img", "jpegimages", "jpgimages", "pngimages", "leftimg8bit", "inputs", "input"}
)
"""Folders of images that lie beside those of masks, in small letters and without separators."""
MASK_FOLDERS = tuple(
    "masks mask annotations annotation annots annot labels label segmentationclass segmentationclassaug segmentationclassraw "
    "segmentation segmentations semantic groundtruth groundtruths gt gtfine gtcoarse".split()
)
"""Folders that may have one mask of classes for each image. If there are several, the one with more masks is used, and of equals
the first."""
_MASK = "|".join(MASK_FOLDERS) + (
    r"|segmentationobject|trimaps?|panoptic|instances?|(?:1st|2nd)manual|outlines?|boxes|bboxes"  # masks of other kinds
)
_MASKS = re.compile(_MASK)
_SPLIT_MASKS = re.compile(rf".*?(?:{_WORD}).*?(?:masks?|labels?|annots?|annotations?|groundtruths?|gt)")
_SEPARATORS = re.compile(r"[-_. ]+")

F = TypeVar("F")
Steps = tuple[str, ...]
"""The folders of an image, from the outermost to the innermost."""


class Masks(NamedTuple):
    """A folder of masks or annotations, whose images no part of DATA has."""

    folder: str
    images: int
    """The number of its images."""
    beside: str
    """The folder of the images to which these masks belong."""


@dataclass
class Layout:
    """The parts of DATA.

    Attributes:
        parts: The indices of the images of each split, in ascending order; only "train" if DATA has no splits. `OTHER` has the
            images that lie beside the splits.
        folders: The folders of each part, as they are named in DATA; empty if DATA has no splits.
        steps: The folders of each image below its split, for `class_level`.
        masks: Folders of masks and annotations, whose images are in no part.
    """

    parts: dict[str, list[int]]
    folders: dict[str, list[str]] = field(default_factory=dict)
    steps: list[Steps] = field(default_factory=list)
    masks: list[Masks] = field(default_factory=list)


@dataclass
class _Node:
    """A folder with its images and its folders."""

    path: str = ""
    depth: int = 0
    children: dict[str, "_Node"] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)

    def walk(self) -> "Iterable[_Node]":
        """This folder and all below it. It does not recurse: an archive may be deeper than the stack."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    @property
    def images(self) -> list[int]:
        """All images below this folder."""
        return [index for node in self.walk() for index in node.files]


def split_of(name: str) -> str | None:
    """The split that a folder, a shard or a named split is called after: "train", "val", "test", "unlabeled", or None."""
    found = _SPLIT.fullmatch(_SEPARATORS.sub("", name.lower()))
    return _SPLIT_OF[found[1]] if found else None


def splits_of(name: str) -> set[str]:
    """The splits whose images a folder may have: that of `split_of`, or train and val for trainval/. Empty for other names."""
    split = split_of(name)
    return {"train", "val"} if split and "trainval" in _plain(name) else {split} if split else set()


def without_union(splits: Mapping[str, str]) -> dict[str, str]:
    """Splits by name, without trainval beside train and val: it has the images of both again, so val would be trained on."""
    rest = {name: split for name, split in splits.items() if "trainval" not in _plain(name)}
    return rest if {"train", "val"} <= set(rest.values()) else dict(splits)


def layout_of(names: Sequence[str], *, keep_masks: bool = False) -> Layout:
    """Finds the splits of images from their paths.

    Folders are split folders if any at their level is called after a split. The exception is a folder train/ without class folders
    beside several other folders: it is the class of a vehicle.

    Args:
        names: One path per image, with slashes.
        keep_masks: Masks are images as well. By default, folders such as masks/ and annotations/ beside images/ are left out.
    """
    root = _tree(names)
    masks = [] if keep_masks else _cut_masks(root, names)
    kept = root.images
    steps = _each_folder([name.rpartition("/")[0] for name in names], lambda folder: tuple(folder.split("/")) if folder else ())
    node = root
    while True:
        found = without_union(_splits_among(node))
        if found:
            break
        below = _splits_below(node)
        if below:
            return _layout_below(node, below, kept, steps, masks)
        if len(node.children) != 1:
            return Layout({"train": sorted(kept)}, {}, _each_folder(steps, itemgetter(slice(node.depth, None))), masks)
        (node,) = node.children.values()
    parts: dict[str, list[int]] = {}
    folders: dict[str, list[str]] = {}
    for name, child in node.children.items():
        part = found.get(name, OTHER)
        parts.setdefault(part, []).extend(child.images)
        folders.setdefault(part, []).append(name)
    stray = sorted(set(kept) - {index for members in parts.values() for index in members})
    if stray:
        parts.setdefault(OTHER, []).extend(stray)
        folders.setdefault(OTHER, [])
    steps = _each_folder(steps, itemgetter(slice(node.depth + 1, None)))
    order = [part for part in PARTS if part in parts]
    return Layout({part: sorted(parts[part]) for part in order}, {part: sorted(folders[part]) for part in order}, steps, masks)


def class_level(steps: Iterable[Steps], known: Set[str] = frozenset()) -> int | None:
    """The level of the class folders among the folders of images: the first one with several folders; None if there is none.

    Args:
        steps: The folders of each image.
        known: Classes of the train split. If any level has one of them, the first such level is that of the classes, so a test
            split with one class only is read like the train split.
    """
    unique = set(steps)
    levels = [{step[level] for step in unique if len(step) > level} for level in range(max(map(len, unique), default=0))]
    of_train = [level for level, folders in enumerate(levels) if known & folders]
    several = [level for level, folders in enumerate(levels) if len(folders) > 1]
    return next(iter(of_train + several), None)


def folder_classes(layout: Layout) -> dict[str, list[str | None]]:
    """The class folder of each image of each part; None for an image that lies beside the class folders.

    A part without class folders has no entry. Unlabeled images have no class, whatever their folders are called.
    """
    classes: dict[str, list[str | None]] = {}
    known: set[str] = set()
    for part in PARTS:  # the train split comes first, because it determines the classes
        members = layout.parts.get(part, [])
        steps = [layout.steps[index] for index in members]
        level = class_level(steps, known)
        if not members or level is None or part == "unlabeled":
            continue
        own = [step[level] if len(step) > level else None for step in steps]
        if part == OTHER and known.isdisjoint(own):
            continue
        classes[part] = own
        known = known or {name for name in own if name is not None}
    return classes


def _tree(names: Sequence[str]) -> _Node:
    root, nodes = _Node(), dict[str, _Node]()
    for index, name in enumerate(names):
        folder = name.rpartition("/")[0]
        node = nodes.get(folder)
        if node is None:
            node = root
            for step in folder.split("/") if folder else ():
                if step not in node.children:
                    node.children[step] = _Node(f"{node.path}{step}/", node.depth + 1)
                node = node.children[step]
            nodes[folder] = node
        node.files.append(index)
    return root


def _each_folder(folders: Sequence[F], change: Callable[[F], Steps]) -> list[Steps]:
    """Changes the folder of each image. Images of one folder share the result: a million tuples of strings take 200 MB."""
    changed = {folder: change(folder) for folder in set(folders)}
    return [changed[folder] for folder in folders]


def _cut_masks(root: _Node, names: Sequence[str]) -> list[Masks]:
    """Removes folders of masks from a tree, and returns them."""
    masks: list[Masks] = []
    for node in root.walk():
        likely = {name for name in node.children if is_mask_folder(name)}
        rest = [name for name in node.children if name not in likely]
        images = [name for name in rest if _plain(name) in IMAGE_FOLDERS]
        splits = [name for name in rest if split_of(name)] or list(_same_pattern(rest))
        for name in likely:
            child, of_split = node.children[name], splits and _SPLIT_MASKS.fullmatch(_plain(name))
            if of_split or images or len(splits) > 1 or _same_files(node, child, names):
                beside = (images or splits or [""])[0]
                masks.append(Masks(child.path, len(child.images), node.path + (f"{beside}/" if beside else "")))
                del node.children[name]
    return sorted(masks)


def is_mask_folder(name: str) -> bool:
    """Whether a folder is called after masks or annotations of any kind."""
    word = _plain(name)
    return word not in IMAGE_FOLDERS and not split_of(word) and bool(_MASKS.fullmatch(word) or _SPLIT_MASKS.fullmatch(word))


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


def _same_files(node: _Node, child: _Node, names: Sequence[str]) -> bool:
    """Whether most images of a folder are called after images that lie beside the folder, as in 7.jpg and masks/7_mask.png."""
    own = {names[index].rpartition("/")[2].split(".")[0] for index in node.files}
    if not own:
        return False
    others = [names[index].rpartition("/")[2].split(".")[0] for index in child.images]
    fitting = sum(stem in own or re.sub(rf"[-_. ](?:{_MASK}|mask\d*)$", "", stem, flags=re.I) in own for stem in others)
    return fitting * 2 > len(others)


def _splits_among(node: _Node) -> dict[str, str]:
    """The split of each folder of a level that is called after one; empty if these folders are not split folders."""
    children = node.children
    found = {name: split for name in children if (split := split_of(name))} or _same_pattern(children)
    others = [name for name in children if name not in found]
    splits = set(found.values())
    if len(splits) > 1 or not (splits and others):
        return found if len(splits) > 1 else {}
    if {_plain(name) for name in children} == {"valid", "invalid"}:
        return {}
    if splits != {"train"}:  # test/ beside images/, which can only be the train split
        return found | {name: "train" for name in others if _plain(name) in IMAGE_FOLDERS}
    has_classes = any(children[name].children for name in found)
    return found if has_classes or len(others) == 1 else {}


def _same_pattern(names: Iterable[str]) -> dict[str, str]:
    """Splits of folders whose names differ in one word only: isic_training_input and isic_test_input, but not test_tube."""
    found, rests, unknown = {}, set(), False
    for name in names:
        words = _SEPARATORS.split(name.lower())
        splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
        if len(splits) != 1:
            unknown = True
            continue
        found[name] = splits[0]
        rests.add(tuple(word for word in words if word not in _SPLIT_OF))
    several = len(set(found.values())) > 1 or not unknown
    return found if len(rests) == 1 and several and "train" in found.values() else {}


def _splits_below(node: _Node) -> set[str]:
    """The splits, if every folder of a level has only split folders inside: screw/train/, screw/test/, cable/train/, ..."""
    if len(node.children) < 2:
        return set()
    found: set[str] = set()
    for child in node.children.values():
        splits = {split_of(name) for name in child.children}
        if child.files or not splits or None in splits:
            return set()
        found |= {split for split in splits if split}
    return found if len(found) > 1 and "train" in found else set()


def _layout_below(node: _Node, found: set[str], kept: Sequence[int], steps: Sequence[Steps], masks: list[Masks]) -> Layout:
    """The layout of splits inside of class folders."""
    level = node.depth + 1
    parts: dict[str, list[int]] = {split: [] for split in PARTS if split in found}
    folders: dict[str, set[str]] = {part: set() for part in parts}
    for index in sorted(kept):
        name = steps[index][level] if len(steps[index]) > level else ""
        part = split_of(name) or OTHER
        parts.setdefault(part, []).append(index)
        folders.setdefault(part, set()).update([f"*/{name}"] if name else [])
    below = _each_folder(steps, lambda step: step[node.depth : level] + step[level + 1 :])
    return Layout(parts, {part: sorted(each) for part, each in folders.items()}, below, masks)
