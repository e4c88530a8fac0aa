"""Crops of images and their maps for segmentation: together, over the edge, and varied; and colours that are distorted."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.pixels import IGNORE
from unveil.data.resize import crop_resize
from unveil.data.segment_augment import (
    GRID,
    MAX_SHARE,
    TRIES,
    SegmentAugment,
    hue_rotation,
    inside,
    is_varied,
    photometric_distortion,
)
from unveil.data.targets import Geometry, PixelTargets
from unveil.errors import UnveilError

ZERO, ONE = (0.0,) * 3, (1.0,) * 3
CONFIG = AugmentConfig(crop_scale=0.25)


def batch(count: int = 6, height: int = 40, width: int = 56) -> Batch:
    """Images whose brightness says the class of each pixel: 0 is 40, 1 is 100, 2 is 160, 3 is 220."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 4, (count, height // 8, width // 8), generator=generator)
    maps = coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    images = (40 + 60 * maps)[:, None].expand(-1, 3, -1, -1).to(torch.uint8).contiguous()
    sizes = torch.tensor([[height, width]] * count)
    if count > 1:
        sizes[1] = torch.tensor([height - 8, width - 16])
        maps[1, height - 8 :], maps[1, :, width - 16 :] = IGNORE, IGNORE
    return Batch(images, sizes, sample_keys(0, 0, count), PixelTargets(maps))


@pytest.mark.parametrize("crop", ["resized", "fixed", "none"])
@pytest.mark.parametrize("own_pixels", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (72, 64)])
def test_maps_follow_their_images(crop: str, own_pixels: bool, size: tuple[int, int]) -> None:
    augment = SegmentAugment(AugmentConfig(crop=crop, crop_scale=0.25), size, ZERO, ONE, own_pixels=own_pixels)
    found = augment(batch())
    assert found.images.shape == (6, 3, *size)
    maps = found.targets.maps
    assert maps.shape == (6, *size)
    near = ((found.images[:, 0] * 255 - 40) / 60).round()
    known = maps != IGNORE
    assert known.float().mean() > 0.2
    assert (near == maps)[known].float().mean() > 0.7  # a pixel at an edge between classes is a mixture
    assert bool((found.images.permute(0, 2, 3, 1)[~known] == 0).all())  # what lies outside is zero, and has no class


