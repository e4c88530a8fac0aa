"""Features of pictures, and what they are worth: k-NN and linear accuracy."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.augment import view
from unveil.data.batch import Batch
from unveil.data.cache import Pictures
from unveil.data.feed import TableFeed
from unveil.models.vit import ViTConfig
from unveil.tasks.knn import knn_scores
from unveil.tasks.linear import Linear
from unveil.tasks.score import Score, score
from unveil.train.loop import TrainConfig, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig

LINEAR = {"epochs": 90.0, "warmup": 10 / 90, "weight_decay": 0.0, "base_lr": 0.1}
"""The paper's linear probe (appendix A.1): LARS, 90 epochs, 10 of them warm-up."""


@torch.no_grad()
def table(
    of: Callable[[Tensor], Tensor],
    pictures: Pictures,
    places: Int[Tensor, " n"],
    vit: ViTConfig,
    device: torch.device,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    batch_size: int = 256,
) -> Float[Tensor, "n D"]:
    """What a function of normalised pictures says of each, seen without augmentation."""
    rows = []
    for part in places.split(batch_size):
        images, sizes = pictures.batch(part)
        batch = Batch(images, sizes, part).to(device)
        with context():
            rows.append(of(view(batch, vit.image_size, vit.mean, vit.std)).float().cpu())
    return torch.cat(rows)


def raw_pixels(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P"]:
    """The pixels themselves as features."""
    return images.flatten(1)


def fit_linear(
    bank: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    classes: int,
    *,
    optimizer: str = "lars",
    base_lr: float = LINEAR["base_lr"],
    epochs: float = LINEAR["epochs"],
    batch_size: int | None = None,
    seed: int = 0,
) -> Linear:
    """A linear classifier on features, trained by the paper's protocol in smaller batches."""
    torch.manual_seed(seed)
    probe = Linear(bank.shape[1], classes)
    size = batch_size or max(32, min(16384, len(bank) // 10))
    train(
        probe,
        TableFeed(bank, labels, batch_size=size, seed=seed),
        TrainConfig(epochs=epochs, batch_size=size, seed=seed, log_every=10**9, monitor_times=1),
        OptimConfig(optimizer=optimizer, base_lr=base_lr, weight_decay=0.0, warmup=LINEAR["warmup"]),  # type: ignore[arg-type]
        SpreadConfig(device="cpu", precision="float32"),
        Place(torch.device("cpu")),
    )
    return probe.eval()


@torch.no_grad()
def judge_features(
    bank: Float[Tensor, "n D"],
    bank_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m D"],
    query_labels: Int[Tensor, " m"],
    classes: int,
    seed: int = 0,
) -> dict[str, Score]:
    """k-NN and linear accuracy of features."""
    knn = knn_scores(queries, bank, bank_labels, classes)
    with torch.enable_grad():
        probe = fit_linear(bank, bank_labels, classes, seed=seed)
    return {"knn": score(knn, query_labels), "linear": score(probe.predict(queries), query_labels)}
