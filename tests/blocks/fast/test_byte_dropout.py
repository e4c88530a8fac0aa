"""Dropout with one random byte for each value."""

import pytest
import torch

from unveil.blocks.fast.byte_dropout import byte_dropout


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.9])
def test_the_share_and_the_mean_are_right(share: float) -> None:
    torch.manual_seed(0)
    out = byte_dropout(torch.ones(200, 1001), share)
    dropped, exact = float((out == 0).float().mean()), max(round(256 * share), 1) / 256
    assert dropped == pytest.approx(exact, abs=5 * (exact / 200_000) ** 0.5)
    assert float(out.mean()) == pytest.approx(1.0, abs=5 * (exact / (1 - exact) / 200_000) ** 0.5)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - exact)])
    together = (out[:, 1:] == 0) & (out[:, :-1] == 0)  # neighbours are independent, in and across words
    for i in range(8):
        assert float(together[:, i::8].float().mean()) == pytest.approx(exact**2, abs=6 * (exact**2 / 25_000) ** 0.5 + 1e-4)
