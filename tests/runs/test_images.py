"""Evaluating in small batches gives what evaluating at once gives."""

import json

import numpy as np
import pytest
import torch

from unveil.evaluate import features
from unveil.evaluate.held_out import held_out_images, held_out_metrics
from unveil.options import known_to
from unveil.runs.images import IMAGES
from unveil.train.parallel import HardwareConfig, World
from unveil.train.run_folder import recorded_options

CPU, EXACT = World(torch.device("cpu")), HardwareConfig(device="cpu", precision="float32")


@pytest.mark.parametrize("method", ["mae", "simmim", "beit", "dvae"])
def test_batches_do_not_change_errors_and_features(monkeypatch, method):
    images = np.random.default_rng(0).integers(0, 255, (40, 20, 20, 3), dtype=np.uint8)
    plan = IMAGES.plan(images, method, "vit-nano", {"image_size": (16,), "patch_size": (4,), "device": "cpu"})
    subset = plan.open_subsets()[0]
    vit = plan.vit(subset.dataset)
    torch.manual_seed(0)
    learner = plan.build(vit).eval()
    found = []
    for size in (7, 100):
        monkeypatch.setattr("unveil.evaluate.held_out.evaluation_batch_size", lambda world, size=size: size)
        errors = held_out_metrics(learner, held_out_images(subset, vit, EXACT, CPU), EXACT, CPU)
        table = features.features_of(learner.encoder.features, subset, vit, EXACT, CPU, batch_size=size).rows
        found.append((errors, table))
    (few, rows), (many, whole) = found
    assert few == pytest.approx(many, rel=1e-5)
    assert len(few) >= 2
    assert min(few.values()) > 0 or method == "beit"  # all of its tokens may be predicted wrong
    assert torch.allclose(rows, whole, atol=1e-5)


def test_a_processor_in_float32_evaluates_16_images_at_a_time_with_the_same_features():
    half = HardwareConfig(device="cpu", precision="bfloat16")
    gpu = World(torch.device("cuda"))
    sizes = [features.evaluation_batch_size(world, hardware) for world, hardware in ((CPU, EXACT), (CPU, half), (gpu, EXACT))]
    assert sizes == [16, 64, 256]

    images = np.random.default_rng(0).integers(0, 255, (150, 16, 16, 3), dtype=np.uint8)
    plan = IMAGES.plan(images, "mae", "vit-nano", {"device": "cpu"})
    subset = plan.open_subsets()[0]
    vit = plan.vit(subset.dataset)
    torch.manual_seed(0)
    encoder, seen = plan.build(vit).eval().encoder, []

    def function(batch):
        seen.append(len(batch))
        return encoder.features(batch)

    rows = features.features_of(function, subset, vit, EXACT, CPU).rows
    whole = features.features_of(encoder.features, subset, vit, EXACT, CPU, batch_size=64).rows
    assert set(seen[:-1]) == {16}
    assert torch.allclose(rows, whole, rtol=0, atol=1e-6)
    assert torch.equal(neighbours(rows), neighbours(whole))


def test_a_run_on_the_digits_resumes_with_the_settings_that_it_began_with(tmp_path):
    new = IMAGES.plan("digits", "mae", None, {"device": "cpu"})
    assert (new.recipe.training.batch_size, new.recipe.optim.base_lr) == (16, 2.4e-2)

    earlier = {"batch_size": 64, "epochs": 7.5, "base_lr": 8e-3}  # the defaults up to format 4
    facts = {"format": 4, "kind": "pretrain", "config": new.config | earlier, "data": new.facts, "world_size": 1}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text(json.dumps(facts))
    kept = known_to(recorded_options(tmp_path), *IMAGES.configs("mae"))
    assert earlier.items() <= IMAGES.plan("digits", "mae", None, kept).config.items()


def neighbours(rows: torch.Tensor) -> torch.Tensor:
    return (rows @ rows.T).fill_diagonal_(-torch.inf).argmax(dim=1)
