"""Norms of feature maps against loops, torch, and one process against two."""

from threading import Barrier, Thread, current_thread

import pytest
import torch
from torch import Tensor, nn

from unveil.blocks.map_norms import MapBatchNorm, MapLayerNorm, map_norm
from unveil.errors import UnveilError


def filled(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.linspace(0.5, 2, parameter.numel()) + i)
    return module


def test_layer_norm_of_each_pixel():
    x, norm = torch.randn(2, 5, 3, 4), filled(MapLayerNorm(5))
    found = norm(x)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                pixel = x[b, :, i, j]
                true = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias
                torch.testing.assert_close(found[b, :, i, j], true)
    assert found.shape == x.shape
    assert isinstance(map_norm("layer", 5), MapLayerNorm)


def test_batch_norm_on_one_process_is_that_of_torch():
    x, batch, peer = torch.randn(2, 5, 3, 4), filled(MapBatchNorm(5)).train(), filled(nn.BatchNorm2d(5)).train()
    torch.testing.assert_close(batch(x), peer(x))
    torch.testing.assert_close(batch.running_var, peer.running_var)
    torch.testing.assert_close(batch.eval()(x), peer.eval()(x))
    assert isinstance(map_norm("batch", 5), MapBatchNorm)


def test_batch_norm_of_a_single_pixel_is_refused():
    """UperNet pools one image to a single pixel."""
    with pytest.raises(UnveilError, match="batch norm needs at least 2 samples"):
        MapBatchNorm(5).train()(torch.randn(1, 5, 1, 1))
    assert MapLayerNorm(5).train()(torch.randn(1, 5, 1, 1)).shape == (1, 5, 1, 1)


def test_batch_norm_on_two_processes_is_that_of_one(monkeypatch: pytest.MonkeyPatch):
    """Two threads stand for the processes. Their gather keeps the graphs of both, so that one backward pass is that of both."""
    x, push = torch.randn(4, 5, 2, 3), torch.randn(4, 5, 2, 3)
    whole = x.clone().requires_grad_()
    one = filled(MapBatchNorm(5)).train()
    true = one(whole)
    (true * push).sum().backward()

    together, parts = Barrier(2), {}

    def gather(rows: Tensor) -> Tensor:
        parts[current_thread().name] = rows
        together.wait()
        return torch.cat([parts["0"], parts["1"]])

    monkeypatch.setattr("unveil.blocks.distributed.all_gather_with_grad", gather)
    for place in ("distributed", "map_norms"):
        monkeypatch.setattr(f"unveil.blocks.{place}.world_size", lambda: 2)
    inputs = [part.clone().requires_grad_() for part in x.chunk(2)]
    norms, found = [filled(MapBatchNorm(5)).train() for _ in range(2)], [Tensor(), Tensor()]

    def work(rank: int) -> None:
        found[rank] = norms[rank](inputs[rank])

    threads = [Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    torch.testing.assert_close(torch.cat(found), true)
    (torch.cat(found) * push).sum().backward()
    torch.testing.assert_close(torch.cat([part.grad for part in inputs]), whole.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].weight.grad + norms[1].weight.grad, one.weight.grad)
    for norm in norms:
        torch.testing.assert_close(norm.running_mean, one.running_mean)
        torch.testing.assert_close(norm.running_var, one.running_var)
