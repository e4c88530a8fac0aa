"""Patch embeddings of other sizes and channels: equal to timm's functions, and to what they promise."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from unveil.blocks.patch_resize import change_channels, resize_patches
from unveil.blocks.patches import Size


def kernel(size: Size = (16, 16), channels: int = 3) -> Tensor:
    return torch.randn(24, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("old", "new"),
    [((16, 16), (8, 8)), ((16, 16), (32, 32)), ((14, 14), (16, 16)), ((8, 8), (6, 12)), ((6, 10), (7, 5)), ((2, 2), (6, 6))],
)
def test_patches_of_another_size_are_those_of_timm(old: Size, new: Size) -> None:
    found, expected = resize_patches(kernel(old), new), resample_patch_embed(kernel(old), list(new))
    assert found.shape == expected.shape == (24, 3, *new)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_enlarged_patch_is_embedded_as_before() -> None:
    """What the pseudo-inverse is for (FlexiViT, section 3.4): it holds exactly where no pixel is lost."""
    weight, patch = kernel((8, 8)), torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    larger = F.interpolate(patch, (12, 16), mode="bicubic", antialias=True)
    before, after = F.conv2d(patch, weight), F.conv2d(larger, resize_patches(weight, (12, 16)))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    naive = F.interpolate(weight, (12, 16), mode="bicubic", antialias=True)
    assert (F.conv2d(larger, naive) - before).abs().max() > 1  # a plain resize of the weight is not enough


def test_the_same_size_is_the_same_tensor() -> None:
    weight = kernel()
    assert resize_patches(weight, (16, 16)) is weight
    assert change_channels(weight, 3) is weight


@pytest.mark.parametrize("channels", [1, 2, 4, 7, 12])
def test_other_channels_are_those_of_timm(channels: int) -> None:
    expected = adapt_input_conv(channels, kernel())
    assert torch.equal(change_channels(kernel(), channels), expected)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (4, 3), (12, 4), (2, 5), (6, 1)])
def test_weights_of_any_number_of_channels(old: int, new: int) -> None:
    """By hand: channel i has the weights of channel i mod old, times old / new; one channel has their sum."""
    weight, found = kernel(channels=old), change_channels(kernel(channels=old), new)
    for i in range(new):
        expected = sum(weight[:, j] for j in range(old)) if new == 1 else weight[:, i % old] * old / new
        torch.testing.assert_close(found[:, i], expected)


def test_half_precision_stays_half() -> None:
    assert change_channels(resize_patches(kernel().bfloat16(), (8, 8)), 4).dtype == torch.bfloat16
