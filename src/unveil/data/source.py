"""A source: candidate images in a fixed order, with their labels and a fingerprint."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.archives import Archive
from unveil.data.instance_map import InstanceMap
from unveil.data.labels import Labels
from unveil.data.mask_values import MaskValues
from unveil.data.objects import Objects, joined_objects
from unveil.data.pixels import Unreadable
from unveil.data.retries import Retries

T = TypeVar("T")
Raw = bytes | Image.Image | NDArray[Any]
RawMap = bytes | NDArray[Any] | InstanceMap
Values = NDArray[np.floating[Any]]
SAMPLED_FILES, SAMPLED_BYTES = 256, 1 << 18
"""A fingerprint covers the contents of this many files, and of each of them the first bytes up to this limit."""


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
    """Names of the classes. Those of a test split begin with those of the train split; the rest does not occur in training."""
    fingerprint: str
    """It changes with the names and sizes of the files, with the contents of a sample of them, and with labels from label files.
    It does not depend on where DATA lies."""
    reader: Callable[[int], Raw] = field(repr=False)
    """Reads an image by its index; called by `read`."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Files that were skipped when listing, with the reason."""
    map_reader: Callable[[int], RawMap] | None = field(default=None, repr=False)
    """Reads a class map by its index; called by `read_map`. None if the data has no class maps."""
    listing_fingerprint: str = ""
    """The fingerprint by the formula of earlier versions, over names and sizes only, to recognise the data of earlier runs."""
    notes: tuple[str, ...] = ()
    """What the user should know before training: what was taken as classes, what is not used, problems of label files."""
    groups: NDArray[np.int64] | None = None
    """The number of the original of each image, if several images may come from one: those are held out together, and do not count
    as independent test images. None if all originals differ, as far as is known."""
    shrunk_to: int | None = None
    """The maximum short side of the images of a pack, in pixels, if some have reached it; None for other data."""
    form: str = ""
    """What DATA is, such as "a list of paths", if it was given in Python and so cannot be found again by its name; or ""."""
    retries: Retries = field(default_factory=Retries, repr=False)
    """Tries a read again after an I/O error."""
    values: Values | None = None
    """Labels of another kind than one class: (n, K) 1, 0, or NaN where it is unknown, for any number of `classes`; or (n,) numbers,
    NaN where there is none, and `classes` is the name of the quantity."""
    absent: float = math.nan
    """What `values` are of labels that are not among `classes`: 0 if each image has a list of all its labels, else unknown."""
    sizes: NDArray[np.int64] | None = None
    """Bytes of each file, or of each image in memory, by which exact copies are found; None if they are not known."""
    objects: Objects | None = None
    """The boxes, and perhaps the masks, of the objects in each image, whose classes are `classes`; None if the data has none."""
    unscored: str = ""
    """A sentence about labels of a test set that the train set does not have; "" if there are none."""
    mask_values: MaskValues | None = None
    """What the values of class maps mean; None if `map_reader` reads arrays of classes, or there are no maps."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, *, retry: bool = True) -> Raw:
        """Returns the bytes of an image file, or the image itself. Safe to call from several threads.

        Args:
            index: The index of the image.
            retry: Whether to try again, after a pause, if the disk or the network share fails.

        Raises:
            Unreadable: If the image cannot be read.
        """
        return self._read(self.reader, index, retry)

    def read_map(self, index: int, *, retry: bool = True) -> RawMap:
        """Returns the class map of an image: the bytes of a PNG file, an array (H, W) of classes, or what draws it. See `read`."""
        assert self.map_reader is not None
        return self._read(self.map_reader, index, retry)

    def _read(self, reader: Callable[[int], T], index: int, retry: bool) -> T:
        try:
            return self.retries(partial(reader, index)) if retry else reader(index)
        except Unreadable as error:
            raise Unreadable(error.reason, self.names[index], lost=error.lost) from None
        except OSError as error:
            lost = not isinstance(error, PermissionError)  # which may have been missing from the start
            raise Unreadable(f"cannot be read: {error.strerror or error}", self.names[index], lost=lost) from None
        except Exception as error:  # of a library that reads a named dataset, or of the memory
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise Unreadable(f"cannot be read: {reason}", self.names[index], lost=isinstance(error, MemoryError)) from None

    def with_classes(self, classes: Sequence[str]) -> "Source":
        """The same images with labels numbered as in `classes`. Classes that are not in `classes` follow after its last one.

        Needed for a separate test set: its classes are matched to those of the training set by name. A model has no output for
        the ones that follow, so it cannot predict them, and their images count as wrong. Class maps do not change.
        """
        if self.map_reader is not None:
            return replace(self, classes=list(classes))
        if self.values is not None:
            return self if list(classes) == self.classes else self._with_values_of(classes)
        if self.objects is not None:
            return self if list(classes) == self.classes else self._with_objects_of(self.objects, classes)
        if self.labels is None or list(classes) == self.classes:
            return self
        occurring = {self.classes[label] for label in np.unique(self.labels[self.labels >= 0]).tolist()}
        known = set(classes)
        extended = [*classes, *(name for name in self.classes if name in occurring and name not in known)]
        number = {name: index for index, name in enumerate(extended)}
        table = np.array([*(number.get(name, -1) for name in self.classes), -1], dtype=np.int64)  # -1 stays -1
        return replace(self, labels=table[self.labels], classes=extended)

    def _with_values_of(self, classes: Sequence[str]) -> "Source":
        """`with_classes` of `values`: the labels of `classes`, in their order. Others are left out, and named in `unscored`."""
        assert self.values is not None
        if self.values.ndim == 1:
            return replace(self, classes=list(classes))
        known, counts = set(classes), np.nansum(self.values, axis=0).astype(int).tolist()
        left_out = [f"{name}: {count:,}" for name, count in zip(self.classes, counts, strict=True) if count and name not in known]
        unscored = _unscored(left_out, "label", "images")
        return replace(self, values=values_of(self, classes), classes=list(classes), unscored=unscored)

    def _with_objects_of(self, objects: Objects, classes: Sequence[str]) -> "Source":
        """`with_classes` of `objects`: those of `classes`. Others are left out, and named in `unscored`."""
        found, lost = objects.numbered(self.classes, classes)
        unscored = _unscored([f"{name}: {count:,}" for name, count in lost.items()], "class", "objects")
        return replace(self, objects=found, classes=list(classes), unscored=unscored)

    @property
    def has_label(self) -> NDArray[np.bool_]:
        """Whether each image has a label; of objects, whether there is more to learn from it than crowds."""
        if self.objects is not None:
            return np.asarray(~self.objects.only_crowds)
        if self.values is not None:
            return np.asarray(~np.isnan(self.values).reshape(len(self), -1).all(axis=1))
        return np.zeros(len(self), dtype=bool) if self.labels is None else self.labels >= 0

    def taken(self, indices: Sequence[int]) -> "Source":
        """Some of the images, in this order, with their labels and groups. Class maps are taken with them."""
        chosen = np.asarray(indices, dtype=np.int64)
        reader, map_reader = self.reader, self.map_reader
        return replace(
            self,
            names=[self.names[index] for index in indices],
            labels=None if self.labels is None else self.labels[chosen],
            fingerprint=version_2(self.fingerprint, *map(str, indices)),
            listing_fingerprint=version_2(self.listing_fingerprint, *map(str, indices)),
            reader=lambda index: reader(int(chosen[index])),
            map_reader=None if map_reader is None else lambda index: map_reader(int(chosen[index])),
            groups=None if self.groups is None else self.groups[chosen],
            values=None if self.values is None else self.values[chosen],
            sizes=None if self.sizes is None else self.sizes[chosen],
            objects=None if self.objects is None else self.objects.taken(chosen),
            retries=Retries(),
        )

    @property
    def is_labelled(self) -> bool:
        """Whether any image has a label."""
        return bool(self.has_label.any())


def _unscored(left_out: Sequence[str], noun: str, what: str) -> str:
    """A sentence about labels, or classes, that the train set does not have; "" if there are none."""
    if not left_out:
        return ""
    verb = f"is a {noun}" if len(left_out) == 1 else f"are {noun}{'e' * noun.endswith('s')}s"
    shown = ", ".join(left_out[:5]) + ", ..." * (len(left_out) > 5)
    return f"{shown} {verb} of test {what} that the train set does not have, so the model has no score for it"


def values_of(source: Source, classes: Sequence[str]) -> Values:
    """The columns of `Source.values` for these classes, of a source with labels of several classes or with none."""
    if source.values is None:
        return np.full((len(source), len(classes)), math.nan, np.float32)
    table = np.full((len(source), len(classes)), source.absent, np.float32)
    table[~source.has_label] = math.nan
    column = {name: index for index, name in enumerate(source.classes)}
    for index, name in enumerate(classes):
        if name in column:
            table[:, index] = source.values[:, column[name]]
    return table


def joined(sources: Sequence[Source]) -> Source:
    """Several parts of the same DATA as one source."""
    if len(sources) == 1:
        return sources[0]
    labels: list[Labels] = []
    classes: list[str] = next((source.classes for source in sources if source.is_labelled), [])
    for source in sources:
        if source.is_labelled and source.values is None:
            source = source.with_classes(classes)
            classes = source.classes
        labels.append(np.full(len(source), -1, np.int64) if source.labels is None else source.labels)
    values = joined_values(sources)
    if values is not None and values.ndim == 2:
        classes = joined_classes(sources)
    objects = [source.objects for source in sources if source.objects is not None]
    if objects:
        classes = list(dict.fromkeys(name for source in sources for name in source.classes))
    names = [name for source in sources for name in source.names]
    of_all, note = joined_objects(objects, [source.classes for source in sources], classes, names) if objects else (None, "")
    notes = [*(note for source in sources for note in source.notes), *([f"{sources[0].name}: {note}"] if note else [])]
    starts = np.cumsum([0, *map(len, sources)])

    def part(index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return sources[number], int(index - starts[number])

    def read(index: int) -> Raw:
        source, inner = part(index)
        return source.reader(inner)

    def read_map(index: int) -> RawMap:
        source, inner = part(index)
        assert source.map_reader is not None
        return source.map_reader(inner)

    return Source(
        sources[0].name,
        names,
        np.concatenate(labels) if any(source.labels is not None and source.is_labelled for source in sources) else None,
        classes or sources[0].classes,
        version_2(*(source.fingerprint for source in sources)),
        read,
        {name: reason for source in sources for name, reason in source.skipped.items()},
        read_map if all(source.map_reader is not None for source in sources) else None,
        hashlib.sha256("\n".join(source.listing_fingerprint for source in sources).encode()).hexdigest(),
        tuple(dict.fromkeys(notes)),
        joined_groups(sources),
        min((source.shrunk_to for source in sources if source.shrunk_to is not None), default=None),
        values=values,
        form=sources[0].form,
        absent=next((source.absent for source in sources if source.values is not None), math.nan),
        sizes=joined_sizes(sources),
        objects=of_all,
        mask_values=sources[0].mask_values,
    )


def joined_classes(sources: Sequence[Source]) -> list[str]:
    """The labels that any of several sources has."""
    return list(dict.fromkeys(name for source in sources if source.values is not None for name in source.classes))


def joined_values(sources: Sequence[Source]) -> Values | None:
    """`Source.values` of several sources, with the columns of `joined_classes`; None if none has any."""
    found = next((source.values for source in sources if source.values is not None), None)
    if found is None:
        return None
    if found.ndim == 2:
        classes = joined_classes(sources)
        return np.concatenate([values_of(source, classes) for source in sources])
    nothing = (np.full(len(source), math.nan) for source in sources)
    return np.concatenate(
        [empty if source.values is None else source.values for source, empty in zip(sources, nothing, strict=True)]
    )


def joined_sizes(sources: Sequence[Source]) -> NDArray[np.int64] | None:
    """The sizes of the files of several sources; None unless all know them."""
    found = [source.sizes for source in sources if source.sizes is not None]
    return np.concatenate(found) if len(found) == len(sources) else None


def joined_groups(sources: Sequence[Source]) -> NDArray[np.int64] | None:
    """The groups of several sources, whose originals differ; None unless all have groups."""
    tables, first = list[NDArray[np.int64]](), 0
    for source in sources:
        if source.groups is None:
            return None
        tables.append(source.groups + first)
        first += int(source.groups.max()) + 1
    return np.concatenate(tables)


def archive_fingerprints(archive: Archive, members: Sequence[int], labels: Sequence[str | None] = ()) -> tuple[str, str]:
    """The fingerprint of files, and the one of earlier versions.

    Args:
        archive: The files.
        members: Indices of the files.
        labels: Labels of the images, if they do not follow from the names.
    """
    digest = hashlib.sha256()
    for index in members:
        digest.update(f"{archive.names[index]}\0{archive.sizes[index]}\n".encode("utf-8", "surrogateescape"))
    listing = digest.hexdigest()
    retries = Retries()
    with ThreadPoolExecutor(16, thread_name_prefix="fingerprint") as pool:
        contents = pool.map(lambda index: _content(archive, index, retries), evenly_spaced(members, SAMPLED_FILES))
        return version_2(listing, *contents, *map(str, labels)), listing


def evenly_spaced(members: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the members, evenly spaced, with the first and the last."""
    last = len(members) - 1
    return list(members) if last < count else [members[i * last // (count - 1)] for i in range(count)]


def version_2(*parts: str) -> str:
    """The SHA-256 of some strings, with a mark by which run folders tell the formula of this version from earlier ones."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return f"2:{digest.hexdigest()}"


def _content(archive: Archive, index: int, retries: Retries) -> str:
    try:
        return hashlib.sha256(retries(partial(archive.read, index, SAMPLED_BYTES))).hexdigest()
    except (OSError, Unreadable):
        return "cannot be read"
