"""Smoothed cross-entropy, plain and fast, beside torch's own."""

import pytest
import torch
import torch.nn.functional as F

from unveil.blocks.smoothed_cross_entropy import smoothed_cross_entropy

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    scores = (3 * torch.randn(7, 11, 30)).requires_grad_()  # more than one block of rows
    words, weight = torch.randint(30, (7, 11)), torch.rand(7, 11) * (torch.rand(7, 11) > 0.3)
    each = F.cross_entropy(scores.flatten(0, 1), words.flatten(), reduction="none", label_smoothing=smoothing)
    expected = (each * weight.flatten()).sum()
    (wanted,) = torch.autograd.grad(3 * expected, scores)
    true = (F.cross_entropy(scores.flatten(0, 1), words.flatten(), reduction="none") * weight.flatten()).sum()
    before = scores.detach().clone()
    loss, read = smoothed_cross_entropy(scores, words, weight, smoothing)
    (found,) = torch.autograd.grad(3 * loss, scores)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(read, true)
    assert not read.requires_grad
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(scores, before)
    assert bool((found[weight == 0] == 0).all())


def test_half_precision_comes_near() -> None:
    torch.manual_seed(0)
    exact = torch.randn(100, 50, requires_grad=True)
    half = exact.detach().bfloat16().requires_grad_()
    words, weight = torch.randint(50, (100,)), torch.full((100,), 0.01)
    losses = [smoothed_cross_entropy(scores, words, weight, 0.1)[0] for scores in (exact, half)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0.0)
    torch.testing.assert_close(half.grad.float(), exact.grad, rtol=3e-2, atol=1e-5)
