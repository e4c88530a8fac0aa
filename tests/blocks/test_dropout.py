"""Dropout, plain and fast."""

import pytest
import torch

from unveil.blocks.dropout import Dropout, drop

pytestmark = pytest.mark.usefixtures("way")


def test_the_share_and_the_mean_are_right() -> None:
    torch.manual_seed(0)
    out = drop(torch.ones(200, 1001), 0.25)  # 64 / 256
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.006)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])


def test_gradients_go_where_values_went_and_eval_drops_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, dtype=torch.bfloat16, requires_grad=True)
    module = Dropout(0.3)
    out = module(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(x.grad == 0, out == 0)
    assert module.eval()(x) is x
    assert torch.equal(drop(x, 0.0), x)
