"""Scores in windows equal a written-out mean, and classes of bands those of `F.interpolate` on the whole map."""

import pytest
import torch
import torch.nn.functional as F

from unveil.models import sliding_window
from unveil.models.sliding_window import averaged_bands, classes_of_bands, starts

CASES = [
    ((37, 50), (37, 50), (16, 16), (11, 11)),
    ((37, 50), (90, 61), (16, 20), (11, 13)),
    ((40, 33), (17, 90), (16, 16), (16, 16)),  # shrunk in one direction: rows are skipped
    ((16, 16), (5, 7), (16, 16), (11, 11)),
    ((100, 20), (333, 20), (16, 16), (5, 3)),
    ((21, 18), (21, 5), (18, 18), (1, 7)),
]


@pytest.mark.parametrize(("size", "original", "window", "stride"), CASES)
@pytest.mark.parametrize("most", [2**24, 300])
def test_bands_equal_the_whole_map(size: tuple, original: tuple, window: tuple, stride: tuple, most: int, monkeypatch) -> None:
    monkeypatch.setattr(sliding_window, "MAX_SCORES", most)
    generator = torch.Generator().manual_seed(0)
    image, weight = torch.randn(3, *size, generator=generator), torch.randn(5, 3, 3, 3, generator=generator)
    sums, counts, sizes = torch.zeros(5, *size), torch.zeros(size), list[int]()

    def score(images: torch.Tensor) -> torch.Tensor:  # with padding, so that the border of each window has other scores
        sizes.append(len(images))
        return F.conv2d(images, weight, padding=1)

    def cut(top: int, left: int) -> torch.Tensor:
        return image[:, top : top + window[0], left : left + window[1]]

    bands = list(averaged_bands(cut, score, size, window, stride, at_once=3))
    assert max(sizes) <= 3
    for top in starts(size[0], window[0], stride[0]):
        for left in starts(size[1], window[1], stride[1]):
            sums[:, top : top + window[0], left : left + window[1]] += score(cut(top, left)[None])[0]
            counts[top : top + window[0], left : left + window[1]] += 1
    assert counts.min() >= 1
    mean = sums / counts
    assert torch.allclose(torch.cat(bands, dim=1), mean, atol=1e-4)
    wanted = F.interpolate(mean[None], original, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    found = classes_of_bands(bands, size, original)
    assert found.dtype == torch.uint8
    assert (found == wanted).float().mean() > 0.999


def test_windows_begin_as_in_mmsegmentation() -> None:
    assert starts(512, 512, 341) == [0]
    assert starts(683, 512, 341) == [0, 171]
    assert starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]
    for length in range(16, 60):  # its formula
        count = max(length - 16 + 11 - 1, 0) // 11 + 1
        assert starts(length, 16, 11) == [min(i * 11, length - 16) for i in range(count)]


def test_padding_has_no_class() -> None:
    scores = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = classes_of_bands([scores[:, :10], scores[:, 10:]], (9, 12), (18, 24))
    wanted = F.interpolate(scores[None, :, :9, :12], (18, 24), mode="bilinear")[0].argmax(dim=0)
    assert torch.equal(found, wanted.to(torch.uint8))
