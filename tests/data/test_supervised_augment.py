"""Augmentation with labels: mixed classes, and global generators that are left as they were."""

import random

import numpy as np
import pytest
import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets, PixelTargets
from unveil.errors import UnveilError


def batch(count: int = 8, dtype: torch.dtype = torch.uint8, channels: int = 3) -> Batch:
    images = torch.randint(0, 256, (count, channels, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return Batch(
        images.to(dtype), torch.tensor([[20, 24]] * count), sample_keys(0, 0, count), ClassTargets(torch.arange(count) % 3)
    )


def augment(channels: int = 3, **options: float) -> SupervisedAugment:
    half = (0.5,) * channels
    return SupervisedAugment(RegularisationConfig(**options), AugmentConfig(), 3, (16, 16), half, half)


def test_mixing_makes_shares_of_classes() -> None:
    np.random.seed(0)
    mixed = augment(randaugment=0)(batch())
    assert isinstance(mixed.targets, ClassTargets)
    assert mixed.targets.labels.shape == (8, 3)
    torch.testing.assert_close(mixed.targets.labels.sum(1), torch.ones(8))
    plain = augment(mixup=0, cutmix=0, erasing=0)(batch())
    assert plain.targets.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(UnveilError, match="need an even batch, found 7 images"):
        augment()(batch(7))
    with pytest.raises(UnveilError, match="use --randaugment 0 --mixup 0 --cutmix 0"):
        augment(randaugment=0)(batch()._replace(targets=PixelTargets(torch.zeros(8, 20, 24, dtype=torch.int64))))


def test_the_seeds_of_randaugment_do_not_leak() -> None:
    random.seed(5)
    np.random.seed(6)
    python, numpy = random.getstate(), np.random.get_state()
    first = augment()(batch())
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True))
    random.seed(99)
    np.random.seed(99)
    again = augment(erasing=0)(batch())  # random erasing draws its noise from torch
    assert torch.equal(augment(erasing=0)(batch()).images, again.images)
    assert torch.equal(first.targets.labels, augment()(batch()).targets.labels)


def test_mixing_goes_on_from_the_last_seed_as_it_did() -> None:
    """What commit d98af96 computed: RandAugment image by image with its own seeds, then mixing with what the last one left."""
    ours = augment(erasing=0)
    found = ours(batch())
    cropped = ours.crop(batch())
    pixels = (cropped.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = []
    for x, key in zip(pixels, cropped.keys.tolist(), strict=True):
        changed.append(ours.randaugment(x, key))
    images = (torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    images, labels = ours.mix(images, batch().targets.labels)
    torch.testing.assert_close(found.images, images)
    assert torch.equal(found.targets.labels, labels)


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.uint8), (3, torch.uint16)])
def test_without_randaugment_the_generators_of_the_step_go_on(channels: int, dtype: torch.dtype) -> None:
    """Two microbatches of a step must not be mixed alike."""
    ours, samples = augment(channels), batch(dtype=dtype, channels=channels)
    np.random.seed(0)
    first, second = ours(samples).targets.labels, ours(samples).targets.labels
    assert not torch.equal(first, second)
