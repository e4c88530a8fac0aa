"""Patches against loops over pixels, and the patch embedding against a convolution."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.blocks.patches import PatchEmbed, gather, grid_size, patchify, scatter, unpatchify
from unveil.errors import UnveilError

SHAPES = [  # channels, image, patch
    (3, (8, 8), (4, 4)),
    (1, (4, 6), (2, 2)),
    (5, (6, 12), (3, 4)),
    (2, (6, 4), (2, 4)),
    (4, (5, 3), (1, 1)),
    (3, (4, 4), (4, 4)),
]


def slowly(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cuts patches one value at a time: in a patch the order is (row, column, channel)."""
    b, c, h, w = images.shape
    all_patches = []
    for image in range(b):
        patches = []
        for top in range(0, h, patch[0]):
            for left in range(0, w, patch[1]):
                values = []
                for row in range(patch[0]):
                    for column in range(patch[1]):
                        values += [float(images[image, channel, top + row, left + column]) for channel in range(c)]
                patches.append(values)
        all_patches.append(patches)
    return torch.tensor(all_patches)


@pytest.mark.parametrize(("channels", "image", "patch"), SHAPES)
def test_order_and_inverse(channels, image, patch):
    images = torch.arange(2.0 * channels * image[0] * image[1]).reshape(2, channels, *image)
    patches = patchify(images, patch)
    assert torch.equal(patches, slowly(images, patch))
    assert torch.equal(unpatchify(patches, image, patch), images)
    assert patches.shape[1] == grid_size(image, patch)[0] * grid_size(image, patch)[1]


def test_patchify_passes_gradients():
    images = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpatchify(patchify(x, (2, 3)) ** 2, (4, 6), (2, 3)), images)


def test_gather_and_scatter():
    tokens, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 3]])
    picked = gather(tokens, index)
    for b in range(2):
        for v in range(2):
            assert torch.equal(picked[b, v], tokens[b, index[b, v]])
    new = torch.randn(2, 2, 3)
    before = tokens.clone()
    filled = scatter(tokens, index, new)
    assert torch.equal(tokens, before)  # a copy
    for b in range(2):
        for n in range(5):
            turn = index[b].tolist().index(n) if n in index[b].tolist() else None
            assert torch.equal(filled[b, n], tokens[b, n] if turn is None else new[b, turn])
    assert scatter(tokens.bfloat16(), index, new).dtype == torch.bfloat16


@pytest.mark.parametrize(("channels", "image", "patch"), SHAPES)
def test_embedding_equals_a_convolution(channels, image, patch):
    torch.manual_seed(0)
    embed, images = PatchEmbed(patch, channels, 7), torch.randn(2, channels, *image)
    weight = embed.weight.detach().unflatten(1, (*patch, channels)).permute(0, 3, 1, 2)  # (D, C, p, q)
    true = F.conv2d(images, weight, embed.bias, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), true, rtol=1e-5, atol=1e-5)
    assert torch.equal(PatchEmbed.from_convolution(weight), embed.weight)
    keep = torch.tensor([[0], [true.shape[1] - 1]])
    torch.testing.assert_close(embed(images, keep), gather(true, keep), rtol=1e-5, atol=1e-5)


def test_hidden_patches_are_never_touched():
    torch.manual_seed(0)
    embed, images = PatchEmbed((2, 4), 3, 6), torch.randn(2, 3, 4, 8)
    keep = torch.tensor([[2, 0], [1, 2]])
    expected = embed(images, keep)
    for b, hidden in enumerate([[1, 3], [0, 3]]):
        for n in hidden:
            top, left = n // 2 * 2, n % 2 * 4
            images[b, :, top : top + 2, left : left + 4] = float("nan")
    assert images.isnan().float().mean() == 0.5
    found = embed(images, keep)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert embed.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("image", "patch", "sentence"),
    [
        ((225, 224), (16, 16), "image side 225 is not a multiple of patch 16: use 224 or 240, or another patch size"),
        ((224, 30), (16, 14), "image side 30 is not a multiple of patch 14: use 28 or 42, or another patch size"),
        ((8, 8), (16, 16), "image side 8 is not a multiple of patch 16: use 16 or 32, or another patch size"),
        ((8, 8), (0, 4), "image side 8 is not a multiple of patch 0"),
        ((8, 8), (4, -2), "image side 8 is not a multiple of patch -2"),
        ((0, 8), (4, 4), "image side 0 is not a multiple of patch 4"),
    ],
)
def test_sizes_that_do_not_fit(image, patch, sentence):
    with pytest.raises(UnveilError, match="^" + sentence):
        grid_size(image, patch)


def test_patchify_refuses_too():
    with pytest.raises(UnveilError, match="image side 9"):
        patchify(torch.zeros(1, 1, 9, 8), (4, 4))
