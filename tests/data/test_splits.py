"""Subsets: the same ones as ever, balanced, and without overlap."""

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.data.dataset import ImageDataset
from unveil.data.shuffle import shuffled
from unveil.data.sources import array_source
from unveil.data.splits import Subset, balanced_indices, few_labels, held_out_split, stratified_split
from unveil.errors import UnveilError


def earlier_images(labels: Tensor, count: int, seed: int) -> Tensor:
    """As commit d98af96 chose images (recipes/reading.py `few_labels`)."""
    order = shuffled(seed, torch.arange(len(labels)), len(labels))
    turn = torch.zeros(len(labels), dtype=torch.int64)
    for c in torch.unique(labels):
        members = order[labels[order] == c]
        turn[members] = torch.arange(len(members))
    return order[turn[order].argsort(stable=True)][:count].sort().values


def earlier_texts(labels: Tensor, count: int, seed: int) -> Tensor:
    """As commit d98af96 chose texts (recipes/classify.py `balanced`)."""
    order = shuffled(seed, torch.arange(len(labels)), len(labels))
    turn = torch.zeros(len(order), dtype=torch.int64)
    for kind in labels.unique():
        of_kind = labels[order] == kind
        turn[of_kind] = torch.arange(int(of_kind.sum()))
    return order[turn.argsort(stable=True)[:count]].sort().values


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("count", [1, 7, 20, 59, 60, 100])
def test_one_choice_for_images_and_texts_as_it_was(count: int, seed: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(seed).choice(4, 60, p=[0.6, 0.2, 0.15, 0.05]))
    indices = balanced_indices(labels, count, seed)
    assert torch.equal(indices, earlier_images(labels, count, seed))
    assert torch.equal(indices, earlier_texts(labels, count, seed))
    assert len(indices) == min(count, 60)
    counts, available = labels[indices].bincount(minlength=4), labels.bincount(minlength=4)
    assert bool(((counts >= counts.max() - 1) | (counts == available)).all())
    if 1 < count < 60:
        assert not torch.equal(indices, balanced_indices(labels, count, seed + 1))


def subset() -> Subset:
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    labels = np.array(["", "0", "1", "2"])[np.arange(40) % 4]  # every fourth has none
    return Subset(ImageDataset(array_source(images, labels), side=4), torch.arange(0, 40, 2))


def test_few_labels_of_images() -> None:
    few = few_labels(subset(), 6, seed=1)
    assert len(few) == 6
    assert bool((few.labels >= 0).all())
    assert set(few.indices.tolist()) <= set(subset().indices.tolist())
    for count in (0, 11):
        with pytest.raises(UnveilError, match=f"--labels is {count}, but there are 10 labelled images: use 1 to 10, or 0 for all"):
            few_labels(subset(), count, seed=1)


def test_subsets() -> None:
    whole = subset()
    assert len(whole) == 20
    assert whole.names[1] == "array/000002"
    assert whole.labels.tolist() == [-1, 1] * 10
    assert whole.spread_out(3).indices.tolist() == [0, 18, 38]
    assert whole.labelled().indices.tolist() == list(range(2, 40, 4))
    some = whole.labelled(4)
    assert len(set(some.indices.tolist())) == 4
    assert torch.equal(some.indices, whole.labelled(4).indices)
    assert len(whole.labelled(100)) == 10


def test_the_held_out_split_is_as_it_was() -> None:
    train, held_out = held_out_split(50, 7)
    order = shuffled(0, torch.arange(50), 50)
    assert torch.equal(train, order[7:].sort().values)
    assert torch.equal(held_out, order[:7].sort().values)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert len(held_out_split(5, 0)[1]) == 0


def test_the_same_share_of_every_class_is_kept_aside():
    labels = torch.tensor([0] * 100 + [1] * 30 + [2] * 7 + [3] * 4)[torch.randperm(141, generator=torch.Generator().manual_seed(0))]
    rest, aside = stratified_split(labels, 0.1, seed=3)
    assert torch.equal(torch.cat([rest, aside]).sort().values, torch.arange(141))
    assert labels[aside].bincount(minlength=4).tolist() == [10, 3, 1, 0]
    assert torch.equal(stratified_split(labels, 0.1, seed=3)[1], aside)
    assert not torch.equal(stratified_split(labels, 0.1, seed=4)[1], aside)
    assert len(stratified_split(labels, 0.0, seed=3)[1]) == 0


def test_crops_of_one_photo_are_kept_aside_together():
    groups = torch.arange(60) // 3
    rest, aside = stratified_split(torch.arange(60) % 2, 0.2, seed=0, groups=groups)
    assert len(aside) == 12
    assert not set(groups[rest].tolist()) & set(groups[aside].tolist())
