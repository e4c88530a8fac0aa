"""Opens DATA as a list of candidate images: a folder, an archive, shards, a pack, a named dataset, or data given in Python."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unveil.data.archive_parts import candidate_images, class_parts, value_parts
from unveil.data.archives import Archive, Folder, Shards, Together, is_archive, open_archive
from unveil.data.arrays import array_source
from unveil.data.images import IMAGE_SUFFIXES, image_format
from unveil.data.instance_parts import instance_parts
from unveil.data.label_values import LabelKind, MultiLabel, Number, from_classes
from unveil.data.labels import classes_sentence
from unveil.data.mask_parts import MASK_LAYOUT, map_parts
from unveil.data.mask_values import PLAIN, KnownMasks, MaskConfig
from unveil.data.named_datasets import TORCHVISION_SETS, Listing, hugging_face_listings, hugging_face_splits, torchvision_splits
from unveil.data.object_parts import OBJECT_LAYOUT, object_parts
from unveil.data.pack_reader import Pack, is_pack
from unveil.data.parts import DataParts, Roles
from unveil.data.python_data import is_hugging_face, python_parts
from unveil.data.python_maps import MapRequest
from unveil.data.python_objects import python_object_parts
from unveil.data.source import Source, joined, version_2
from unveil.data.split_folders import OTHER, split_of, without_union
from unveil.errors import UnveilError
from unveil.paths import DIGITS, expand_braces, images_not_found
from unveil.paths import IMAGE_FORMS as FORMS

if TYPE_CHECKING:  # imports torch, which is not needed to list DATA
    from unveil.data.targets import Targets

__all__ = ["FORMS", "Data", "Source", "array_source", "expand_braces", "open_both", "open_parts", "open_roles", "open_source"]

Data = Any
"""DATA: a path or a name, see `FORMS`; or in Python also images, see `unveil.data.python_data`."""


def open_parts(
    data: Data, *, targets: "type[Targets] | None" = None, masks: MaskConfig = PLAIN, like: Source | None = None
) -> DataParts:
    """Opens DATA with all its splits.

    Args:
        data: See `Data`. The name of a dataset has priority over a folder of that name: for the folder, write `./digits`.
        targets: The kind of target: `ClassTargets` (the default; images may lack a class), `MultiLabelTargets` or `NumberTargets`
            (see `unveil.data.label_values`); `PixelTargets` for one class per pixel (see `unveil.data.mask_parts`), whose names
            are in a file classes.txt or colors.txt (without such a file, names are the values of the masks); or `BoxTargets` for
            boxes and masks of objects (see `unveil.data.object_parts`).
        masks: What the values of masks mean, or whether masks of objects are drawn as class maps.
        like: The train set, if DATA is its test set: class maps are read like its own.

    Raises:
        UnveilError: If DATA does not exist, is damaged, holds no images, or has no such targets.
    """
    with_maps, with_boxes, kind = _wants_maps(targets), _wants_boxes(targets), label_kind(targets)
    known = None if like is None or like.mask_values is None else KnownMasks(like.name, like.classes, like.mask_values)
    if with_maps and masks.instances:
        return instance_parts(_object_parts(data), masks, known)
    if with_boxes:
        return _object_parts(data)
    if not isinstance(data, str | os.PathLike):
        if is_hugging_face(data) and not with_maps:
            listings = hugging_face_listings(data)
            return _read_as(_listed_parts("dataset", listings, form="a Dataset of the library datasets"), kind)
        return python_parts(data, maps=MapRequest(masks, known) if with_maps else None, kind=kind)
    text = str(data)
    path = Path(text).expanduser()
    named = _named_parts(text) if isinstance(data, str) else None
    if with_maps and (named or (path.is_dir() and is_pack(path))):
        raise UnveilError(f"{text} has no class for each pixel: PixelTargets need {MASK_LAYOUT}")
    if named:
        return _read_as(_noting_a_folder(named, text), kind)
    of_archive: Callable[[str, Archive], DataParts] = partial(class_parts, optional=targets is None)
    if with_maps or kind is not None:
        of_archive = partial(map_parts, config=masks, known=known) if kind is None else partial(value_parts, kind=kind)
    if path.is_dir():
        return _read_as(_pack_parts(text, path), kind) if is_pack(path) else of_archive(text, _folder_or_shards(path))
    if path.is_file():
        return of_archive(text, open_archive(path) if is_archive(path) or not _is_image(path) else Folder(path))
    shards = [Path(each).expanduser() for each in expand_braces(text)]
    if len(shards) > 1:
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            raise UnveilError(f"{text}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}")
        return of_archive(text, Shards(shards))
    raise UnveilError(images_not_found(text))


def _object_parts(data: Data) -> DataParts:
    """`open_parts` of images with objects."""
    if not isinstance(data, str | os.PathLike):
        return python_object_parts(data)
    text, path = str(data), Path(data).expanduser()
    if (_named_parts(text) if isinstance(data, str) else None) or (path.is_dir() and is_pack(path)):
        raise UnveilError(f"{text} has no boxes: BoxTargets need {OBJECT_LAYOUT}")
    return object_parts(text, _with_archives(text, path))


def open_roles(
    data: Data,
    *,
    targets: "type[Targets] | None" = None,
    split: str | None = None,
    test_split: str | None = None,
    unlabeled: bool = False,
) -> Roles:
    """The images of DATA to train on, to evaluate during training, and to test on: see `open_parts` and `DataParts.roles`."""
    return open_parts(data, targets=targets).roles(split, test_split, unlabeled=unlabeled)


def open_source(data: Data, *, split: Literal["train", "test"] | None = None) -> Source:
    """Lists the images of one split of DATA, by default the training split. If DATA has no splits, lists all images.

    Args:
        data: See `open_parts`.
        split: "test" means the test split or, if there is none or it has no labels, the validation split.

    Raises:
        UnveilError: If DATA does not exist, is damaged, holds no images, or has no test split.
    """
    parts = open_parts(data)
    if split != "test":
        return parts.roles().train
    test = parts.roles().test if parts.has_splits else None
    if test is None:
        raise UnveilError(f"{_quoted(data)} has no test split: expected a folder named test or val")
    return test


def open_both(data: Data, *, targets: "type[Targets] | None" = None) -> tuple[Source, Source | None]:
    """Lists the training split and, if there is one, the test split of DATA. See `open_parts`."""
    roles = open_roles(data, targets=targets)
    return roles.train, roles.test


def _wants_maps(targets: "type[Targets] | None") -> bool:
    if targets is None:
        return False
    from unveil.data.targets import PixelTargets  # already imported by the caller, who has `targets`

    return issubclass(targets, PixelTargets)


def _wants_boxes(targets: "type[Targets] | None") -> bool:
    if targets is None:
        return False
    from unveil.data.targets import BoxTargets  # as above

    return issubclass(targets, BoxTargets)


def label_kind(targets: "type[Targets] | None") -> LabelKind | None:
    """The kind of label of targets that are neither classes nor maps."""
    if targets is None:
        return None
    from unveil.data.targets import MultiLabelTargets, NumberTargets  # as above

    return MultiLabel() if issubclass(targets, MultiLabelTargets) else Number() if issubclass(targets, NumberTargets) else None


def _read_as(parts: DataParts, kind: LabelKind | None) -> DataParts:
    """The same images, with the names of their classes as labels of another kind."""
    if kind is None:
        return parts

    def read(make: Callable[[], Source]) -> Source:
        return from_classes(kind, make(), "the names of the classes")

    return replace(parts, makers={part: partial(read, make) for part, make in parts.makers.items()})


def _quoted(data: Data) -> str:
    return repr(str(data)) if isinstance(data, str | Path) else "DATA"


def _named_parts(name: str) -> DataParts | None:
    if name in DIGITS:
        return DataParts(name, {"train": partial(_digits, name, "train"), "test": partial(_digits, name, "test")})
    if name in TORCHVISION_SETS:
        return _listed_parts(name, torchvision_splits(name))
    if name.startswith("hf://"):
        return _listed_parts(name, hugging_face_splits(name))
    return None


def _noting_a_folder(parts: DataParts, name: str) -> DataParts:
    """The parts of a named dataset, with a note, or an error message, that says how to give a folder of the same name."""
    if name.startswith("hf://") or not Path(name).exists():
        return parts
    note = f"{name} is the name of a dataset that unveil knows: for the folder or file of this name, write ./{name}"

    def make(source: Callable[[], Source]) -> Source:
        try:
            found = source()
        except UnveilError as error:
            raise UnveilError(f"{error}; {note}") from None
        return replace(found, notes=(note, *found.notes))

    return replace(parts, makers={part: partial(make, source) for part, source in parts.makers.items()})


def _is_image(path: Path) -> bool:
    with open(path, "rb") as file:
        return image_format(file.read(32)) is not None or path.suffix.lower() in IMAGE_SUFFIXES


def _digits(name: str, split: Literal["train", "test"]) -> Source:
    from unveil.data.digits import digits, originals  # it imports torch and scikit-learn

    plain = name == "digits-plain"
    images, labels = digits(split, plain=plain)
    source = array_source(images, np.asarray(labels, dtype=np.int64), name=f"{name}/{split}")
    # The images are part of unveil, and so are their labels.
    groups = None if plain else originals(split)
    return replace(source, name=name, fingerprint=source.listing_fingerprint, notes=(), groups=groups, form="")


def _listed_parts(name: str, listings: Mapping[str, Callable[[], Listing]], *, form: str = "") -> DataParts:
    """The parts of a named dataset, from the names of its splits. For `form` see `Source`."""
    found = without_union({split: part for split in listings if (part := split_of(split))})
    part_of = {split: found.get(split, OTHER) for split in listings}
    if "train" not in part_of.values():  # such as "full", the only split of some datasets
        part_of |= dict.fromkeys([split for split in part_of if part_of[split] == OTHER][:1], "train")
    if len(listings) == 1:
        part_of = dict.fromkeys(listings, "train")
    folder = Path(name.removeprefix("hf://"))
    where = f"hf://{folder.name}" if folder.exists() and not form else name

    def make(split: str) -> Source:
        listing = listings[split]()
        if not listing.length:
            raise UnveilError(f"{name} holds no images in its split {split!r}")
        names = [f"{split}/{index:08d}" for index in range(listing.length)]
        old = hashlib.sha256(f"{name} {split} {listing.length} {listing.version}".encode()).hexdigest()
        labels = listing.labels if listing.labels is not None and bool((listing.labels >= 0).any()) else None
        return Source(
            name,
            names,
            labels,
            listing.classes,
            version_2(where, split, str(listing.length), listing.version),
            listing.read,
            listing_fingerprint=old,
            notes=() if labels is None else (classes_sentence("the labels", labels, listing.classes),),
            form=form,
        )

    splits: dict[str, list[str]] = {}
    for split, part in part_of.items():
        splits.setdefault(part, []).append(split)
    return DataParts(name, {part: partial(_join_all, make, each) for part, each in splits.items()}, splits)


def _join_all(make: Callable[[str], Source], splits: list[str]) -> Source:
    return joined([make(split) for split in splits])


def _pack_parts(text: str, path: Path) -> DataParts:
    pack = Pack(path)

    def make(name: str) -> Source:
        split = pack.split(name)
        return Source(
            text,
            split.names,
            split.labels,
            split.classes,
            split.fingerprint,
            split.read,
            split.skipped,
            listing_fingerprint=split.fingerprint,
            shrunk_to=split.shrunk_to,
            sizes=split.sizes,
        )

    counts = {name: facts["pictures"] for name, facts in pack.facts["splits"].items()}
    return DataParts(text, {name: partial(make, name) for name in counts}, counts=counts)


def _with_archives(text: str, path: Path) -> Archive:
    """Opens DATA with objects. The archives in a folder belong to it, with the annotations that lie beside them."""
    if path.is_dir():
        folder = Folder(path)
        archives = [path / name for name in folder.names if "/" not in name and is_archive(Path(name))]
        return Together(folder, archives) if archives else folder
    if path.is_file():
        if path.suffix.lower() in (".json", ".yaml", ".yml", ".xml"):
            raise UnveilError(f"{text} is a file of annotations: give the folder that has it and the images")
        return open_archive(path)
    shards = [Path(each).expanduser() for each in expand_braces(text)]
    if len(shards) > 1 and all(shard.is_file() for shard in shards):
        return Shards(shards)
    raise UnveilError(images_not_found(text))


def _folder_or_shards(path: Path) -> Archive:
    """Opens a folder of images. If it has archives but no images, opens these as shards."""
    folder = Folder(path)
    shards = [path / name for name in folder.names if "/" not in name and is_archive(Path(name))]
    return Shards(shards) if shards and not candidate_images(folder) else folder
