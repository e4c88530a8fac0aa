"""Linear probes and partial fine-tuning: what they train, and what they leave alone."""

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch.nn import functional as F

from tests.tasks.conftest import CLASSES, batch, digest, encoder, normal
from unveil.blocks.heads import ProbeHead
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.supervised_augment import SupervisedAugment
from unveil.errors import UnveilError
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.linear import Linear, LinearConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune


def wanted_names(blocks: float, positions: str) -> set[str]:
    """What figure 9 tunes, written out: the head with its norm, and the last blocks; with all blocks, everything."""
    names = {"head.weight", "head.bias", "norm.weight", "norm.bias"} if blocks else {"head.linear.weight", "head.linear.bias"}
    for name, _ in encoder(positions=positions).named_parameters():
        parts = name.split(".")
        if parts[:2] == ["transformer", "blocks"]:
            last, mlp = int(parts[2]) >= 3 - blocks, int(parts[2]) == 2 and parts[3] in ("norm2", "mlp")
            if mlp if blocks == 0.5 else last:
                names.add(f"encoder.{name}")
        elif blocks == 3 and parts[:2] != ["transformer", "norm"]:
            names.add(f"encoder.{name}")
    return names


@pytest.mark.parametrize("blocks", [0, 0.5, 1, 2, 3])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_partial_trains_what_it_should(blocks, positions):
    task = PartialFinetune(encoder(positions=positions), CLASSES, PartialConfig(blocks=blocks, drop_path=0.0))
    trains_only(task, wanted_names(blocks, positions))


@pytest.mark.parametrize("blocks", [0, 0.5, 1, 2, 3, None])
@pytest.mark.parametrize("fc_norm", [False, True])
def test_fine_tuning_trains_the_last_blocks(blocks, fc_norm):
    """With a norm after the pooling, it trains what figure 9 tunes; with that of the encoder, this norm if there is any block.

    Fine-tuning trains the positions with all blocks, even if they are sines and cosines at first.
    """
    config = FinetuneConfig(blocks=blocks, fc_norm=fc_norm, drop_path=0.0, mixup=0.0, cutmix=0.0)
    wanted = wanted_names(blocks or (3 if blocks is None else 0.25), "learned")  # a quarter: no block, but the head with its norm
    if not fc_norm:
        own = {"encoder.transformer.norm.weight", "encoder.transformer.norm.bias"}
        wanted = wanted - {"norm.weight", "norm.bias"} | (own if blocks != 0 else set())
    trains_only(Finetune(encoder(), CLASSES, config, AugmentConfig()), wanted)


def trains_only(task, wanted):
    """Asserts that a few steps change exactly these parameters."""
    assert {name for name, p in task.named_parameters() if p.requires_grad} == wanted
    before = {name: value.clone() for name, value in task.named_parameters()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.5)
    task.train()
    for _ in range(3):  # a head of nearly 0 passes on no gradient, and biases of keys alone get none
        task(normal()).loss.backward()
        optimizer.step()
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert moved == wanted


