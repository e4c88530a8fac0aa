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
from unveil.methods.mae import MAE, MAEConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig

pytestmark = pytest.mark.usefixtures("without_reports")

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


def test_a_probed_head_and_the_norm_of_pre_training():
    """Without `fc_norm`, the features are those of the encoder, also of its class token, and any linear layer can be the head."""
    given, images = encoder(), normal().images
    for pool in ("mean", "class"):
        task = Finetune(given, CLASSES, FinetuneConfig(**OFF, fc_norm=False, start="probe", pool=pool), AugmentConfig()).eval()
        assert task.starts_from_probe
        weight, bias = torch.randn(4, 24), torch.randn(4)
        task.set_head(weight, bias)
        expected = given.features(images, pool) @ weight.T + bias
        torch.testing.assert_close(task.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert not finetune().starts_from_probe
    without = encoder(final_norm=False)  # of a fine-tuned model: there is no norm to keep
    assert isinstance(Finetune(without, CLASSES, FinetuneConfig(**OFF, fc_norm=False), AugmentConfig()).norm, torch.nn.LayerNorm)


def test_balanced_logits_are_adjusted_in_training_only():
    """Menon et al. (2021), equation 10: the logarithm of the share of its class is added to each logit of the loss."""
    counts, given = torch.tensor([60, 30, 10, 0]), normal()
    plain, task = finetune(), finetune(balance=True)
    weight, bias = torch.randn(4, 24), torch.randn(4)
    plain.set_head(weight, bias)
    task.set_class_counts(counts)
    task.set_head(weight, bias)
    prior = torch.tensor([0.6, 0.3, 0.1, 0.01]).log()  # a class without samples counts as one
    expected = F.cross_entropy(task.logits(given.images) + prior, given.targets.labels)
    torch.testing.assert_close(task(given).loss, expected)
    torch.testing.assert_close(task(given).loss, plain(given).loss)  # the loss of the probe itself
    torch.testing.assert_close(task.predict(given), plain.predict(given) - prior)
    assert task.metric().primary == "balanced_accuracy"
    assert finetune().metric().primary == "top1"
    task = finetune()
    task.set_class_counts(counts)
    assert task.log_prior is None


def test_the_loss_of_mae_beside_the_classes():
    """The same masks, decoder and loss as those of the MAE that the encoder comes from."""
    mae = MAE.build(VIT, MAEConfig(), AugmentConfig())
    config = FinetuneConfig(**OFF, fc_norm=False, mae_loss=0.3)
    task, given = Finetune(mae.encoder, CLASSES, config, AugmentConfig()), normal()
    task.set_decoder(mae.decoder_state())
    found = task(given)
    keep, hide = mae.mask(given.keys)
    torch.testing.assert_close(found.metrics["mae_loss"], mae.masked_loss(given.images, keep, hide))
    classes = F.cross_entropy(task.logits(given.images), given.targets.labels)
    torch.testing.assert_close(found.loss, classes + 0.3 * found.metrics["mae_loss"])
    found.loss.backward()
    assert task.reconstruction.predictor.head.weight.grad.abs().sum() > 0
    other = MAE.build(VIT, MAEConfig(decoder_width=8), AugmentConfig())
    before = digest(task.reconstruction)
    task.set_decoder(other.decoder_state())  # another shape: the decoder stays as it is
    task.set_decoder(MAE.build(VIT, MAEConfig(target="pixel"), AugmentConfig()).decoder_state())
    assert digest(task.reconstruction) == before
    task.drop_training_parts()
    assert not any("reconstruction" in name for name in task.state_dict())
    assert task.config.mae_loss == 0
