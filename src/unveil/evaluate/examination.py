"""What is wrong with a set of images: unreadable and blank files, duplicates, leaks between splits, odd sizes, rare classes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch

from unveil.data.inspect_images import Inspection, thumbnails
from unveil.data.pixels import LONGEST
from unveil.evaluate.near_duplicates import FIRST, Candidates, are_copies, candidates, once, verified
from unveil.plain_text import count_of

KINDS = {
    "leak": "images also in another split",
    "unreadable": "files that cannot be read",
    "conflicting labels": "copies with different labels",
    "suspicious label": "labels unlike the nearest images",
    "duplicate": "copies within a split",
    "blank": "blank or nearly constant images",
    "small": "images much smaller than the others",
    "long": f"images {LONGEST} times as long as wide",
    "channels": "images with unusual channels",
    "bit depth": "images with an unusual bit depth",
    "rare class": "classes with few training images",
    "class not in train": "classes without training images",
    "class not in test": "classes without test images",
    "no image": "other files",
}
"""The kinds of findings in words, the worst ones first."""
NO_IMAGE = "not an image, by its name"
"""The beginning of the reason why a file such as a text is not taken for an image; without it, the file looked like one."""
TRAINED_ON, TESTED_ON = ("train", "unlabeled"), ("val", "test")
RARE, RARE_SHARE = 5, 0.1
"""A class is rare with fewer images than this, or than this share of the median class."""


class Place(NamedTuple):
    """An image."""

    split: str
    row: int


class Finding(NamedTuple):
    """One thing that a user should know."""

    kind: str
    """A key of `KINDS`."""
    path: str
    """The image, or the class."""
    split: str
    """"" if DATA has no splits."""
    detail: str
    other: str = ""
    """The other image of a pair."""
    other_split: str = ""
    place: Place | None = None
    other_place: Place | None = None


@dataclass
class Examination:
    """The images of all splits, and what was found."""

    name: str
    parts: Mapping[str, Inspection]
    has_splits: bool
    findings: list[Finding] = field(default_factory=list)
    near: bool = True
    """Whether near duplicates were searched for."""
    agreement: float | None = None
    """The share of labels that the nearest images, by the features of a run, confirm; None if labels were not checked."""

    def __len__(self) -> int:
        return sum(len(part.source) for part in self.parts.values())

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, without those of which there are none."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def shown(self, split: str) -> str:
        """The split as findings name it."""
        return split if self.has_splits else ""

    def path(self, place: Place) -> str:
        return self.parts[place.split].source.names[place.row]

    def label(self, place: Place) -> str:
        """The class of an image; "" if it has none."""
        source = self.parts[place.split].source
        return "" if source.labels is None or source.labels[place.row] < 0 else source.classes[source.labels[place.row]]

    def add(self, kind: str, place: Place, detail: str, other: Place | None = None) -> None:
        pair = ("", "") if other is None else (self.path(other), self.shown(other.split))
        self.findings.append(Finding(kind, self.path(place), self.shown(place.split), detail, *pair, place, other))

    def add_pair(self, first: Place, second: Place, detail: str, seen: set[tuple[str, Place | None]]) -> None:
        """Adds two copies, and a conflict if their labels differ. Of a leak, the test image comes first.

        An image that was `seen` with a finding of the same kind gets no further one.
        """
        if first.split in TESTED_ON and second.split in TRAINED_ON:
            first, second = second, first
        labels = self.label(second), self.label(first)
        details = {"leak" if is_leak(first.split, second.split) else "duplicate": detail}
        if all(labels) and labels[0] != labels[1]:
            details["conflicting labels"] = f"{labels[0]} and {labels[1]}; {detail}"
        for kind, text in details.items():
            if (kind, second) not in seen:
                seen.add((kind, second))
                self.add(kind, second, text, first)


def is_leak(first: str, second: str) -> bool:
    """Whether an image must not be in both splits: one of them is tested on, and the other one is another split in use."""
    return first != second and {first, second} <= {*TRAINED_ON, *TESTED_ON} and bool({first, second} & set(TESTED_ON))


def find_faults(found: Examination) -> None:
    """Adds unreadable and blank images, and those of other sizes, channels and depths than the rest."""
    sizes = np.concatenate([part.size[part.readable] for part in found.parts.values()])
    median = float(np.median(sizes.min(axis=1))) if len(sizes) else 0.0
    usual = {
        "channels": most_common(part.channels[part.readable] for part in found.parts.values()),
        "bit depth": most_common(part.bits[part.readable] for part in found.parts.values()),
    }
    for split, part in found.parts.items():
        for path, reason in sorted(part.source.skipped.items()):
            kind = "no image" if reason.startswith(NO_IMAGE) else "unreadable"
            found.findings.append(Finding(kind, path, found.shown(split), reason))
        for row, reason in sorted(part.unreadable.items()):
            found.add("unreadable", Place(split, row), reason)
        for row in part.blank.nonzero()[0].tolist():
            found.add("blank", Place(split, row), "99 % of it has one brightness")
        for row in part.readable.nonzero()[0].tolist():
            height, width = part.size[row].tolist()
            if min(height, width) < median / 4:
                found.add("small", Place(split, row), f"{width} x {height} pixels; the median short side is {median:g}")
            if max(height, width) >= LONGEST * min(height, width):
                found.add("long", Place(split, row), f"{width} x {height} pixels; only the middle is used")
            if (own := int(part.channels[row])) != usual["channels"]:
                found.add("channels", Place(split, row), f"{count_of(own, 'channel')}; most images have {usual['channels']}")
            if (own := int(part.bits[row])) != usual["bit depth"]:
                found.add("bit depth", Place(split, row), f"{own} bits; most images have {usual['bit depth']}")


def most_common(values: Iterator[np.ndarray]) -> int:
    counts = Counter(np.concatenate(list(values)).tolist())
    return int(counts.most_common(1)[0][0]) if counts else 0


def class_counts(found: Examination) -> dict[str, dict[str, int]]:
    """How many images each class has in each split that has labels; classes in the order of the train split."""
    table: dict[str, dict[str, int]] = {}
    labelled = {split: part.source for split, part in found.parts.items() if part.source.is_labelled}
    for source in labelled.values():
        for name in source.classes:
            table.setdefault(name, dict.fromkeys(labelled, 0))
    for split, source in labelled.items():
        assert source.labels is not None
        for label, count in zip(*np.unique(source.labels[source.labels >= 0], return_counts=True), strict=True):
            table[source.classes[label]][split] += int(count)
    return table


def find_classes(found: Examination) -> None:
    """Adds classes with few or no images in a split."""
    table = class_counts(found)
    labelled = list(next(iter(table.values()), {}))
    if "train" not in labelled:
        return
    median = float(np.median([counts["train"] for counts in table.values() if counts["train"]] or [0]))
    for name, counts in table.items():
        elsewhere = {split: count for split, count in counts.items() if split != "train" and count}
        if not counts["train"] and elsewhere:
            detail = " and ".join(f"{count_of(count, 'image')} in {split}" for split, count in elsewhere.items())
            found.findings.append(Finding("class not in train", name, found.shown("train"), f"{detail}, none in train"))
        elif 0 < counts["train"] < max(RARE, RARE_SHARE * median):
            detail = f"{count_of(counts['train'], 'image')} in train; the median class has {median:g}"
            found.findings.append(Finding("rare class", name, found.shown("train"), detail))
        found.findings += [
            Finding("class not in test", name, split, f"none of {count_of(counts['train'], 'image')} is in {split}")
            for split in TESTED_ON
            if split in counts and counts["train"] and not counts[split]
        ]


def find_exact(found: Examination) -> list[Place]:
    """Adds images with the same pixels. Returns one image of each content in each split, which near duplicates are sought among."""
    groups: dict[bytes, list[Place]] = defaultdict(list)
    for split, part in found.parts.items():
        for row, digest in enumerate(part.pixel_digest):
            if digest:
                groups[digest].append(Place(split, row))
    seen: set[tuple[str, Place | None]] = set()
    for first, *rest in groups.values():
        for place in rest:
            file, other = (found.parts[each.split].file_digest[each.row] for each in (place, first))
            found.add_pair(first, place, "same file" if file and file == other else "same pixels", seen)
    return [
        place
        for group in groups.values()
        for place in {place.split: place for place in reversed(group)}.values()
        if not found.parts[place.split].blank[place.row]
    ]


def find_near(
    found: Examination, places: list[Place], *, max_pixels: int, progress: Callable[[int, int], None] = lambda done, of: None
) -> None:
    """Adds near duplicates among some images: see `unveil.evaluate.near_duplicates`."""
    splits = list(found.parts)
    rows = {split: np.array([i for i, place in enumerate(places) if place.split == split], np.int64) for split in splits}
    small = torch.from_numpy(np.concatenate([found.parts[split].small[[places[i].row for i in rows[split]]] for split in splits]))
    of = torch.from_numpy(np.concatenate([rows[split] for split in splits]))  # the place of each row of `small`
    starts = np.cumsum([0, *(len(rows[split]) for split in splits)]).tolist()
    spans = [slice(starts[i], starts[i + 1]) for i in range(len(splits)) if starts[i] < starts[i + 1]]
    total, done, pairs = len(spans) * len(small), 0, list[Candidates]()
    for one, two in combinations_with_replacement(spans, 2):
        directions = [(one, two)] if one == two else [(one, two), (two, one)]
        for first, second in directions:
            near = candidates(
                small[first], small[second], same=one == two, progress=lambda count, of, done=done: progress(done + count, total)
            )
            done += first.stop - first.start
            pairs.append(near._replace(first=near.first + first.start, second=near.second + second.start))
    if not pairs:
        return
    near = once(Candidates(*(torch.cat(each) for each in zip(*pairs, strict=True))))
    digests = [found.parts[place.split].pixel_digest[place.row] for place in places]
    differ = torch.tensor(
        [digests[i] != digests[j] for i, j in zip(of[near.first].tolist(), of[near.second].tolist(), strict=True)]
    )
    near = Candidates(*(each[differ.bool()] for each in near)) if len(differ) else near
    agreed, boxes = verified(near, small[near.first], small[near.second])
    kept = agreed.mean > FIRST
    near, boxes = Candidates(*(each[kept] for each in near)), boxes[kept]
    copies: list[tuple[float, Place, Place, bool]] = []
    for part in torch.arange(len(near.first)).split(4096) if len(near.first) else ():
        some = Candidates(*(each[part] for each in near))
        first, second = ([places[i] for i in of[side].tolist()] for side in (some.first, some.second))
        views = [torch.stack(list(_views(found, side, max_pixels))) for side in (first, second)]
        agreed, _ = verified(some, views[0], views[1], boxes[part])
        for index in are_copies(agreed).nonzero()[:, 0].tolist():
            one, two = sorted((first[index], second[index]), key=lambda place: (splits.index(place.split), place.row))
            copies.append((float(agreed.mean[index]), one, two, bool(some.mirrored[index])))
    add_best(found, copies)


def add_best(found: Examination, copies: list[tuple[float, Place, Place, bool]]) -> None:
    """Adds near copies. Of several copies of one image, only the best one is named, and the best one with another label."""
    seen = {(each.kind, each.place) for each in found.findings}
    for agreed, first, second, mirrored in sorted(copies, key=lambda copy: -copy[0]):
        detail = f"near copy{', mirrored' if mirrored else ''}, agreement {agreed:.2f}"
        found.add_pair(first, second, detail, seen)


def _views(found: Examination, places: list[Place], max_pixels: int) -> Iterator[torch.Tensor]:
    """The thumbnails of some images, in their order."""
    views: dict[Place, torch.Tensor] = {}
    for split, part in found.parts.items():
        wanted = sorted({place.row for place in places if place.split == split})
        for row, view in zip(wanted, thumbnails(part.source, wanted, max_pixels=max_pixels), strict=True):
            views[Place(split, row)] = torch.from_numpy(view)
    return (views[place] for place in places)
