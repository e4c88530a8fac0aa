"""Visual tokens: k-means against scikit-learn, and how much of a codebook is used."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Peer

from unveil.blocks.visual_tokenizer import KMeansTokenizer, codebook_metrics, token_frequencies

PATCH, CHANNELS = (3, 4), 2


def images(count: int = 40, seed: int = 0) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, CHANNELS, 3, 4, generator=chance)
    chosen = torch.randint(6, (count, 2, 3), generator=chance)
    images = kinds[chosen].permute(0, 3, 1, 4, 2, 5).reshape(count, CHANNELS, 6, 12)
    return images + 0.3 * torch.randn(images.shape, generator=chance)


def test_kmeans_finds_what_scikit_learn_finds():
    ours, sample = KMeansTokenizer(PATCH, CHANNELS, 9, rounds=60), images()
    points = ours.points(sample).flatten(0, 1).numpy()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:9]
    ours.prepare(sample)
    peer = Peer(9, init=points[order], n_init=1, max_iter=60, tol=0.0, algorithm="lloyd").fit(points)
    np.testing.assert_allclose(ours.centres.numpy(), peer.cluster_centers_, atol=1e-4)
    assert ours(sample).flatten().tolist() == peer.labels_.tolist()
    other = images(7, seed=3)
    assert ours(other).shape == (7, 6)
    assert ours(other).flatten().tolist() == peer.predict(ours.points(other).flatten(0, 1).numpy()).tolist()


def test_kmeans_uses_all_centres_and_is_the_same_each_time():
    first, second = KMeansTokenizer(PATCH, CHANNELS, 32), KMeansTokenizer(PATCH, CHANNELS, 32)
    sample = images(60).repeat(2, 1, 1, 1)  # doubles: some of the first centres are alike
    first.prepare(sample)
    second.prepare(sample)
    assert torch.equal(first.centres, second.centres)
    assert float(codebook_metrics(token_frequencies(first(sample), 32))["codebook_usage"]) > 0.9
    few = KMeansTokenizer(PATCH, CHANNELS, 50)
    few.prepare(images(2))  # more centres than patches
    assert few.centres.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(first(sample), second(sample))


def test_usage_and_perplexity():
    found = codebook_metrics(token_frequencies(torch.tensor([[0, 0], [1, 3]]), 8))
    assert float(found["codebook_usage"]) == 3 / 8
    assert float(found["perplexity"]) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
