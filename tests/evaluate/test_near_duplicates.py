"""Near duplicates: the search against a loop over all pairs, and which copies count."""

import numpy as np
import pytest
import scipy.fft
import torch

from unveil.evaluate import near_duplicates
from unveil.evaluate.near_duplicates import (
    CANDIDATE,
    CROPS,
    FREQUENCIES,
    agreement,
    are_copies,
    candidates,
    cropped,
    descriptors,
    warped,
)


def scenes(count: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Images with waves of all lengths, as photographs have them: amplitude 1 / frequency."""
    random = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.fft.fftfreq(side) * side, np.fft.fftfreq(side) * side, indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1)
    waves = np.fft.ifft2(np.fft.fft2(random.normal(size=(count, side, side))) * amplitude).real
    waves = (waves - waves.min(axis=(1, 2), keepdims=True)) / np.ptp(waves, axis=(1, 2), keepdims=True)
    return torch.from_numpy(np.rint(255 * waves).astype(np.uint8))


def slow_descriptor(image: np.ndarray) -> np.ndarray:
    waves = scipy.fft.dctn(image.astype(np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    weighted = [waves[i, j] * np.hypot(i, j) for i in range(FREQUENCIES) for j in range(FREQUENCIES) if i or j]
    return np.array(weighted) / np.linalg.norm(weighted)


def test_descriptors_equal_those_of_scipy_and_a_mirror_image_changes_signs():
    images = scenes(3)
    expected = np.stack([slow_descriptor(image) for image in images.numpy()])
    np.testing.assert_allclose(descriptors(images).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(
        descriptors(images.flip(2)).numpy(), (descriptors(images) * near_duplicates.mirror_signs()).numpy(), atol=1e-5
    )


def test_the_search_in_blocks_finds_what_a_loop_finds(monkeypatch):
    bank = scenes(40)
    bank[5], bank[6] = bank[3].flip(0), bank[4].flip(1)
    bank[20] = torch.from_numpy(np.clip(bank[8].numpy() * 0.8 + 9, 0, 255).astype(np.uint8))
    bank[21] = cropped(bank[8][None].float(), CROPS[2])[0].byte()
    bank[0] = 77  # blank: similar to none
    monkeypatch.setattr(near_duplicates, "QUERIES", 7)
    monkeypatch.setattr(near_duplicates, "ROWS", 9)
    found = candidates(bank, bank, same=True)
    pairs = {
        (int(i), int(j)): (float(cosine), int(crop), bool(mirrored)) for i, j, cosine, crop, mirrored in zip(*found, strict=True)
    }
    expected: dict[tuple[int, int], tuple[float, int, bool]] = {}
    whole = [slow_descriptor(image) if image.max() > image.min() else np.zeros(63) for image in bank.numpy()]
    for i in range(1, 40):
        for number, crop in enumerate(CROPS):
            part = cropped(bank[i][None].float(), crop)[0].numpy()
            for mirrored in (False, True):
                query = slow_descriptor(part[:, ::-1] if mirrored else part)
                for j in range(40):
                    cosine = float(query @ whole[j])
                    if i != j and cosine > max(CANDIDATE, expected.get((i, j), (0.0,))[0]):
                        expected[i, j] = cosine, number, mirrored
    assert pairs.keys() == expected.keys()
    assert {(5, 3), (20, 8), (8, 21), (4, 6)} & pairs.keys() == {(20, 8), (8, 21), (4, 6)}  # one upside down is not sought
    assert pairs[8, 21][1:] == (2, False)
    assert pairs[4, 6][1:] == (0, True)
    assert all(pairs[key][0] == pytest.approx(expected[key][0], abs=1e-4) for key in pairs)


def test_only_the_nearest_candidates_of_an_image_are_kept():
    bank = scenes(1).expand(30, -1, -1).clone()
    bank += torch.randint(0, 3, bank.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = candidates(bank, bank, same=True)
    assert torch.bincount(found.first).tolist() == [near_duplicates.MOST] * 30


def test_warping_by_hand():
    image = torch.arange(64.0).reshape(1, 8, 8)
    same, inside = warped(image, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert torch.allclose(same, image, atol=1e-4)
    assert inside.all()
    shifted, inside = warped(image, torch.tensor([[1.0, 1.0, 0.25, 0.0]]))  # by a pixel of eight
    assert torch.allclose(shifted[0, :, :7], image[0, :, 1:], atol=1e-4)
    assert inside[0, 0].tolist() == [1] * 7 + [0]


def test_agreement_is_1_for_the_same_image_whatever_its_contrast_and_low_for_another():
    one, two = scenes(2, 64).float()
    first, second = torch.stack([one, one, one]), torch.stack([0.5 * one + 20, two, -one])
    found = agreement(first, second, torch.ones_like(first))
    assert found.mean[0] == pytest.approx(1, abs=1e-4)
    assert found.mean[1] < 0.3
    assert found.mean[2] == pytest.approx(-1, abs=1e-4)
    assert are_copies(found).tolist() == [True, False, False]


def test_a_shared_frame_is_no_copy():
    one, two = scenes(2, 64).float()
    for image in (one, two):
        image[:10] = image[-10:] = 0
    found = agreement(one[None], two[None], torch.ones(1, 64, 64))
    assert not are_copies(found).any()
