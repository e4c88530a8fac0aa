"""Layer norm, plain and fast, against float64."""

import pytest
import torch
from torch import nn

from unveil.blocks.layer_norm import LayerNorm

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gives_back_the_precision_that_comes_in(kind: torch.dtype, autocast: bool) -> None:
    """Over thousands of rows, a sum in half precision would be wrong by a third."""
    torch.manual_seed(0)
    norm, plain = LayerNorm(64), nn.LayerNorm(64).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain.load_state_dict(norm.state_dict())
    x, gradient = torch.randn(40, 200, 64).to(kind), (torch.randn(40, 200, 64) + 0.3).to(kind)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = norm(x)
    exact = x.detach().double().requires_grad_()
    wanted = plain(exact)
    assert found.dtype == kind
    pairs = zip(
        (found, *torch.autograd.grad(found, [x, *norm.parameters()], gradient)),
        (wanted, *torch.autograd.grad(wanted, [exact, *plain.parameters()], gradient.double())),
        strict=True,
    )
    for each, right in pairs:
        assert (each - right).norm() < (1e-5 if kind == torch.float32 else 0.01) * right.norm()
