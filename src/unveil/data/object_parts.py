"""The parts of a folder, an archive or shards whose images have objects: COCO json, VOC xml, YOLO txt or masks, by the layout."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from unveil.data.archive_parts import sizes_of
from unveil.data.archives import Archive
from unveil.data.coco_objects import coco_parts
from unveil.data.image_finder import ImageFinder, Part
from unveil.data.mask_folder_objects import mask_folder_parts
from unveil.data.object_rows import checked_objects, class_sentence
from unveil.data.parts import DataParts
from unveil.data.source import Source, archive_fingerprints, version_2
from unveil.data.split_folders import PARTS
from unveil.data.voc_objects import voc_parts
from unveil.data.yolo_objects import yolo_parts
from unveil.errors import UnveilError

OBJECT_LAYOUT = (
    "annotations in COCO json (annotations/instances_train.json beside the folder train/ of images), VOC xml (Annotations/ beside "
    "JPEGImages/), YOLO txt (labels/train/ beside images/train/, with data.yaml), or a mask for each object (7/images/7.png and "
    "7/masks/*.png)"
)
"""The layouts of files with boxes for `BoxTargets`, for error messages."""


def object_parts(text: str, archive: Archive) -> DataParts:
    """The parts of images with objects: see `OBJECT_LAYOUT`.

    Raises:
        UnveilError: If there are no annotations, or they cannot be used.
    """
    finder = ImageFinder(text, archive)
    readers: tuple[Callable[[ImageFinder], dict[str, Part] | None], ...] = (coco_parts, voc_parts, yolo_parts, mask_folder_parts)
    for reader in readers:
        parts = reader(finder)
        if parts:
            return _data_parts(text, archive, parts)
    raise UnveilError(f"no boxes in {text!r}: expected {OBJECT_LAYOUT}")


def _data_parts(text: str, archive: Archive, parts: dict[str, Part]) -> DataParts:
    parts = {name: parts[name] for name in PARTS if name in parts}
    sources = {name: _source(text, archive, part, name) for name, part in parts.items()}
    notes = tuple(dict.fromkeys(note for source in sources.values() for note in source.notes))
    sources = {name: replace(source, notes=notes) for name, source in sources.items()}
    counts = {name: len(source) for name, source in sources.items()}
    return DataParts(text, {name: partial(sources.__getitem__, name) for name in sources}, counts=counts)


def _source(text: str, archive: Archive, part: Part, name: str) -> Source:
    told, members = part.told, part.images
    if not members:
        raise UnveilError(f"{told.where}: none of its images is in {text!r}")
    objects, notes = checked_objects(told)
    fingerprint, listing = archive_fingerprints(archive, members)
    source = Source(
        text,
        [archive.names[index] for index in members],
        None,
        part.classes,
        version_2(fingerprint, hashlib.sha256(part.content).hexdigest(), *part.classes),
        lambda index: archive.read(members[index]),
        part.unused | dict(archive.refused),
        None,
        listing,
        sizes=sizes_of(archive, members),
        objects=objects,
    )
    return replace(source, notes=(class_sentence(told.where, objects, part.classes), *part.notes, *notes))
