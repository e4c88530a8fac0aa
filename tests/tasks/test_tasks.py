"""What judges an encoder, against scikit-learn, and against what each task promises to leave alone."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from tests.tasks.conftest import batch, digest, encoder, normal
from unveil.data.augment import Augment, AugmentConfig
from unveil.errors import UnveilError
from unveil.evaluate.knn import knn_scores
from unveil.evaluate.metrics import score
from unveil.tasks.linear import Linear
from unveil.tasks.partial import PartialFinetune


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_knn_equals_sklearn(neighbours, temperature):
    chance = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=chance)
    labels = torch.randint(0, 5, (120,), generator=chance)
    bank = (centres[labels] + torch.randn(120, 8, generator=chance)) * torch.rand(120, 1, generator=chance)
    queries = torch.randn(1100, 8, generator=chance)  # more than are compared at a time
    peer = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature))
    peer.fit(bank.double().numpy(), labels.numpy())
    found = knn_scores(queries, bank, labels, 5, neighbours=neighbours, temperature=temperature)
    shares = peer.predict_proba(queries.double().numpy())
    np.testing.assert_allclose((found / found.sum(dim=1, keepdim=True)).numpy(), shares, atol=1e-3)
    assert (found.argmax(dim=1).numpy() == peer.predict(queries.double().numpy())).mean() > 0.999


def test_knn_with_a_small_bank_and_an_absent_class():
    bank, labels = torch.eye(3), torch.tensor([2, 0, 2])
    found = knn_scores(torch.tensor([[2.0, 0, 0]]), bank, labels, 4, temperature=0.5)
    expected = [1.0, 0, float(torch.tensor(2.0).exp()) + 1.0, 0]
    assert found[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("classes", [3, 8])
def test_score_equals_sklearn(classes):
    chance = torch.Generator().manual_seed(classes)
    scores, labels = torch.randn(200, classes, generator=chance), torch.randint(0, classes - 1, (200,), generator=chance)
    found, best, names = score(scores, labels), scores.argmax(dim=1).numpy(), list(range(classes))
    assert found.count == 200
    assert found.top1 == pytest.approx(accuracy_score(labels, best))
    if classes > 5:
        assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores.numpy(), k=5, labels=names))
    else:
        assert found.top5 == 1
    assert found.confusion == confusion_matrix(labels, best, labels=names).tolist()
    recall = recall_score(labels, best, labels=names[:-1], average=None)
    assert found.per_class[:-1] == pytest.approx(recall)
    assert np.isnan(found.per_class[-1])  # no image has the last class
    assert found.to_json()["per_class"][-1] is None
    assert found.to_json()["per_class"][:-1] == found.per_class[:-1]


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
    task = PartialFinetune(encoder(positions=positions), 4, blocks)
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
    with pytest.raises(UnveilError, match=rf"cannot tune {blocks} blocks: use 0, 0\.5 \(the last MLP\), or 1 to 3"):
        PartialFinetune(encoder(), 4, blocks)


def test_the_loss_of_the_probes_is_cross_entropy_after_a_batch_norm():
    for task in (PartialFinetune(encoder(), 4, 1), Linear(24, 4, encoder=encoder())):
        task.train()
        given = normal()
        features = task.encoder.features(given.images)
        features = (features - features.mean(dim=0)) / (features.var(dim=0, unbiased=False) + 1e-6).sqrt()
        scores = features @ task.head.linear.weight.T + task.head.linear.bias
        step = task(given)
        torch.testing.assert_close(step.loss, F.cross_entropy(scores, given.labels), rtol=1e-4, atol=1e-5)
        assert float(step.metrics["accuracy"]) == pytest.approx(accuracy_score(given.labels, scores.argmax(dim=1)))
        assert not task.head.linear.bias.any()


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_linear_leaves_the_encoder_alone(pool):
    given, frozen = normal(), encoder(drop_path=0.5)
    before = digest(frozen)
    task = Linear(24, 4, encoder=frozen, pool=pool)
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
    on_features = Linear(24, 4)
    on_features.load_state_dict({k: v for k, v in task.state_dict().items() if not k.startswith("encoder")})
    task.eval()
    on_features.eval()
    torch.testing.assert_close(on_features.predict(frozen.features(given.images, pool)), task.predict(given.images))


def test_probes_augment_where_asked():
    augment = Augment(AugmentConfig(), (8, 8), (0.5,) * 3, (0.25,) * 3)
    for task in (Linear(24, 4, augment=augment), PartialFinetune(encoder(), 4, 0, augment)):
        assert torch.equal(task.augment(batch()).images, augment(batch()).images)
    assert Linear(24, 4).augment(batch()).images.dtype == torch.uint8
