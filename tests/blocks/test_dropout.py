"""Dropout by bytes."""

import pytest
import torch

from unveil.blocks.dropout import Dropout, drop


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.9])
def test_the_share_and_the_mean_are_right(share: float) -> None:
    torch.manual_seed(0)
    out = drop(torch.ones(200, 1001), share)
    dropped, exact = float((out == 0).float().mean()), max(round(256 * share), 1) / 256
    assert dropped == pytest.approx(exact, abs=5 * (exact / 200_000) ** 0.5)
    assert float(out.mean()) == pytest.approx(1.0, abs=5 * (exact / (1 - exact) / 200_000) ** 0.5)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - exact)])
    together = (out[:, 1:] == 0) & (out[:, :-1] == 0)  # neighbours are independent, in and across words
    for i in range(8):
        assert float(together[:, i::8].float().mean()) == pytest.approx(exact**2, abs=6 * (exact**2 / 25_000) ** 0.5 + 1e-4)


def test_gradients_go_where_values_went_and_judging_drops_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, dtype=torch.bfloat16, requires_grad=True)
    module = Dropout(0.3)
    out = module(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(x.grad == 0, out == 0)
    assert module.eval()(x) is x
    assert torch.equal(drop(x, 0.0), x)
