"""Probing: what a frozen, or a mostly frozen, encoder knows about classes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.data.augment import Augment, AugmentConfig
from unveil.data.loader import ImageLoader
from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.evaluate.features import features_of, fit_linear, raw_pixels
from unveil.evaluate.knn import knn_scores
from unveil.evaluate.metrics import score
from unveil.interop.load import load
from unveil.interop.model_files import vit_of
from unveil.learner import Task
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.runs.labelled_data import fresh_folder, labelled_parts, predicted, write_json, write_predictions
from unveil.runs.open_data import Subset, few_labels
from unveil.tasks.linear import Linear
from unveil.tasks.partial import PartialFinetune
from unveil.train.log import Screen
from unveil.train.loop import TrainConfig, total_steps, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, join_processes, resolve_precision
from unveil.train.run_folder import receipt, tell


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How to probe."""

    kind: Literal["linear", "knn", "partial"] = "linear"
    """A linear classifier on the frozen encoder; the nearest neighbours; or tuning the last blocks."""
    blocks: float = 1.0
    """Blocks that a partial probe tunes: 0, 0.5 (the last MLP), 1, ... all."""
    neighbours: int = 20
    """Neighbours that vote in k-NN."""
    pool: Literal["mean", "class"] | None = None
    """One vector an image: the mean of the patch tokens, or the class token; by default what the method trains."""
    views: bool = False
    """Train the linear probe on random resized crops and flips, as the paper: the encoder sees every image in every epoch."""
    labels: int = 0
    """Labelled images to train on, balanced over the classes; 0 takes all."""
    compare: bool = True
    """Probe the same encoder untrained, and raw pixels, as well."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""


DEFAULTS = {"optimizer": "sgd", "base_lr": 0.5, "weight_decay": 0.0, "warmup": 0.1, "epochs": 90.0, "batch_size": 0}
"""The paper's linear probe (appendix A.1) with SGD in place of LARS, for the small batches of small data.

`--optimizer lars --base-lr 0.1 --batch-size 16384 --views` is the paper's own. Batch size 0 is 1024, or a twentieth of the
images; the rate of SGD is for 64 features, and less for more.
"""
TUNED = {"optimizer": "adamw", "base_lr": 1e-3, "weight_decay": 0.05, "warmup": 0.1, "epochs": 50.0, "batch_size": 256}
"""The partial probe (appendix A.1: as fine-tuning, 50 epochs), with the augmentation of the linear one."""


def probe(
    run: str | Path, data: Data | None = None, *, test: Data | None = None, out: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Judges an encoder with labels.

    Args:
        run: Whatever `unveil.load` takes.
        data: Labelled images to train the probe on; by default those that the run was trained on.
        test: Labelled images to judge on; by default the test split of `data`, or a tenth of it that is kept aside.
        out: A folder for the results; by default a new one, `<run>/probe-<kind>`.
        **options: Fields of `ProbeConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`.

    Returns:
        What `results.json` in that folder says: scores of the encoder, of the same untrained, and of raw pixels.

    Raises:
        UnveilError: On input that cannot be used.
    """
    usual = TUNED if options.get("kind") == "partial" else DEFAULTS
    own, training, optim, hardware = configure(usual | options, ProbeConfig, TrainConfig, OptimConfig, HardwareConfig)
    world, say = join_processes(hardware), tell(True)
    if world.size > 1:
        raise UnveilError("a probe runs in one process: start it without torchrun")
    hardware = resolve_precision(hardware, world)
    learner = load(run).to(world.device).eval()
    vit, pool = vit_of(learner).config, own.pool or learner.pool
    train_set, test_set, cut = labelled_parts(run, data, test, vit, pixel_limit=own.pixel_limit, show=True)
    train_set = few_labels(train_set, own.labels, training.seed) if own.labels else train_set
    classes = len(train_set.dataset.classes)
    aside = " kept aside" if cut else ""
    say(f"{own.kind} probe on {len(train_set):,} labelled images of {classes} classes, judged on {len(test_set):,}{aside}")
    entries: dict[str, ViT | None] = {"encoder": learner.encoder}
    if own.compare:
        torch.manual_seed(training.seed)
        entries["untrained"] = ViT(vit).to(world.device).eval()
        if own.kind != "partial":
            entries["raw pixels"] = None
    scores = {}
    for name, encoder in entries.items():
        if encoder is not None and (own.kind == "partial" or own.views):
            task = tuned_task(encoder, classes, own, pool)
            scores[name] = tuned_scores(name, task, train_set, test_set, training, optim, hardware, world)
        else:
            features = raw_pixels if encoder is None else partial(encoder.features, pool=pool)
            scores[name] = frozen_scores(features, train_set, test_set, vit, own, training, optim, hardware, world)
        result = score(scores[name], test_set.labels)
        say(f"{name:>10}   top-1 {100 * result.top1:5.2f} %" + (f"   top-5 {100 * result.top5:5.2f} %" if classes > 5 else ""))
    folder = Path(out) if out else fresh_folder((Path(run) if Path(run).is_dir() else Path("runs")) / f"probe-{own.kind}")
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "kind": own.kind,
        "classes": train_set.dataset.classes,
        "trained_on": len(train_set),
        "kept_aside": cut,
        "top1": {name: score(s, test_set.labels).top1 for name, s in scores.items()},
        "score": score(scores["encoder"], test_set.labels).to_json(),
        "config": asdict(own) | {"pool": pool} | asdict(training) | asdict(optim) | asdict(hardware),
        "run": str(run),
        **receipt(),
    }
    write_predictions(folder / "predictions.csv", test_set, scores["encoder"])
    write_json(folder / "results.json", results)
    say(f"Per-class accuracy, confusion matrix and predictions: {folder}")
    return results


def frozen_scores(
    features: Callable[[Tensor], Tensor],
    train_set: Subset,
    test_set: Subset,
    vit: Any,
    own: ProbeConfig,
    training: TrainConfig,
    optim: OptimConfig,
    hardware: HardwareConfig,
    world: World,
) -> Float[Tensor, "n K"]:
    """Scores from features that are computed once."""
    bank, queries = (features_of(features, part, vit, hardware, world) for part in (train_set, test_set))
    if own.kind == "knn":
        return knn_scores(queries, bank, train_set.labels, len(train_set.dataset.classes), neighbours=own.neighbours)
    task = fit_linear(bank, train_set.labels, len(train_set.dataset.classes), training, optim)
    with torch.no_grad():
        return task.predict(queries)


def tuned_task(encoder: ViT, classes: int, own: ProbeConfig, pool: Literal["mean", "class"]) -> Task:
    """A probe that sees augmented images."""
    vit = encoder.config
    augment = Augment(AugmentConfig(), vit.image_size, vit.mean, vit.std)
    if own.kind == "partial":
        return PartialFinetune(encoder, classes, own.blocks, augment)
    return Linear(vit.width, classes, encoder=encoder, augment=augment, pool=pool)


def tuned_scores(
    name: str,
    task: Task,
    train_set: Subset,
    test_set: Subset,
    training: TrainConfig,
    optim: OptimConfig,
    hardware: HardwareConfig,
    world: World,
) -> Float[Tensor, "n K"]:
    """Scores after training on augmented images."""
    loader = ImageLoader(train_set.dataset, places=train_set.places, batch_size=training.batch_size or 256, seed=training.seed)
    screen = Screen(name, total_steps(training, loader))
    try:
        train(task, loader, training, optim, hardware, world, screen=screen)
    finally:
        screen.close()
    return predicted(task, test_set, hardware, world)
