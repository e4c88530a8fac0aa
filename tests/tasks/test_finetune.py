"""Fine-tuning: what it starts from, what it trains, and what its recipe does to a batch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.tasks.conftest import CLASSES, VIT, batch, digest, encoder, normal
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.tasks.finetune import Finetune, FinetuneConfig

OFF = {"drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "randaugment": 0, "erasing": 0.0}


def finetune(**options: object) -> Finetune:
    torch.manual_seed(0)
    return Finetune(encoder(), CLASSES, FinetuneConfig(**{**OFF, **options}), AugmentConfig())


def test_finetune_starts_from_the_encoder_and_leaves_it():
    given = encoder()
    before = digest(given)
    task = Finetune(given, CLASSES, FinetuneConfig(**OFF), AugmentConfig())
    assert all(p.requires_grad for p in task.parameters())  # the positions too
    x = normal().images
    tokens = task.encoder.tokens(x)
    for block in given.transformer.blocks:
        tokens = block(tokens)
    pooled = F.layer_norm(tokens[:, 1:].mean(dim=1), (24,), eps=1e-6)  # the norm comes after the mean
    torch.testing.assert_close(task.logits(x), task.head(pooled), rtol=1e-4, atol=1e-7)
    task(normal()).loss.backward()
    torch.optim.SGD(task.parameters(), lr=0.1).step()
    assert digest(given) == before
    config = FinetuneConfig(**{**OFF, "drop_path": 0.2})
    assert Finetune(given, CLASSES, config, AugmentConfig()).encoder.transformer.blocks[-1].branch2.drop_path == 0.2


def test_layers_of_finetune():
    task = finetune()
    depths = {name: task.layer_of(name) for name, _ in task.named_parameters()}
    for name, depth in depths.items():
        if ".blocks." in name:
            assert depth == 1 + int(name.split("blocks.")[1][0])
        elif name.startswith(("head", "norm")):
            assert depth == 4
        else:
            assert name in {"encoder.class_token", "encoder.positions", "encoder.embed.weight", "encoder.embed.bias"}
            assert depth == 0
    assert set(depths.values()) == {0, 1, 2, 3, 4}


def test_without_the_recipe_finetuning_is_deterministic():
    given, task = batch(), finetune()
    first = task.augment(given)
    torch.manual_seed(99)
    second = task.augment(given)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets.labels, given.targets.labels)
    plain = Augment(AugmentConfig(), (8, 8), VIT.mean, VIT.std)(given).images
    torch.testing.assert_close(first.images, plain, rtol=1e-4, atol=1e-4)
    task.train()
    assert torch.equal(task(first).loss, task(second).loss)
    torch.testing.assert_close(task(first).loss, F.cross_entropy(task.logits(first.images), given.targets.labels))


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_labels_sum_to_1(mixing):
    task = finetune(smoothing=0.1, **mixing)
    np.random.seed(0)
    for turn in range(8):
        found = task.augment(batch(first=turn))
        assert found.targets.labels.shape == (6, 4)
        torch.testing.assert_close(found.targets.labels.sum(dim=1), torch.ones(6))
        assert found.targets.labels.min() == pytest.approx(0.1 / 4)  # smoothing gives every class a share
        for row, label, other in zip(found.targets.labels, batch().targets.labels, batch().targets.labels.flip(0), strict=True):
            assert {int(i) for i in (row > 0.03).nonzero()} <= {int(label), int(other)}
    losses = -(found.targets.labels * task.logits(found.images).log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(task(found).loss, losses.mean())
    with pytest.raises(UnveilError, match="mixup and CutMix need an even batch, found 5"):
        task.augment(batch(5))


def test_randaugment_depends_on_the_key_alone():
    task = finetune(randaugment=9)
    whole, plain = task.augment(batch()).images, finetune().augment(batch()).images
    np.random.seed(5)
    alone = task.augment(Batch(*(part[2:4] for part in batch()[:3]), ClassTargets(batch().targets.labels[2:4]))).images
    torch.testing.assert_close(alone, whole[2:4], rtol=0, atol=0.05)
    assert ((whole - plain).abs().amax(dim=(1, 2, 3)) > 0.2).sum() >= 3
    assert finetune(randaugment=0).augmentation.policy is None


def test_erasing_and_smoothing():
    torch.manual_seed(0)
    erased = finetune(erasing=1.0).augment(batch(20)).images
    assert ((erased - finetune().augment(batch(20)).images).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean() > 0.7
    task, given = finetune(smoothing=0.2), normal()
    targets = F.one_hot(given.targets.labels, 4) * 0.8 + 0.2 / 4
    losses = -(targets * task.logits(given.images).log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(task(given).loss, losses.mean())