@pytest.mark.parametrize("pool", ["mean", "class"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_partial_is_fine_tuning_with_frozen_layers(blocks, pool):
    """The recipe of fine-tuning, its norm after the pooling, and the features that --pool chooses."""
    frozen = encoder()
    task = PartialFinetune(frozen, CLASSES, PartialConfig(blocks=blocks, pool=pool)).eval()
    tokens = frozen.transformer.intermediates(frozen.tokens(normal().images))[-1]
    features = tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(dim=1)
    features = F.layer_norm(features, (24,), eps=1e-6)
    torch.testing.assert_close(task.logits(normal().images), features @ task.head.weight.T, rtol=1e-4, atol=1e-7)
    assert [block.branch1.drop_path for block in task.encoder.transformer.blocks] == pytest.approx([0.0, 0.05, 0.1])
    shared = PartialFinetune.DEFAULTS.keys() & Finetune.PAPER.keys()
    paper = {name: Finetune.PAPER[name] for name in shared}
    assert {**paper, "warmup_ratio": 0.1, "epochs": 50.0} == PartialFinetune.DEFAULTS
    augment = PartialFinetune.build(encoder(), PartialConfig(), AugmentConfig(), CLASSES).augmentation
    assert isinstance(augment, SupervisedAugment)
    assert augment.policy is not None
    assert augment.erase is not None
    assert (augment.mix.mixup_alpha, augment.mix.cutmix_alpha, augment.mix.label_smoothing) == (0.8, 1.0, 0.1)


def test_the_partial_probe_of_earlier_versions_is_still_built():
    """A batch norm after the last norm of the encoder, and fixed positions."""
    old = PartialFinetune(encoder(), CLASSES, PartialConfig(blocks=3, batch_norm=True, drop_path=0.0))
    names = {name for name, p in old.named_parameters() if p.requires_grad}
    assert "encoder.positions" not in names
    assert {"encoder.transformer.norm.weight", "head.linear.weight"} <= names
    assert set(old.state_dict()) == {f"encoder.{name}" for name in encoder().state_dict()} | {
        f"head.{name}" for name in ProbeHead(24, 4).state_dict()
    }


@pytest.mark.parametrize("blocks", [-1, 0.7, 1.5, 4])
def test_partial_refuses_other_numbers(blocks):
    with pytest.raises(UnveilError, match=rf"cannot fine-tune {blocks} blocks of 3: use 0, 0\.5 \(the last MLP\), or 1 to 3"):
        PartialFinetune(encoder(), CLASSES, PartialConfig(blocks=blocks))
    with pytest.raises(UnveilError, match=rf"cannot fine-tune {blocks} blocks of 3"):
        Finetune(encoder(), CLASSES, FinetuneConfig(blocks=blocks), AugmentConfig())


def test_a_loss_of_the_encoder_needs_one_that_is_trained():
    """Encoder and head ended with the same bits as without the loss."""
    with pytest.raises(UnveilError, match=r"mae_loss is 0\.5, but with 0 blocks the encoder is frozen: leave one of them out"):
        Finetune(encoder(), CLASSES, FinetuneConfig(blocks=0, mae_loss=0.5), AugmentConfig())


def test_the_loss_of_the_probes_is_cross_entropy_after_a_batch_norm():
    partial = PartialFinetune(encoder(), CLASSES, PartialConfig(blocks=0, smoothing=0.0, drop_path=0.0))
    for task in (partial, Linear(24, CLASSES, encoder=encoder())):
        task.train()
        given = normal()
        features = task.encoder.features(given.images)
        features = (features - features.mean(dim=0)) / (features.var(dim=0, unbiased=False) + 1e-6).sqrt()
        scores = features @ task.head.linear.weight.T + task.head.linear.bias
        step = task(given)
        torch.testing.assert_close(step.loss, F.cross_entropy(scores, given.targets.labels), rtol=1e-4, atol=1e-5)
        if task is not partial:  # with mixed classes there is no accuracy
            assert float(step.metrics["accuracy"]) == pytest.approx(accuracy_score(given.targets.labels, scores.argmax(dim=1)))
        assert not task.head.linear.bias.any()


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_linear_leaves_the_encoder_alone(pool):
    given, frozen = normal(), encoder(drop_path=0.5)
    before = digest(frozen)
    task = Linear(24, CLASSES, LinearConfig(pool=pool), encoder=frozen)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.5)
    task.train()
    first = task(given).loss.detach()
    assert torch.equal(task(given).loss, first)  # drop path is off even in training
    for _ in range(30):
        optimizer.zero_grad()
        task(given).loss.backward()
        optimizer.step()
    assert digest(task.encoder) == before
    assert task(given).loss < 0.5 * first
    assert {name for name, p in task.named_parameters() if p.requires_grad} == {"head.linear.weight", "head.linear.bias"}
    on_features = Linear(24, CLASSES)
    on_features.load_state_dict({k: v for k, v in task.state_dict().items() if not k.startswith("encoder")})
    task.eval()
    on_features.eval()
    torch.testing.assert_close(on_features.logits(frozen.features(given.images, pool)), task.logits(given.images))


def test_probes_augment_where_asked():
    augment = Augment(AugmentConfig(), (8, 8), (0.5,) * 3, (0.25,) * 3)
    assert torch.equal(Linear(24, CLASSES, augment=augment).augment(batch()).images, augment(batch()).images)
    assert Linear(24, CLASSES).augment(batch()).images.dtype == torch.uint8


def test_the_encoder_of_a_linear_probe_is_computed_in_parts(monkeypatch):
    """A batch of 16,384 images needs one batch norm, but its encoder need not see all of them at once."""
    torch.manual_seed(0)
    whole = Linear(24, CLASSES, encoder=encoder()).train()
    expected = whole.logits(normal(7).images)
    monkeypatch.setattr("unveil.tasks.linear.MAX_IMAGES", 3)
    torch.testing.assert_close(whole.logits(normal(7).images), expected)
