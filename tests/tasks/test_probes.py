"""Linear probes and partial fine-tuning: what they train, and what they leave alone."""

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch.nn import functional as F

from tests.tasks.conftest import CLASSES, batch, digest, encoder, normal
from unveil.data.augment import Augment, AugmentConfig
from unveil.errors import UnveilError
from unveil.tasks.linear import Linear, LinearConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune


def wanted_names(blocks: float) -> set[str]:
    """What figure 9 tunes, written out."""
    names = {"head.linear.weight", "head.linear.bias"}
    for name, _ in encoder().named_parameters():
        parts = name.split(".")
        if parts[:2] == ["transformer", "norm"] and blocks:
            names.add(f"encoder.{name}")
        elif parts[:2] == ["transformer", "blocks"]:
            last, mlp = int(parts[2]) >= 3 - blocks, int(parts[2]) == 2 and parts[3] in ("norm2", "mlp")
            if mlp if blocks == 0.5 else last:
                names.add(f"encoder.{name}")
        elif blocks == 3 and name != "positions":
            names.add(f"encoder.{name}")
    return names


@pytest.mark.parametrize("blocks", [0, 0.5, 1, 2, 3])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_partial_trains_what_it_should(blocks, positions):
    task = PartialFinetune(encoder(positions=positions), CLASSES, PartialConfig(blocks=blocks))
    assert {name for name, p in task.named_parameters() if p.requires_grad} == wanted_names(blocks)
    before = {name: value.clone() for name, value in task.named_parameters()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.5)
    task.train()
    for _ in range(2):  # biases of keys alone get no gradient
        task(normal()).loss.backward()
        optimizer.step()
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert moved == wanted_names(blocks)


@pytest.mark.parametrize("blocks", [-1, 0.7, 1.5, 4])
def test_partial_refuses_other_numbers(blocks):
    with pytest.raises(UnveilError, match=rf"cannot fine-tune {blocks} blocks of 3: use 0, 0\.5 \(the last MLP\), or 1 to 3"):
        PartialFinetune(encoder(), CLASSES, PartialConfig(blocks=blocks))


def test_the_loss_of_the_probes_is_cross_entropy_after_a_batch_norm():
    for task in (PartialFinetune(encoder(), CLASSES, PartialConfig()), Linear(24, CLASSES, encoder=encoder())):
        task.train()
        given = normal()
        features = task.encoder.features(given.images)
        features = (features - features.mean(dim=0)) / (features.var(dim=0, unbiased=False) + 1e-6).sqrt()
        scores = features @ task.head.linear.weight.T + task.head.linear.bias
        step = task(given)
        torch.testing.assert_close(step.loss, F.cross_entropy(scores, given.targets.labels), rtol=1e-4, atol=1e-5)
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
    for task in (Linear(24, CLASSES, augment=augment), PartialFinetune(encoder(), CLASSES, PartialConfig(blocks=0), augment)):
        assert torch.equal(task.augment(batch()).images, augment(batch()).images)
    assert Linear(24, CLASSES).augment(batch()).images.dtype == torch.uint8
