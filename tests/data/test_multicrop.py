"""Views against torchvision, image by image, with the same parameters."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig, adjust_color, to_grey
from unveil.data.batch import Batch
from unveil.data.multicrop import BLUR_SIGMA, MultiCrop, View, adjust_hue, byol_views, gaussian_blur, solarise, view_size
from unveil.errors import UnveilError

CONFIG = AugmentConfig(crop_scale=0.4, color_jitter=0.4)


@pytest.fixture
def images() -> Tensor:
    """Noise, with a grey one, a black one, a white one, and one of few colours (channels that are equal)."""
    images = torch.rand(12, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    images[0], images[1], images[2] = images[0, :1], 0.0, 1.0
    images[3] = (images[3] * 3).floor() / 2.999
    return images


def batch(count: int = 64, channels: int = 3, kind: torch.dtype = torch.uint8) -> Batch:
    full = 256 if kind == torch.uint8 else 65536
    images = torch.randint(0, full, (count, channels, 30, 34), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return Batch(images.to(kind), torch.tensor([[30, 34], [24, 20]]).repeat(count // 2, 1), sample_keys(0, 0, count))


def test_hue_turns_as_in_torchvision(images: Tensor) -> None:
    by = torch.linspace(-0.5, 0.5, len(images))
    for ours, x, turn in zip(adjust_hue(images, by), images, by.tolist(), strict=True):
        torch.testing.assert_close(ours, V.adjust_hue(x, turn), rtol=0, atol=2e-5)
    assert (adjust_hue(images, by) - images).abs().max() > 0.5


def test_brightness_contrast_and_saturation_change_as_in_torchvision(images: Tensor) -> None:
    factors = 0.6 + 0.8 * torch.rand(len(images), 3, generator=torch.Generator().manual_seed(1))
    for ours, x, (brightness, contrast, saturation) in zip(adjust_color(images, factors), images, factors.tolist(), strict=True):
        x = V.adjust_contrast(V.adjust_brightness(x, brightness), contrast)
        torch.testing.assert_close(ours, V.adjust_saturation(x, saturation), rtol=0, atol=5e-4)


def test_grey_and_solarised_are_those_of_torchvision(images: Tensor) -> None:
    torch.testing.assert_close(to_grey(images), V.rgb_to_grayscale(images), rtol=0, atol=5e-4)
    which = torch.arange(len(images)) % 2 == 0
    found = solarise(images, which)
    assert torch.equal(found[which], V.solarize(images[which], 0.5))
    assert torch.equal(found[~which], images[~which])


@pytest.mark.parametrize("most", [0.3, 1.0, 2.0])
def test_blur_is_that_of_torchvision(images: Tensor, most: float) -> None:
    sigma = torch.linspace(0.1, most, len(images))
    size = 2 * round(3 * most) + 1
    for ours, x, deviation in zip(gaussian_blur(images, sigma, most), images, sigma.tolist(), strict=True):
        torch.testing.assert_close(ours, V.gaussian_blur(x, [size, size], [deviation, deviation]), rtol=0, atol=1e-5)
    assert torch.equal(gaussian_blur(images, torch.zeros(len(images)), most), images)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16])
def test_views_of_any_kind_of_image(channels: int, kind: torch.dtype) -> None:
    half, size = (0.5,) * channels, (16, 12)
    views = MultiCrop(CONFIG, size, half, half)(batch(channels=channels, kind=kind), byol_views(size, 0.4))
    assert views.shape == (2, 64, channels, *size)
    assert views.abs().max() <= 1 + 1e-5  # normalised: 0 to 1 became -1 to 1
    assert (views[0] - views[1]).abs().mean() > 0.1
    assert views.std() > 0.2


def test_a_view_is_a_function_of_the_key_and_its_number() -> None:
    views, whole, size = MultiCrop(CONFIG, (16, 16), (0.5,) * 3, (0.5,) * 3), batch(), (16, 16)
    both = views(whole, byol_views(size, 0.4), first=3)
    part = Batch(whole.images[40:], whole.sizes[40:], whole.keys[40:])
    torch.testing.assert_close(views(part, byol_views(size, 0.4), first=3), both[:, 40:], rtol=0, atol=1e-5)
    torch.testing.assert_close(views(whole, byol_views(size, 0.4)[1:], first=4)[0], both[1], rtol=0, atol=1e-5)
    same = View(size=size, min_scale=0.4)
    drawn = views(whole, (same,) * 4)
    assert all((a - b).abs().mean() > 0.1 for a, b in pairwise(drawn))


def test_shares_are_as_asked_for() -> None:
    """Of 4,000 flat images, whose colours tell what was done to them, with four standard deviations of leeway."""
    colour = torch.tensor([200, 60, 100], dtype=torch.uint8)
    flat = Batch(colour[:, None, None].expand(4000, 3, 8, 8), torch.tensor([[8, 8]] * 4000), sample_keys(0, 0, 4000))
    view = View(size=(8, 8), min_scale=0.4, solarise_prob=0.3)
    for jitter, changed in ((0.0, 0.0), (0.4, 0.8)):
        views = MultiCrop(AugmentConfig(color_jitter=jitter), (8, 8), (0.0,) * 3, (1.0,) * 3)
        seen = views.draw(flat, view, 0)[:, :, 4, 4]
        greyed = seen.amax(1) - seen.amin(1) < 1e-3
        assert abs(greyed.float().mean() - 0.2) < 0.026
        if not jitter:
            assert abs((seen[~greyed][:, 0] < seen[~greyed][:, 2]).float().mean() - 0.3) < 0.033  # red became the darker
        untouched = (seen - colour / 255).abs().amax(1) < 1e-3
        assert abs(untouched.float().mean() - 0.8 * 0.7 * (1 - changed)) < 0.032


def test_small_views_show_small_parts() -> None:
    """A ramp from left to right: what a view spans of it is the width of its crop."""
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(500, 1, 64, 64)
    ramps = Batch(ramp, torch.tensor([[64, 64]] * 500), sample_keys(0, 0, 500))
    views = MultiCrop(AugmentConfig(), (16, 16), (0.0,), (1.0,))
    small = views.draw(ramps, View(size=(8, 8), min_scale=0.05, max_scale=0.4, blur_prob=0.0), 0)
    wide = (small.amax(3) - small.amin(3)).mean(dim=(1, 2)) * 255 / 4 * 8 / 7  # pixels of the image
    area = wide.square() / 64**2
    assert area.quantile(0.02) > 0.02
    assert area.quantile(0.98) < 0.4 * 4 / 3 * 1.1
    assert 0.15 < area.mean() < 0.3


def test_sizes_of_small_views_are_whole_patches() -> None:
    assert view_size((224, 224), (16, 16)) == (96, 96)
    assert view_size((32, 32), (4, 4)) == (12, 12)
    assert view_size((16, 24), (4, 4)) == (8, 12)
    assert view_size((4, 8), (4, 4)) == (4, 8)


def test_blur_is_in_proportion_to_the_image() -> None:
    assert MultiCrop(CONFIG, (224, 224), (0.5,), (0.5,)).sigma == BLUR_SIGMA
    assert MultiCrop(CONFIG, (56, 56), (0.5,), (0.5,)).sigma == pytest.approx((0.025, 0.5))


def test_views_without_random_crops_are_refused() -> None:
    with pytest.raises(UnveilError, match="crop is 'none': use --crop resized"):
        MultiCrop(AugmentConfig(crop="none"), (8, 8), (0.5,), (0.5,))
