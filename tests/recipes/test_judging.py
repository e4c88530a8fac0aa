"""Judging in small batches says what judging at once says."""

import numpy as np
import pytest
import torch

from unveil.evaluate import features
from unveil.recipes import pretrain
from unveil.runs.pretrain_setup import resolve
from unveil.train.parallel import HardwareConfig, World

CPU, EXACT = World(torch.device("cpu")), HardwareConfig(device="cpu", precision="float32")


@pytest.mark.parametrize("method", ["mae", "simmim", "beit", "dvae"])
def test_batches_do_not_change_errors_and_features(monkeypatch, method):
    images = np.random.default_rng(0).integers(0, 255, (40, 20, 20, 3), dtype=np.uint8)
    setting = resolve(images, method, "vit-nano", {"image_size": (16,), "patch_size": (4,), "device": "cpu"})
    part = setting.open_parts()[0]
    vit = setting.vit(part.images)
    torch.manual_seed(0)
    learner = setting.build(vit).eval()
    found = []
    for size in (7, 100):
        monkeypatch.setattr(pretrain, "at_once", lambda world, size=size: size)
        errors = pretrain.held_out(learner, judged=part, vit=vit, hardware=EXACT, world=CPU)
        table = features.features_of(learner.encoder.features, part, vit, EXACT, CPU, batch_size=size)
        found.append((errors, table))
    (few, rows), (many, whole) = found
    assert few == pytest.approx(many, rel=1e-5)
    assert len(few) >= 2
    assert min(few.values()) > 0 or method == "beit"  # whose tokens may all be guessed wrong
    assert torch.allclose(rows, whole, atol=1e-5)
