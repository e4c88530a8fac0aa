"""Targets against loops over patches, and PCA against scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from unveil.blocks.patches import patchify
from unveil.blocks.targets import NormalisedTarget, PCATarget, PixelTarget, TokenTarget
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.errors import UnveilError

PATCH, CHANNELS = (2, 4), 3
HIDE = torch.tensor([[3, 0, 2], [1, 2, 5]])


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, CHANNELS, 4, 12, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def patch_values(image: torch.Tensor, n: int) -> list[float]:
    top, left = n // 3 * 2, n % 3 * 4
    return [float(image[c, top + i, left + j]) for i in range(2) for j in range(4) for c in range(CHANNELS)]


def test_pixel_target():
    target, x = PixelTarget(PATCH, CHANNELS), images()
    assert target.size == 24
    found = target(x, HIDE)
    for b in range(2):
        for m in range(3):
            assert found[b, m].tolist() == patch_values(x[b], int(HIDE[b, m]))
    assert target.pixels(found, found) is found


def test_normalised_target_equals_loops():
    target, x = NormalisedTarget(PATCH, CHANNELS), images()
    x[0, :, 0:2, 8:12] = 0.7  # patch 2 is flat
    found = target(x, HIDE)
    for b in range(2):
        for m in range(3):
            values = patch_values(x[b], int(HIDE[b, m]))
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            expected = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
            assert found[b, m].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[0, 2].abs().max() < 1e-3  # finite where the patch is flat


def test_the_small_number_is_added_to_the_variance():
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = 2e-3  # unbiased variance 1e-6
    found = NormalisedTarget((2, 2), 1)(x, torch.tensor([[0]]))
    assert float(found[0, 0, 0]) == pytest.approx(1.5e-3 / math.sqrt(2e-6), rel=1e-4)


def test_normalised_pixels_invert():
    target, x = NormalisedTarget(PATCH, CHANNELS), images()
    true = patchify(x, PATCH)
    index = torch.arange(6).expand(2, 6)
    torch.testing.assert_close(target.pixels(target(x, index), true), true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [PixelTarget, NormalisedTarget])
def test_loss_is_the_mean_squared_error(kind):
    target = kind(PATCH, CHANNELS)
    wanted = target(images(), HIDE)
    predicted = torch.randn_like(wanted)
    errors = [(float(a) - float(b)) ** 2 for a, b in zip(predicted.flatten(), wanted.flatten(), strict=True)]
    assert float(target.loss(predicted, wanted)) == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert target.loss(predicted.bfloat16(), wanted).dtype == torch.float32


def test_pca_equals_sklearn():
    target, sample = PCATarget(PATCH, CHANNELS, coefficients=5), images(60)
    sample[:, 0] += 3 * sample[:, 1]  # some directions stand out
    assert target.size == 5
    target.prepare(sample)
    patches = patchify(sample, PATCH).flatten(0, 1).double().numpy()
    peer = PCA(5, svd_solver="full").fit(patches)
    np.testing.assert_allclose(target.centre.numpy(), patches.mean(axis=0), atol=1e-5)
    for i in range(5):
        ours, theirs = target.axes[:, i].numpy(), peer.components_[i]
        sign = np.sign(ours @ theirs)
        np.testing.assert_allclose(ours, sign * theirs, atol=1e-3)
        assert ours[np.abs(ours).argmax()] > 0
        coefficients = target(sample[:2], torch.arange(6).expand(2, 6))[..., i].flatten().numpy()
        np.testing.assert_allclose(coefficients, sign * peer.transform(patches[:12])[:, i], atol=1e-2)
    rebuilt = target.pixels(target(sample[:2], HIDE), torch.zeros(2, 3, 24))
    true = peer.inverse_transform(peer.transform(np.stack([patches[b * 6 + int(n)] for b in range(2) for n in HIDE[b]])))
    np.testing.assert_allclose(rebuilt.flatten(0, 1).numpy(), true, atol=1e-2)


def test_all_coefficients_rebuild_exactly():
    target, sample = PCATarget(PATCH, CHANNELS), images(20)
    assert target.size == 24  # 96, or as many as there are
    assert PCATarget((8, 8), 3).size == 96
    target.prepare(sample)
    torch.testing.assert_close(target.axes.T @ target.axes, torch.eye(24), rtol=0, atol=1e-5)
    other = images(2, seed=9)
    rebuilt = target.pixels(target(other, HIDE), torch.zeros(2, 3, 24))
    torch.testing.assert_close(rebuilt, PixelTarget(PATCH, CHANNELS)(other, HIDE), rtol=1e-4, atol=1e-4)


def test_token_target():
    class Sums(VisualTokenizer):
        size = 11

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (patchify(x, PATCH).sum(dim=2).abs() * 7).long() % 11

    target, x = TokenTarget(Sums()), images()
    assert target.size == 11
    wanted = target(x, HIDE)
    predicted = torch.randn(2, 3, 11)
    losses = []
    for b in range(2):
        for m in range(3):
            token = int(sum(patch_values(x[b], int(HIDE[b, m]))).__abs__() * 7) % 11
            assert int(wanted[b, m]) == token
            scores = predicted[b, m].tolist()
            losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[token])
    assert float(target.loss(predicted, wanted)) == pytest.approx(sum(losses) / 6, rel=1e-5)
    with pytest.raises(UnveilError, match="cannot reconstruct pixels"):
        target.pixels(predicted, predicted)
