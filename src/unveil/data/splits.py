"""Subsets of a dataset: held-out samples, labelled samples, a few samples of each class."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.collate import label_targets
from unveil.data.dataset import ImageDataset
from unveil.data.shuffle import shuffled
from unveil.data.targets import ClassTargets, Targets
from unveil.errors import UnveilError


@dataclass(frozen=True)
class Subset:
    """Some images of a dataset. The choice is among all images, so it does not depend on which of them can be read."""

    dataset: ImageDataset
    indices: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each image; -1 if it has none."""
        return self.dataset.labels[self.indices]

    @property
    def targets(self) -> Targets:
        """The labels of the images, for a task: of any kind but maps."""
        found = label_targets(self.dataset.source, self.indices)
        return ClassTargets(self.labels) if found is None else found

    @property
    def names(self) -> list[str]:
        names = self.dataset.names
        return [names[i] for i in self.indices.tolist()]

    @property
    def groups(self) -> Int[Tensor, " n"] | None:
        """The number of the original of each image; None if all originals differ. See `Source.groups`."""
        groups = self.dataset.source.groups
        return None if groups is None else torch.from_numpy(groups)[self.indices]

    @property
    def unreadable(self) -> int:
        """The number of images that cannot be read. If images are read on demand, these are the ones that were noticed so far."""
        found = torch.tensor(sorted(index for index, _ in self.dataset.faults()), dtype=torch.int64)
        return int(torch.isin(self.indices, found).sum())

    def spread_out(self, count: int) -> "Subset":
        """Up to `count` images, evenly spaced."""
        return Subset(self.dataset, self.indices[torch.linspace(0, len(self) - 1, min(count, len(self))).long()])

    def at_random(self, count: int, seed: int) -> "Subset":
        """A random choice of `count` images. Raises `UnveilError` if there are fewer."""
        check_count(count, len(self))
        order = shuffled(seed, torch.arange(len(self)), len(self))
        return Subset(self.dataset, self.indices[order[:count].sort().values])

    def labelled(self, max_count: int | None = None) -> "Subset":
        """The images that have a label, or a random choice of `max_count` of them, which is always the same."""
        indices = self.indices[self.dataset.has_label[self.indices]]
        if max_count is not None and len(indices) > max_count:
            indices = indices[shuffled(1, torch.arange(max_count), len(indices))]
        return Subset(self.dataset, indices)


def held_out_split(
    total: int, count: int, groups: Int[Tensor, " total"] | None = None
) -> tuple[Int[Tensor, " t"], Int[Tensor, " c"]]:
    """Indices to train on, and `count` indices to hold out, both in ascending order. They are the same in every run.

    With groups, whole groups are held out, up to `count` images.
    """
    if groups is None:
        order = shuffled(0, torch.arange(total), total)
        return order[count:].sort().values, order[:count].sort().values
    members, sizes = groups.unique(return_counts=True)
    order = shuffled(0, torch.arange(len(members)), len(members))
    held = torch.isin(groups, members[order[sizes[order].cumsum(0) <= count]])
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def stratified_split(
    labels: Int[Tensor, " n"], share: float, seed: int, groups: Int[Tensor, " n"] | None = None
) -> tuple[Int[Tensor, " r"], Int[Tensor, " a"]]:
    """Indices that remain, and a share of them to keep aside, both in ascending order.

    The same share of every class is kept aside, to within one sample; of a class with fewer samples than 1 / (2 share), none. With
    groups, such as the crops of one photo, whole groups are kept aside, of all classes together.

    Args:
        labels: The class of each sample.
        share: The share of the samples to keep aside.
        seed: Draws them.
        groups: The number of the original of each sample.
    """
    if groups is not None:
        members, sizes = groups.unique(return_counts=True)
        order = shuffled(seed, torch.arange(len(members)), len(members))
        aside = torch.isin(groups, members[order[sizes[order].cumsum(0) <= share * len(labels)]])
        return (~aside).nonzero()[:, 0], aside.nonzero()[:, 0]
    order = shuffled(seed, torch.arange(len(labels)), len(labels))
    place = torch.empty(len(labels))
    for label in labels.unique():
        of_class = order[labels[order] == label]
        place[of_class] = (torch.arange(len(of_class)) + 0.5) / len(of_class)
    return (place >= share).nonzero()[:, 0], (place < share).nonzero()[:, 0]


def balanced_indices(labels: Int[Tensor, " n"], count: int, seed: int) -> Int[Tensor, " c"]:
    """Indices of `count` samples in ascending order, balanced over the classes as far as there are enough samples.

    The samples are shuffled, then sorted (stably) by the number of earlier samples of the same class. So the first sample of every
    class comes first, then the second of every class, and so on. If there are fewer than `count` samples, all are returned.
    """
    order = shuffled(seed, torch.arange(len(labels)), len(labels))
    rank = torch.empty_like(order)
    for label in torch.unique(labels):
        members = labels[order] == label
        rank[members] = torch.arange(int(members.sum()))
    return order[rank.argsort(stable=True)[:count]].sort().values


def few_labels(subset: Subset, count: int, seed: int, option: str = "--labels", noun: str = "labelled images") -> Subset:
    """`count` labelled images, balanced over the classes. Raises `UnveilError`, which names the option, if there are fewer."""
    subset = subset.labelled()
    check_count(count, len(subset), option, noun)
    return Subset(subset.dataset, subset.indices[balanced_indices(subset.labels, count, seed)])


def check_count(count: int, available: int, option: str = "--labels", noun: str = "labelled images") -> None:
    """Raises `UnveilError` unless `count` labelled images can be chosen from those that are available."""
    if not 0 < count <= available:
        raise UnveilError(f"{option} is {count}, but there are {available} {noun}: use 1 to {available}, or 0 for all")
