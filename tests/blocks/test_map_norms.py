"""Norms of feature maps against loops, torch, and one process against two."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes import FORKS
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


def step(rank: int, world: int) -> dict[str, Tensor]:
    """Results, gradients and statistics of a process with its part of four images."""
    generator = torch.Generator().manual_seed(0)
    x, push = (torch.randn(4, 5, 2, 3, generator=generator).chunk(world)[rank] for _ in range(2))
    x, norm = x.clone().requires_grad_(), filled(MapBatchNorm(5)).train()
    found = norm(x)
    (found * push).sum().backward()
    assert x.grad is not None
    return {"found": found.detach(), "gradient": x.grad, "mean": norm.running_mean, "variance": norm.running_var}


def on_one_of_two(rank: int, store: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = step(rank, 2)
    if rank:
        results.put({name: value.numpy() for name, value in found.items()})
    dist.barrier()
    dist.destroy_process_group()


def test_batch_norm_on_two_processes_is_that_of_one(tmp_path: Path):
    results, whole = FORKS.Queue(), step(0, 1)
    processes = [FORKS.Process(target=on_one_of_two, args=(rank, str(tmp_path / "store"), results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {name: torch.tensor(value) for name, value in results.get(timeout=120).items()}
    for process in processes:
        process.join(60)
    for name in ("found", "gradient"):
        torch.testing.assert_close(found[name], whole[name][2:], rtol=1e-4, atol=1e-5)
    for name in ("mean", "variance"):
        torch.testing.assert_close(found[name], whole[name])
