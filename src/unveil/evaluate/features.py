"""Features of images without augmentation, and their k-NN and linear accuracy."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.distributed import alone
from unveil.data.augment import eval_draw, eval_geometry, eval_images
from unveil.data.batch import Batch, Cropped
from unveil.data.loader import FeatureLoader
from unveil.data.read_ahead import read_ahead
from unveil.data.splits import Subset
from unveil.data.targets import Targets
from unveil.errors import UnveilError
from unveil.evaluate.knn import knn_scores, whiten
from unveil.evaluate.logistic import fit_logistic
from unveil.learner import Learner, Task
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import printable
from unveil.tasks.linear import Linear
from unveil.train.guards import seeded
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe, TrainConfig

MAX_RAW = 3072
"""Maximum number of values of an image for the baseline of raw pixels: 32 x 32 in colour."""
MAX_WHITENED = 1024
"""Maximum number of features for the whitened k-NN, whose time grows with its square."""


@torch.no_grad()
def evaluation_batches(
    subset: Subset, vit: ViTConfig, hardware: HardwareConfig, world: World, batch_size: int = 0
) -> Iterator[Batch]:
    """Batches of a subset, in order, preprocessed for evaluation: centre crop, resize, normalise. Targets are transformed as well.

    Images that cannot be read are left out, and never replaced. The keys of a batch are the indices of its images.

    Args:
        subset: The images.
        vit: Their size and normalisation.
        hardware: Precision.
        world: The device.
        batch_size: 0 means `evaluation_batch_size`.
    """
    read = partial(read_batch, subset, vit=vit)
    parts = torch.split(subset.indices, batch_size or evaluation_batch_size(world, hardware))
    # From memory, reading ahead gains nothing: a second thread would take the cores from the model.
    for batch in map(read, parts) if subset.dataset.in_memory else read_ahead(read, parts):
        if batch is not None:
            yield prepared(batch, subset, vit, hardware, world)


@torch.no_grad()
def whole_images(subset: Subset, world: World) -> Iterator[Batch]:
    """Each image of a subset by itself, as it is stored, with its targets. Images that cannot be read are left out.

    One at a time, since on a common canvas, one large image would multiply the memory of all others.
    """
    dataset = subset.dataset.whole()
    parts = torch.split(subset.indices, 1)
    for batch in map(dataset.readable, parts) if dataset.in_memory else read_ahead(dataset.readable, parts):
        if batch is not None:
            yield batch.to(world.device)


def crop_pct_of(subset: Subset, vit: ViTConfig) -> float:
    """The share of the short side of the images of a batch to keep; all of it if the transform of the dataset has cropped."""
    return 1.0 if subset.dataset.transform else vit.crop_pct


def read_batch(subset: Subset, indices: Int[Tensor, " B"], vit: ViTConfig) -> Batch | None:
    """The images at these indices that can be read, not yet normalised; None if none can."""
    return subset.dataset.readable(indices, draw=eval_draw(vit.image_size, crop_pct_of(subset, vit)))


@torch.no_grad()
def prepared(batch: Batch, subset: Subset, vit: ViTConfig, hardware: HardwareConfig, world: World) -> Batch:
    """A batch of `read_batch` on the device, cropped and normalised, with its targets."""
    batch, crop_pct = batch.to(world.device), crop_pct_of(subset, vit)
    targets = batch.targets
    if targets is not None and not isinstance(batch, Cropped):
        targets = targets.transformed(eval_geometry(batch.sizes, vit.image_size, crop_pct))
    with autocast(hardware, world):
        images = eval_images(batch, vit.image_size, vit.mean, vit.std, crop_pct)
    return batch._replace(images=images, targets=targets)


class NothingReadableError(UnveilError):
    """None of the images to evaluate can be read."""


class Features(NamedTuple):
    """One row for each image that could be read."""

    rows: Float[Tensor, "n ..."]
    """In float32, on the CPU."""
    subset: Subset
    """The images of the rows."""


def features_of(
    function: Callable[[Tensor], Tensor],
    subset: Subset,
    vit: ViTConfig,
    hardware: HardwareConfig,
    world: World,
    batch_size: int = 0,
) -> Features:
    """Applies a function of normalised images to each image of a subset that can be read.

    Raises:
        NothingReadableError: If none can be read.
    """
    (rows,), readable = features_of_each([function], subset, vit, hardware, world, batch_size)
    return Features(rows, readable)


@torch.no_grad()
def features_of_each(
    functions: Sequence[Callable[[Tensor], Tensor]],
    subset: Subset,
    vit: ViTConfig,
    hardware: HardwareConfig,
    world: World,
    batch_size: int = 0,
) -> tuple[list[Float[Tensor, "n ..."]], Subset]:
    """As `features_of`, with several functions. Images are read once, so each function gets the same images."""
    tables, kept, done = list[Tensor](), list[Tensor](), 0
    for batch in evaluation_batches(subset, vit, hardware, world, batch_size):
        for i, function in enumerate(functions):
            with autocast(hardware, world):
                rows = function(batch.images)
            if not done:  # allocated once: concatenation would need twice the memory
                tables.append(torch.empty(len(subset), *rows.shape[1:]))
            tables[i][done : done + len(rows)] = rows
        kept.append(batch.keys.cpu())
        done += len(batch.keys)
    if not done:
        name, count = subset.dataset.source.name, len(subset)
        reason = next(iter(subset.dataset.skipped.items()), ("", "there are none"))
        raise NothingReadableError(f"none of {count:,} images of {name} can be read; the first: {': '.join(reason)}")
    return [table[:done] for table in tables], Subset(subset.dataset, torch.cat(kept))


def refuse_non_finite(features: Features, owner: str) -> None:
    """Raises `UnveilError` if a feature is NaN or infinite; `owner` is the name of the model."""
    bad = (~features.rows.isfinite()).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    if bad:
        counts, first = f"{len(bad):,} of {len(features.rows):,} images", printable(features.subset.names[bad[0]])
        raise UnveilError(
            f"the features of {counts} are not finite, the first of {first}: the numbers in {owner} are too large. Use another "
            f"run, or --precision float32"
        )


@torch.no_grad()
def predictions_of(
    task: Task, subset: Subset, hardware: HardwareConfig, world: World
) -> Iterator[tuple[Batch, Any, Targets | None]]:
    """The batches of a subset, with the predictions of a task in eval mode and the targets.

    See `evaluation_batches` or, for a task that takes whole images, `whole_images`.
    """
    task.eval()
    batches = whole_images(subset, world) if task.whole_images else evaluation_batches(subset, task.encoder.config, hardware, world)
    for batch in batches:
        with autocast(hardware, world):
            predictions = task.predict(batch)
        yield batch, predictions, batch.targets


def evaluation_batch_size(world: World, hardware: HardwareConfig | None = None) -> int:
    """The batch size of evaluations. It is small on a CPU, where large batches are no faster and could need more than training.

    In float32 on a CPU it is smaller still: the activations of 16 small images stay in the caches. Half precision gains more from
    converting the weights less often.
    """
    if world.device.type != "cpu":
        return 256
    return 16 if hardware is not None and hardware.precision == "float32" else 64


def views_of(subset: Subset, vit: ViTConfig) -> Features:
    """All images of a subset that can be read, preprocessed for evaluation: (n, C, H, W)."""
    exact = HardwareConfig(device="cpu", precision="float32")
    return features_of(lambda images: images, subset, vit, exact, World(torch.device("cpu")))


def features_by(owner: Learner | ViT, pool: Literal["mean", "class", "both"], images: Tensor) -> Tensor:
    """The features of images (B, D), or with both poolings (B, 2 D). Both take one pass, unless a task has features of its own."""
    encoder = owner.encoder if isinstance(owner, Learner) and type(owner).features is Learner.features else owner
    if isinstance(encoder, ViT):
        return encoder.features(images, pool)
    if pool != "both":
        return owner.features(images, pool=pool)
    return torch.cat([owner.features(images, pool=each) for each in ("mean", "class")], dim=1)


def raw_pixels(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P"]:
    """All values of each image. Images with more than `MAX_RAW` are shrunk first, since their table would not fit into memory."""
    *_, channels, height, width = images.shape
    factor = math.sqrt(MAX_RAW / (channels * height * width))
    if factor < 1:
        sides = max(1, int(factor * height)), max(1, int(factor * width))
        images = F.interpolate(images.float(), sides, mode="bilinear", antialias=True)
    return images.flatten(1)


def fit_linear(
    features: Float[Tensor, "n D"], labels: Int[Tensor, " n"], classes: Sequence[str], training: TrainConfig, optim: OptimConfig
) -> Linear:
    """Trains a linear classifier on features that were computed once.

    Batch size 0 means 1024, or a twentieth of the samples. The learning rate of SGD is given for 64 features and decreases with
    their number, because the curvature of the loss grows with the number of normalised features. Otherwise wide features (raw
    pixels) would be at a disadvantage.
    """
    with seeded(training.seed):
        task = Linear(features.shape[1], classes)
    training = replace(training.with_batch_size(len(features)), log_every=10**9, num_evals=1)
    if optim.optimizer == "sgd":
        optim = replace(optim, base_lr=optim.base_lr * 64 / features.shape[1])
    loader = FeatureLoader(features, labels, batch_size=training.batch_size, seed=training.seed)
    hardware = HardwareConfig(device="cpu", precision="float32")
    with alone():  # under torchrun, only the main process evaluates
        train(task, loader, Recipe(training, optim, hardware, World(torch.device("cpu"))))
    return task.eval()


def independent_count(correct: Bool[Tensor, " n"], groups: Int[Tensor, " n"]) -> float:
    """How many independent samples are as informative about an accuracy as these samples, of which some share an original.

    It is the number that gives the accuracy p the variance of the estimate: p (1 - p) divided by the cluster-robust variance, which
    adds up the deviations within each group before they are squared (Liang and Zeger, 1986). At most n.
    """
    share, variance = float(correct.double().mean()), variance_of_mean(correct.double(), groups)
    return min(float(len(correct)), share * (1 - share) / variance) if variance else float(len(groups.unique()))


def variance_of_mean(values: Float[Tensor, " n"], groups: Int[Tensor, " n"]) -> float:
    """The cluster-robust variance of a mean of samples, of which those of a group share an original (Liang and Zeger, 1986)."""
    _, group = groups.unique(return_inverse=True)
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, values - values.mean())
    return float(sums.square().sum()) / len(values) ** 2 * len(sums) / max(len(sums) - 1, 1)


@torch.no_grad()
def evaluate_features(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "m D"],
    test_labels: Int[Tensor, " m"],
    classes: Sequence[str],
    groups: Int[Tensor, " n"] | None = None,
) -> dict[str, Bool[Tensor, " m"]]:
    """Whether k-NN, whitened k-NN and a linear classifier, fitted to labelled features, predict the class of each other sample.

    Args:
        features: Features to fit to.
        labels: Their classes.
        test_features: Features to classify.
        test_labels: Their classes.
        classes: The names of the classes.
        groups: The originals of the samples to fit to: see `fit_logistic`.
    """
    scores = {"knn": knn_scores(test_features, features, labels, len(classes))}
    if features.shape[1] <= MAX_WHITENED:
        bank, queries = whiten(features, test_features)
        scores["whitened"] = knn_scores(queries, bank, labels, len(classes))
    task, _ = fit_logistic(features, labels, classes, groups=groups)
    scores["linear"] = task.logits(test_features)
    return {probe: each.argmax(dim=1) == test_labels for probe, each in scores.items()}