def test_what_is_outside_is_zero_after_the_normalisation() -> None:
    augment = SegmentAugment(AugmentConfig(crop="fixed", flip=False), (64, 64), (0.4, 0.5, 0.6), (0.2,) * 3, own_pixels=True)
    found = augment(batch())
    assert bool((found.images[:, :, 40:] == 0).all())
    assert bool((found.targets.maps[:, 40:] == IGNORE).all())
    wanted = (batch().images[0].float() / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.2
    assert torch.allclose(found.images[0, :, :40, :56], wanted, atol=1e-5)


def test_crops_depend_on_the_sample_alone() -> None:
    augment = SegmentAugment(AugmentConfig(crop_scale=0.25, color_jitter=0.5), (32, 32), ZERO, ONE, own_pixels=False)
    whole, part = augment(batch()), augment(Batch(*(each[2:5] for each in batch()[:3]), PixelTargets(batch().targets.maps[2:5])))
    assert torch.equal(whole.images[2:5], part.images)
    assert torch.equal(whole.targets.maps[2:5], part.targets.maps)


def test_the_size_of_crops_is_that_of_the_recipe() -> None:
    augment = SegmentAugment(CONFIG, (64, 64), ZERO, ONE, own_pixels=False)
    sizes, keys = torch.tensor([[480, 640]] * 4000), sample_keys(0, 0, 4000)
    boxes = augment.draw(sizes, keys).boxes
    factor = 64 / boxes[:, 2] * 480 / 64  # of the short side, which is first resized to 64
    assert 0.49 < float(factor.min()) < 0.52
    assert 1.97 < float(factor.max()) <= 2.03
    assert float(factor.mean()) == pytest.approx(1.25, abs=0.03)
    small, large = boxes[:, 2] <= 480, boxes[:, 2] > 480
    assert bool((boxes[small, 0] + boxes[small, 2] <= 480).all())
    assert bool((boxes[large, 0] == 0).all())  # padded at the bottom, as in the recipe
    panorama = augment.draw(torch.tensor([[100, 1600]]), keys[:1]).boxes  # at most four times as long as the crop
    assert float(panorama[0, 3]) == pytest.approx(64 / (float(factor[0]) * 256 / 1600), abs=3)


def test_a_crop_that_one_class_fills_is_drawn_again() -> None:
    maps = torch.zeros(60, 96, 96, dtype=torch.int64)
    maps[:, :20, :20] = 1
    maps[:, 90:] = IGNORE
    images = torch.zeros(60, 3, 96, 96, dtype=torch.uint8)
    given = Batch(images, torch.tensor([[96, 96]] * 60), sample_keys(0, 0, 60), PixelTargets(maps))
    augment = SegmentAugment(CONFIG, (32, 32), ZERO, ONE, own_pixels=True)
    geometry = augment.varied(given.sizes, given.keys, given.targets)
    redrawn = 0
    for i in range(60):  # the slow way
        for attempt in range(TRIES):
            each = augment.draw(given.sizes[i : i + 1], given.keys[i : i + 1], attempt)
            crop = PixelTargets(maps[i : i + 1]).transformed(Geometry(each.boxes, (GRID, GRID))).maps
            values, counts = crop[crop != IGNORE].unique(return_counts=True)
            if len(values) > 1 and counts.max() < MAX_SHARE * counts.sum():
                break
        redrawn += attempt > 0
        assert torch.equal(geometry.boxes[i], each.boxes[0])
    assert redrawn > 15
    varied = is_varied(given.targets.transformed(geometry).maps).float().mean()
    assert varied > 2 * is_varied(given.targets.transformed(augment.draw(given.sizes, given.keys)).maps).float().mean()


def test_what_lies_inside() -> None:
    geometry = Geometry(torch.tensor([[-2.0, 3.0, 8.0, 8.0]]), (4, 4), torch.tensor([True]))
    found = inside(geometry, torch.tensor([[5, 8]]))
    assert found[0].tolist() == [[False] * 4, [False, False, True, True], [False, False, True, True], [False] * 4]


def test_photometric_distortion_is_that_of_the_recipe() -> None:
    keys = sample_keys(0, 0, 4000)
    grey = torch.full((4000, 3, 1, 1), 0.5)
    found = photometric_distortion(grey, keys, 0.5)[:, :, 0, 0]
    assert torch.allclose(found[:, 0], found[:, 2], atol=1e-5)  # grey stays grey
    assert 0.18 < found.min() < 0.25  # (0.5 - 0.125) * 0.5
    assert found.max() > 0.9
    same = (found[:, 0] - 0.5).abs() < 1e-5
    assert float(same.float().mean()) == pytest.approx(0.25, abs=0.03)  # neither brightness nor contrast
    one = photometric_distortion(torch.rand(4, 1, 3, 3), keys[:4], 0.5)
    assert one.shape == (4, 1, 3, 3)
    dark = torch.full((2, 3, 2, 2), 100, dtype=torch.uint8)
    assert torch.allclose(photometric_distortion(dark, keys[:2], 0.0), dark / 255, atol=1e-6)


def test_the_hue_turns_around_the_axis_of_greys() -> None:
    colour = torch.tensor([0.6, 0.4, 0.45])
    turned = hue_rotation(torch.tensor([0.3]))[0] @ colour
    first, second = (colorsys.rgb_to_yiq(*each.tolist()) for each in (colour, turned))
    assert first[0] == pytest.approx(second[0], abs=0.01)
    angles = [np.arctan2(each[2], each[1]) for each in (first, second)]
    assert angles[1] - angles[0] == pytest.approx(0.3, abs=0.02)
    assert np.hypot(*first[1:]) == pytest.approx(np.hypot(*second[1:]), abs=0.01)


def test_a_crop_equals_pillow() -> None:
    given = batch(1, 80, 80)
    augment = SegmentAugment(AugmentConfig(crop="resized", crop_scale=0.25, flip=False), (64, 64), ZERO, ONE, own_pixels=False)
    found = augment(given)
    top, left, height, width = augment.varied(given.sizes, given.keys, given.targets).boxes[0].int().tolist()
    assert top + height <= 80
    image = Image.fromarray(given.images[0].permute(1, 2, 0).numpy())
    wanted = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC, (left, top, left + width, top + height)))
    assert np.abs(found.images[0].permute(1, 2, 0).numpy() * 255 - wanted).mean() < 1


def test_a_crop_for_probes_is_refused() -> None:
    with pytest.raises(UnveilError, match="crop clipped is for linear probes"):
        SegmentAugment(AugmentConfig(crop="clipped"), (8, 8), ZERO, ONE, own_pixels=False)


@pytest.mark.parametrize("crop", ["resized", "fixed", "none"])
@pytest.mark.parametrize("own_pixels", [False, True])
@pytest.mark.parametrize(("size", "image_size"), [((100, 100), 128), ((256, 180), 64)])
def test_the_filter_is_never_cut_off(crop: str, own_pixels: bool, size: tuple[int, int], image_size: int) -> None:
    """Whatever the factor is, all pixels under the filter count, also if the box is longer than the canvas."""
    images = torch.randint(0, 256, (40, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = torch.randint(0, 4, (40, *size), generator=torch.Generator().manual_seed(1))
    given = Batch(images, torch.tensor([size] * 40), sample_keys(0, 0, 40), PixelTargets(maps))
    config = AugmentConfig(crop=crop, crop_scale=0.25)
    augment = SegmentAugment(config, (image_size, image_size), ZERO, ONE, own_pixels=own_pixels)
    geometry = augment.varied(given.sizes, given.keys, given.targets)
    wanted = crop_resize(images, geometry.boxes, given.sizes, geometry.size, geometry.flip, max_shrink=50.0)
    assert torch.allclose(augment(given).images, wanted, atol=1e-6)
