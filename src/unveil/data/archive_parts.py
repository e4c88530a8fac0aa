"""The parts of a folder, an archive or shards: their splits, with labels of images. For class maps see `unveil.data.mask_parts`."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.archives import Archive, Shards
from unveil.data.images import IMAGE_SUFFIXES, image_format
from unveil.data.label_table import TABLE, examples
from unveil.data.label_values import LabelKind, Written, written_values
from unveil.data.labels import classes_sentence, number_labels, sample_names, written_labels
from unveil.data.parts import DataParts
from unveil.data.pixels import Unreadable
from unveil.data.retries import Retries
from unveil.data.source import Source, archive_fingerprints
from unveil.data.split_folders import OTHER, Layout, folder_classes, layout_of
from unveil.errors import UnveilError
from unveil.paths import IMAGE_FORMS
from unveil.plain_text import count_of


class Listed(NamedTuple):
    """The images of an archive, and what else it holds."""

    candidates: list[int]
    """Their indices in the archive."""
    names: list[str]
    """Their names without shards, from which splits and classes follow."""
    layout: Layout
    roots: list[str]
    """Folders that may have a labels.csv."""
    unused: dict[str, str]
    """The files that are not used, with the reason."""
    notes: list[str]
    """What the user should know."""

    @property
    def kept(self) -> list[int]:
        """The images that are in some part, in their order."""
        return sorted(index for members in self.layout.parts.values() for index in members)


def listed(text: str, archive: Archive) -> Listed:
    """Lists the images of an archive. Raises `UnveilError` if there are none."""
    candidates = candidates_or_error(text, archive)
    extras = extra_images(archive, candidates)
    candidates = [index for index in candidates if index not in extras]
    unused = dict.fromkeys(_other_files(archive, candidates, extras), "not an image, by its name or its first bytes")
    unused |= {archive.names[index]: reason for index, reason in extras.items()}
    names = names_without_shards(archive, candidates)
    layout = layout_of(names)
    notes = [
        f"left out {folder} ({count_of(count, 'image')}): masks or annotations of {beside or 'the images beside them'}"
        for folder, count, beside in layout.masks
    ]
    return Listed(candidates, names, layout, _label_roots(archive, candidates, layout), unused | dict(archive.refused), notes)


def class_parts(text: str, archive: Archive, *, optional: bool = True) -> DataParts:
    """The parts of images with one class each, or none.

    Args:
        text: DATA as the user typed it.
        archive: Its files.
        optional: Whether a labels.csv may have other labels than classes, which are not used.

    Raises:
        UnveilError: If there are no images, or a labels.csv cannot be used.
    """
    found = listed(text, archive)
    layout, notes = found.layout, found.notes
    written = written_labels(archive, [found.candidates[i] for i in found.kept], found.roots, text, optional=optional)
    is_written = written is not None and bool(written.where)
    notes += written.notes if written else []
    if written and is_written:
        value_of = dict(zip(found.kept, written.values, strict=True))
        values = {part: [value_of[i] for i in members] for part, members in layout.parts.items()}
    else:
        values = folder_classes(layout)
        notes += _stray_notes(layout, found.names, values)
    numbered = number_labels({part: values.get(part, [None] * len(members)) for part, members in layout.parts.items()})
    labels, classes = numbered.get("train") or next(iter(numbered.values()))
    if labels is not None:
        notes.append(classes_sentence(written.where if written and is_written else "the folders", labels, classes))

    def make(part: str) -> Source:
        labels, classes = numbered[part]
        source = _part(text, archive, found, part, list(map(str, values[part])) if is_written else ())
        return replace(source, labels=labels, classes=classes, notes=tuple(notes))

    return DataParts(text, _makers(layout, make), layout.folders, _counts(layout))


def value_parts(text: str, archive: Archive, kind: LabelKind) -> DataParts:
    """The parts of images with labels of another kind than one class: see `class_parts`."""
    found = listed(text, archive)
    layout, notes, kept = found.layout, found.notes, found.kept
    written = written_values(kind, archive, [found.candidates[i] for i in kept], found.roots, text)
    is_written = written is not None
    if written is None:
        classes = folder_classes(layout)
        notes += _stray_notes(layout, found.names, classes)
        of_image = {i: value for part, own in classes.items() for i, value in zip(layout.parts[part], own, strict=True)}
        written = Written([None if (name := of_image.get(i)) is None else (name,) for i in kept], "the folders")
    place = {index: row for row, index in enumerate(kept)}
    read = kind.read(written, [archive.names[found.candidates[i]] for i in kept], text)
    notes += written.notes
    cells = written.cells

    def make(part: str) -> Source:
        rows = [place[i] for i in layout.parts[part]]
        source = _part(text, archive, found, part, [str(cells[row]) for row in rows] if is_written else ())
        return replace(source, values=read.values[rows], classes=read.classes, absent=read.absent, notes=tuple(notes))

    first = make("train" if "train" in layout.parts else next(iter(layout.parts)))
    if first.is_labelled:
        notes.append(kind.sentence(written.where, first))
    return DataParts(text, _makers(layout, make), layout.folders, _counts(layout))


def _part(text: str, archive: Archive, found: Listed, part: str, labels: Sequence[str]) -> Source:
    """The images of a part, without labels; `labels` are those of label files, for the fingerprint."""
    members = [found.candidates[i] for i in found.layout.parts[part]]
    fingerprint, listing = archive_fingerprints(archive, members, labels)
    return Source(
        text,
        [archive.names[index] for index in members],
        None,
        [],
        fingerprint,
        lambda index: archive.read(members[index]),
        found.unused,
        None,
        listing,
        sizes=sizes_of(archive, members),
    )


def sizes_of(archive: Archive, members: Sequence[int]) -> NDArray[np.int64]:
    """The bytes of some files."""
    return np.asarray(archive.sizes, dtype=np.int64)[np.asarray(members, dtype=np.int64)]


def candidate_images(archive: Archive) -> list[int]:
    """Indices of files with the suffix of an image, and of files without a suffix that begin like an image."""
    indices, retries = [], Retries()
    for index, name in enumerate(archive.names):
        if name.lower().endswith(IMAGE_SUFFIXES):
            indices.append(index)
            continue
        try:
            if image_format(retries(partial(archive.read, index, 32))) is not None:
                indices.append(index)
        except (OSError, Unreadable):
            continue
    return indices


def candidates_or_error(text: str, archive: Archive) -> list[int]:
    """`candidate_images`, or an `UnveilError` if there are none."""
    candidates = candidate_images(archive)
    if not candidates:
        raise UnveilError(f"no images in {text!r}: {_what_there_is(archive)}. DATA is {IMAGE_FORMS}")
    return candidates


def _what_there_is(archive: Archive) -> str:
    said = [f"none of its {len(archive.names):,} files is an image"] if archive.names else []
    if archive.refused:
        (name, reason), count = min(archive.refused.items()), len(archive.refused)
        said.append(f"{count:,} files were left out, the first is" if count > 1 else "1 file was left out,")
        said[-1] += f" {name}: {reason}"
    return ", and ".join(said) or "it has no files at all"


def extra_images(archive: Archive, candidates: Sequence[int]) -> dict[int, str]:
    """Further images of WebDataset samples, like the mask `000.seg.png` beside `000.png` and `000.cls`, with the reason.

    They belong to a sample if the key before the first dot has a label file, and an image without a second dot.
    """
    labelled = {os.path.splitext(name)[0] for name in archive.names if name.endswith((".cls", ".json"))}
    if not labelled:
        return {}
    keys = {index: sample_names(archive.names[index]) for index in candidates}
    image_of = {key: archive.names[index] for index, (key, stem) in keys.items() if key == stem and key in labelled}
    return {
        index: f"belongs to the sample {key.rpartition('/')[2]}, whose image is {image_of[key].rpartition('/')[2]}"
        for index, (key, stem) in keys.items()
        if key != stem and key in image_of and stem not in labelled
    }


def _other_files(archive: Archive, candidates: Sequence[int], extras: Mapping[int, str]) -> list[str]:
    """The files that are neither images nor hold labels: a labels.csv, or a .cls or .json with the name of a sample."""
    images = {*candidates, *extras}
    rest = [name for index, name in enumerate(archive.names) if index not in images and name.rpartition("/")[2] != TABLE]
    if not any(name.endswith((".cls", ".json")) for name in rest):
        return rest
    samples = {sample for index in candidates for sample in sample_names(archive.names[index])}
    return [name for name in rest if not (name.endswith((".cls", ".json")) and os.path.splitext(name)[0] in samples)]


def names_without_shards(archive: Archive, candidates: Sequence[int]) -> list[str]:
    """Names from which splits and classes follow: the name of a shard becomes a folder (`train-003.tar`), or is removed."""
    names = [archive.names[index] for index in candidates]
    if not isinstance(archive, Shards):
        return names
    word = {stem: re.sub(r"[-_.]?\d+$", "", stem).lower() for stem in archive.stems}
    words = set(word.values())
    if len(words) > 1 and len(layout_of([f"{each}/1" for each in words]).parts) > 1:
        return [f"{word[shard]}/{rest}" for shard, _, rest in (name.partition("/") for name in names)]
    return [name.partition("/")[2] for name in names]


def _makers(layout: Layout, make: Callable[[str], Source]) -> dict[str, Callable[[], Source]]:
    return {part: partial(make, part) for part in layout.parts}


def _counts(layout: Layout) -> dict[str, int]:
    return {part: len(members) for part, members in layout.parts.items()}


def _label_roots(archive: Archive, candidates: Sequence[int], layout: Layout) -> list[str]:
    """Folders that may have a labels.csv: those that all images share, from the outermost on, and then the split folders."""
    names = [archive.names[index] for index in candidates]
    shared = os.path.commonprefix([min(names), max(names)]).split("/")[:-1]  # noqa: RUF071 (only its slashes are counted)
    roots = ["".join(f"{step}/" for step in shared[:depth]) for depth in range(len(shared) + 1)]
    return roots + [f"{roots[-1]}{folder}/" for folders in layout.folders.values() for folder in folders]


def _stray_notes(layout: Layout, names: Sequence[str], values: Mapping[str, Sequence[str | None]]) -> list[str]:
    """A sentence for each part with images beside its class folders."""
    notes = []
    for part, own in values.items():
        stray = [names[index] for index, value in zip(layout.parts[part], own, strict=True) if value is None]
        if stray and part != OTHER:
            lie = "lie" if len(stray) > 1 else "lies"
            notes.append(f"{count_of(len(stray), 'image')} {lie} beside the class folders, without a class: {examples(stray)}")
    return notes
