"""Objects with a PNG for each, as of the Data Science Bowl 2018: images have folders, such as 7/images/7.png with 7/masks/*.png."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from unveil.data.archive_parts import names_without_shards
from unveil.data.archives import Archive
from unveil.data.image_finder import ImageFinder, Part
from unveil.data.images import read_mask
from unveil.data.label_table import examples
from unveil.data.object_rows import Row, Told
from unveil.data.pixels import Unreadable
from unveil.data.quiet_decoders import quiet_decoders
from unveil.data.rle import Patch, encoded_patch
from unveil.data.split_folders import layout_of
from unveil.errors import UnveilError
from unveil.plain_text import count_of

IMAGE, MASKS = "images", "masks"
CLASS = "object"
"""The only class: such masks have no names."""


def mask_folder_parts(finder: ImageFinder) -> dict[str, Part] | None:
    """The parts of DATA with a mask for each object; None if it has another layout.

    Raises:
        UnveilError: If a mask cannot be used.
    """
    masks = masks_of_images(finder.archive, finder.candidates)
    if not masks:
        return None
    names = finder.archive.names
    used, members = sorted(masks), {mask for own in masks.values() for mask in own}
    layout = layout_of(names_without_shards(finder.archive, used))
    parts = {part: _part(finder, [used[i] for i in own], masks) for part, own in layout.parts.items() if own}
    rest = [names[i] for i in finder.candidates if i not in masks and i not in members]
    first = next(iter(parts.values()))
    first.notes += [f"{finder.text}: each mask in {MASKS}/ is taken as an object of the class {CLASS}"]
    first.notes += (
        [f"{finder.text}: left out {count_of(len(rest), 'image')} without a folder {MASKS}/: {examples(rest)}"] if rest else []
    )
    first.unused |= dict.fromkeys(rest, f"it has no folder {MASKS}/")
    return parts


def masks_of_images(archive: Archive, candidates: Sequence[int]) -> dict[int, list[int]]:
    """The masks of each image, where each image has a folder of its own with the folders images/ and masks/."""
    folders: dict[str, dict[str, list[int]]] = {}
    for index in candidates:
        outer, _, inner = archive.names[index].rpartition("/")[0].rpartition("/")
        if outer and inner.lower() in (IMAGE, MASKS):
            folders.setdefault(outer, {}).setdefault(inner.lower(), []).append(index)
    if any(len(own.get(IMAGE, ())) > 1 for own in folders.values()):
        return {}
    found = {own[IMAGE][0]: own[MASKS] for own in folders.values() if len(own) == 2}
    stems = {
        index: os.path.splitext(archive.names[index].rpartition("/")[2])[0]
        for pair in found.items()
        for index in (pair[0], *pair[1])
    }
    if all(stems[mask] == stems[image] for image, own in found.items() for mask in own):
        return {}  # one mask of classes for each image
    return found


def _part(finder: ImageFinder, images: list[int], masks: Mapping[int, list[int]]) -> Part:
    archive = finder.archive

    def read(place: int) -> tuple[list[Row], tuple[int, int], bytes]:
        rows, size, digest = list[Row](), (0, 0), hashlib.sha256()
        for mask in masks[images[place]]:
            name, raw = archive.names[mask], _bytes(finder, mask)
            digest.update(hashlib.sha256(raw).digest())
            pixels = _inside(raw, f"{finder.text}: {name}")
            if size not in ((0, 0), pixels.shape):
                raise UnveilError(f"{finder.text}: {name} has another size than the other masks of its image: expected one size")
            size = pixels.shape[0], pixels.shape[1]
            lines, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            if not len(lines):
                continue
            top, left, bottom, right = int(lines[0]), int(columns[0]), int(lines[-1]) + 1, int(columns[-1]) + 1
            segment = encoded_patch(Patch(top, left, pixels[top:bottom, left:right]), *size)
            rows.append(Row(place, 0, (left, top, right, bottom), name, area=float(pixels.sum()), segment=segment))
        return rows, size, digest.digest()

    with quiet_decoders(), ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="masks") as pool:
        found = list(pool.map(read, range(len(images))))
    rows = [row for own, _, _ in found for row in own]
    if not rows:
        raise UnveilError(f"{finder.text}: none of the masks of {count_of(len(images), 'image')} has a pixel that is not 0")
    ids = [os.path.splitext(archive.names[i].rpartition("/")[2])[0] for i in images]
    told = Told(finder.text, "mask", "pixels that are not 0", rows, [size for _, size, _ in found], ids, {CLASS: 1})
    return Part(images, told, [CLASS], b"".join(digest for _, _, digest in found))


def _bytes(finder: ImageFinder, index: int) -> bytes:
    """A file. Raises `UnveilError` if it cannot be read."""
    try:
        return finder.archive.read(index)
    except (OSError, Unreadable) as error:
        reason = error.reason if isinstance(error, Unreadable) else error.strerror
        raise UnveilError(f"{finder.text}: {finder.archive.names[index]} cannot be read: {reason}") from None


def _inside(raw: bytes, where: str) -> NDArray[np.bool_]:
    """The pixels (H, W) of a mask that are not 0. Raises `UnveilError` if it cannot be read."""
    try:
        pixels = read_mask(raw).pixels
    except Unreadable as error:
        raise UnveilError(f"{where}: {error.reason}") from None
    return np.asarray((pixels != 0).any(axis=2) if pixels.ndim == 3 else pixels != 0)
