"""Features of images, and what they are worth: k-NN and linear accuracy."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.augment import view
from unveil.data.batch import Batch
from unveil.data.loader import FeatureLoader
from unveil.evaluate.knn import knn_scores
from unveil.evaluate.metrics import Score, score
from unveil.models.vit import ViTConfig
from unveil.runs.open_data import Subset
from unveil.tasks.linear import Linear
from unveil.train.loop import TrainConfig, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast

LINEAR_EPOCHS = 30.0
LINEAR = OptimConfig(optimizer="sgd", base_lr=0.5, weight_decay=0.0, warmup=0.1)
"""The quick linear probe after pre-training; `unveil probe` has the paper's."""


@torch.no_grad()
def features_of(
    function: Callable[[Tensor], Tensor], part: Subset, vit: ViTConfig, hardware: HardwareConfig, world: World, batch_size: int = 0
) -> Float[Tensor, "n ..."]:
    """What a function of normalised images says of each, seen without augmentation; in float32, on the CPU.

    Batch size 0 is `at_once`.
    """
    table, done = torch.empty(0), 0
    for places in torch.split(part.places, batch_size or at_once(world)):
        batch = Batch(*part.dataset.batch(places), places).to(world.device)
        with autocast(hardware, world):
            rows = function(view(batch, vit.image_size, vit.mean, vit.std))
        if not done:
            table = torch.empty(len(part), *rows.shape[1:])  # made once: joining the rows would hold them twice
        table[done : done + len(rows)] = rows
        done += len(rows)
    return table


def at_once(world: World) -> int:
    """Images that are judged at a time: few on a CPU, which is as fast, for many would take more memory than training does."""
    return 64 if world.device.type == "cpu" else 256


def views_of(part: Subset, vit: ViTConfig) -> Float[Tensor, "n C H W"]:
    """The images as evaluations see them."""
    exact = HardwareConfig(device="cpu", precision="float32")
    return features_of(lambda images: images, part, vit, exact, World(torch.device("cpu")))


def raw_pixels(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P"]:
    """The pixels themselves as features."""
    return images.flatten(1)


def fit_linear(
    bank: Float[Tensor, "n D"], labels: Int[Tensor, " n"], classes: int, training: TrainConfig, optim: OptimConfig
) -> Linear:
    """A linear classifier on features that were computed once.

    Batch size 0 is 1024, or a twentieth of what there is. The rate of SGD is for 64 features: with normalised features the
    curvature of the loss grows with their number, so it is divided by it, or wide features (raw pixels) would be wronged.
    """
    torch.manual_seed(training.seed)
    task = Linear(bank.shape[1], classes)
    size = training.batch_size or max(32, min(1024, len(bank) // 20))
    training = replace(training, batch_size=size, log_every=10**9, monitor_times=1)
    if optim.optimizer == "sgd":
        optim = replace(optim, base_lr=optim.base_lr * 64 / bank.shape[1])
    loader = FeatureLoader(bank, labels, batch_size=size, seed=training.seed)
    cpu = World(torch.device("cpu"))
    train(task, loader, training, optim, HardwareConfig(device="cpu", precision="float32"), cpu)
    return task.eval()


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
        task = fit_linear(bank, bank_labels, classes, TrainConfig(epochs=LINEAR_EPOCHS, batch_size=0, seed=seed), LINEAR)
    return {"knn": score(knn, query_labels), "linear": score(task.predict(queries), query_labels)}
