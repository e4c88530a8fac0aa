"""Learning from labels alone: the loss, the average of the weights, and data without labels."""

import pytest
import torch
from torch.nn import functional as F

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.interop import model_files as native
from unveil.interop.load import load
from unveil.methods.supervised import Supervised, SupervisedConfig
from unveil.models.vit_config import ViTConfig
from unveil.recipes.export import export

VIT = ViTConfig(width=24, depth=2, heads=3, image_size=(8, 8), patch_size=(4, 4))
PLAIN = {"drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "randaugment": 0, "erasing": 0.0, "smoothing": 0.0}


def supervised(vit: ViTConfig = VIT, **options: object) -> Supervised:
    torch.manual_seed(0)
    learner = Supervised.build(vit, SupervisedConfig(**{**PLAIN, **options}), AugmentConfig())
    learner.set_classes(["cat", "dog", "cow"])
    return learner


def batch(count: int = 6) -> Batch:
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.tensor([[8, 8]] * count), sample_keys(0, 0, count), ClassTargets(torch.arange(count) % 3))


def test_cross_entropy_of_the_mean_of_the_patch_tokens():
    learner, given = supervised(), batch()
    losses = []
    for image, label in zip(given.images, given.targets.labels, strict=True):
        tokens = learner.encoder(image[None])[0, 1:]
        scores = learner.head.weight @ (sum(tokens) / len(tokens)) + learner.head.bias
        losses.append(-float(scores.log_softmax(dim=0)[label]))
    assert float(learner(given).loss.detach()) == pytest.approx(sum(losses) / 6, rel=1e-5)
    found = (learner.logits(given.images).argmax(dim=1) == given.targets.labels).float().mean()
    assert learner.validation_metrics(given) == {"accuracy": float(found)}
    mixed = given._replace(targets=ClassTargets(torch.full((6, 3), 1 / 3)))
    torch.testing.assert_close(learner(mixed).loss, F.cross_entropy(learner.logits(given.images), mixed.targets.labels))


def test_the_average_looks_back_a_share_of_the_run_and_is_kept():
    learner, steps, by_hand = supervised(average=0.25), 40, None
    weight = learner.head.weight
    by_hand, chance = weight.detach().double().clone(), torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=chance))
        now = weight.detach().double().clone()
        by_hand += (now - by_hand) * max(1 / 10, 9 / (10 + step))  # 10 of 40 steps
        learner.after_step(step / steps)
        torch.testing.assert_close(learner.averages[1].weight.double(), by_hand, rtol=1e-4, atol=1e-5)
        assert torch.equal(weight.double(), now)
    learner.after_training()
    assert torch.equal(weight, learner.averages[1].weight)
    last = supervised(average=0.0)
    last.after_step(1.0)
    last.after_training()
    assert not hasattr(last, "averages")


def test_it_needs_two_classes():
    learner = Supervised.build(VIT, SupervisedConfig(), AugmentConfig())
    for classes, found in (((), "no labels"), (["cat"], "one class only: cat")):
        with pytest.raises(UnveilError, match=f"takes two classes, but DATA has {found}"):
            learner.set_classes(classes)


def test_it_is_saved_with_its_classes_and_goes_to_timm_with_its_head(tmp_path):
    learner, given = supervised(), batch()
    learner.eval()
    native.save(learner, tmp_path / "run")
    again = load(tmp_path / "run", say=lambda text: None)
    assert isinstance(again, Supervised)
    assert again.classes == ("cat", "dog", "cow")
    assert torch.equal(again.logits(given.images), learner.logits(given.images))
    said: list[str] = []
    out = export(tmp_path / "run", to="timm", say=said.append)
    assert "timm agrees" in said[-1]
    back = load(out, say=lambda text: None)
    assert back.classes == ("cat", "dog", "cow")
    torch.testing.assert_close(back.logits(given.images), learner.logits(given.images))
