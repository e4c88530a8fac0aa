"""`unveil probe`: evaluates a frozen, or mostly frozen, encoder with labels."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unveil.atomic_files import write_text
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.loader import ImageLoader
from unveil.data.python_data import with_columns
from unveil.data.sources import Data
from unveil.data.splits import Subset, few_labels
from unveil.errors import UnveilError
from unveil.evaluate.corruption_errors import Classifier
from unveil.evaluate.features import (
    Features,
    NothingReadableError,
    features_by,
    features_of,
    fit_linear,
    predictions_of,
    raw_pixels,
    refuse_non_finite,
)
from unveil.evaluate.knn import knn_scores, whitening
from unveil.evaluate.logistic import fit_logistic
from unveil.folder_lock import locked
from unveil.interop import model_files
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.json_files import json_text
from unveil.learner import Learner, Task
from unveil.metrics import classification_metrics
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.plain_text import count_of
from unveil.plugins import trust as allow
from unveil.ranges import Count, CountOrZero, NonNegative, Share, ShareAboveZero
from unveil.recipes.probe_corruptions import images_to_corrupt, test_on_corruptions
from unveil.reports.notebook import ProbeResults
from unveil.reports.table import unseen_sentence
from unveil.runs.labelled_data import (
    LabelledOptions,
    data_facts,
    data_of,
    fresh_folder,
    labelled_subsets,
    unseen_classes,
    write_class_scores,
)
from unveil.runs.open_data import adapt_to_images, preprocessed, reopened
from unveil.runs.session import join
from unveil.runs.skipped_files import SkippedFiles
from unveil.tasks.linear import Linear, LinearConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune
from unveil.train.guards import seeded
from unveil.train.log import Screen
from unveil.train.loop import total_steps, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, autocast
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.run_folder import receipt
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The kind of probe, and its data."""

    HIDDEN = ("test_split", "crop_scale", "max_pixels", "max_unreadable")
    kind: Literal["linear", "knn", "partial"] = "linear"
    """A linear classifier on the frozen encoder, k nearest neighbours, or fine-tuning of the last blocks."""
    protocol: Literal["quick", "sgd", "paper"] = "quick"
    """How to train the linear probe: by L-BFGS on features that are computed once, with a penalty chosen on a part kept aside; by
    SGD on the same features; or as in the MAE paper (LARS, batches of 16,384, the class token, random crops). Only sgd, paper,
    --views and --kind partial have epochs, a batch size and an optimiser."""
    blocks: NonNegative = 1.0
    """Blocks that a partial probe fine-tunes, counted from the last: 0, 0.5 (the last MLP), 1, ... up to all."""
    neighbours: Count = 20
    """Number of neighbours in k-NN."""
    whiten: bool = False
    """Whiten the features before k-NN, so that all directions count alike."""
    pool: Literal["mean", "class", "both"] | None = None
    """Features to classify: the mean of the patch tokens, the class token, or both side by side; by default the one that suits the
    method."""
    views: bool = False
    """Train the linear probe on random resized crops and flips, as in the paper: the encoder sees every image in every epoch."""
    crop_scale: ShareAboveZero = 0.08
    """Minimum share of the image's area in the random crops of --views and of a partial probe."""
    split: str | None = None
    """Parts of DATA to train on: train, val, test, unlabeled, other (beside the splits), several as in train+val, or all; by
    default train."""
    test_split: str | None = None
    """The part of DATA to test on; by default test or, if that is missing or has no labels, val."""
    labels: CountOrZero = 0
    """Number of labelled images to train on, balanced over the classes; 0 means all."""
    compare: bool = True
    """Also probe the same encoder untrained, and raw pixels."""
    corrupt: bool = False
    """Also test on corrupted images: 15 common corruptions at 5 severities each, such as noise, blur, fog and JPEG compression, and
    the mean corruption error (Hendrycks and Dietterich, 2019). The encoder sees each test image 76 times."""
    corrupt_images: CountOrZero = 0
    """Number of test images to corrupt, balanced over the classes; 0 means all."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    max_unreadable: Share = 0.01
    """Stop if a larger share of the images becomes unreadable while a probe is trained on them."""

    @property
    def sees_images(self) -> bool:
        """Whether the probe is trained on augmented images, and not on features that are computed once."""
        return self.kind == "partial" or self.views

    @property
    def takes_steps(self) -> bool:
        """Whether the training loop trains the probe."""
        return self.sees_images or (self.kind == "linear" and self.protocol != "quick")


class ProbeScores(NamedTuple):
    """What a probe gives for the test images that can be read."""

    features: Features
    """The class scores."""
    classify: Classifier
    """Class scores of other images, on the CPU."""
    task: Task | None = None
    """The trained probe; None for k-NN. Its head alone, if it was trained on features."""
    penalty: float | None = None
    """The penalty of logistic regression."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe: its options, how to train it, and the images."""

    config: ProbeConfig
    recipe: Recipe
    learner: Learner
    """The model whose encoder is probed."""
    pool: Literal["mean", "class", "both"]
    train_set: Subset
    test_set: Subset

    def scores(self, name: str, encoder: ViT | None, shape: ViT) -> ProbeScores:
        """Class scores from an encoder or, for None, from raw pixels.

        Args:
            name: The title of the progress bar.
            encoder: The encoder to probe; a partial probe changes a copy of it.
            shape: An encoder with the image size and normalisation to use.
        """
        if encoder is not None and self.config.sees_images:
            task = self.task(copy.deepcopy(encoder))
            return ProbeScores(self.trained_scores(name, task), self.predicted_by(task), task)
        if encoder is None:
            return self.frozen_scores(raw_pixels, shape)
        owner = self.learner if encoder is self.learner.encoder else encoder  # as `unveil embed`: after the norm of a head
        return self.frozen_scores(partial(features_by, owner, self.pool), shape)

    def frozen_scores(self, function: Callable[[Tensor], Tensor], shape: ViT) -> ProbeScores:
        """Scores from features that are computed once."""
        recipe, classes = self.recipe, self.train_set.dataset.classes
        train, test = (
            features_of(function, subset, shape.config, recipe.hardware, recipe.world) for subset in (self.train_set, self.test_set)
        )
        for features in (train, test):
            refuse_non_finite(features, "the encoder")
        labels, penalty = train.subset.labels, None
        task: Linear | None = None
        score: Callable[[Tensor], Tensor]
        if self.config.kind == "knn":
            score = self.knn(train)
        else:
            if self.config.takes_steps:
                task = fit_linear(train.rows, labels, classes, recipe.training, recipe.optim)
            else:
                groups, seed = train.subset.groups, recipe.training.seed
                task, penalty = fit_logistic(train.rows, labels, classes, groups=groups, seed=seed)
            score = task.logits

        def classify(batch: Batch) -> Tensor:
            with autocast(recipe.hardware, recipe.world):
                rows = function(batch.images)
            return score(rows.float().cpu())

        with torch.no_grad():
            return ProbeScores(test._replace(rows=score(test.rows)), classify, task, penalty)

    def knn(self, train: Features) -> Callable[[Tensor], Tensor]:
        """The scores of features by their nearest neighbours in the train set."""
        transform: Callable[[Tensor], Tensor] = whitening(train.rows) if self.config.whiten else nn.Identity()
        bank, labels, count = transform(train.rows), train.subset.labels, len(self.train_set.dataset.classes)
        return lambda rows: knn_scores(transform(rows), bank, labels, count, neighbours=self.config.neighbours)

    def task(self, encoder: ViT) -> Task:
        """A probe that is trained on augmented images."""
        classes, augment = self.train_set.dataset.classes, augmentation(self.config)
        assert self.pool != "both"
        if self.config.kind == "partial":
            config = PartialConfig(blocks=self.config.blocks, pool=self.pool)
            return PartialFinetune.build(encoder, config, augment, classes)
        return Linear.build(encoder, LinearConfig(pool=self.pool), augment, classes)

    def trained_scores(self, name: str, task: Task) -> Features:
        """Scores after training on augmented images."""
        subset = self.train_set
        recipe = replace(self.recipe, training=self.recipe.training.with_batch_size(len(subset)))
        training = recipe.training
        size, limit = training.batch_size, self.config.max_unreadable
        seed, draw = training.seed, task.draw_early
        loader = ImageLoader(subset.dataset, indices=subset.indices, batch_size=size, seed=seed, max_unreadable=limit, draw=draw)
        screen = Screen(name, total_steps(training, loader))
        try:
            train(task, loader, recipe, screen=screen)
        finally:
            screen.close()
        tested = preprocessed(self.test_set, task.encoder.config)
        found = [
            (scores.float().cpu(), batch.keys.cpu())
            for batch, scores, _ in predictions_of(task, tested, self.recipe.hardware, self.recipe.world)
        ]
        if not found:
            name, count = self.test_set.dataset.source.name, len(self.test_set)
            raise NothingReadableError(f"none of {count:,} test images of {name} can be read")
        scores, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Features(scores, Subset(self.test_set.dataset, indices))

    def predicted_by(self, task: Task) -> Classifier:
        """The class scores of a trained task."""

        def classify(batch: Batch) -> Tensor:
            with autocast(self.recipe.hardware, self.recipe.world):
                scores: Tensor = task.predict(batch)
            return scores.float().cpu()

        return classify

    def model(self, scores: ProbeScores) -> Task | None:
        """The probe with its encoder, which `unveil.load` loads and `unveil predict` takes; None if it cannot be saved."""
        head = scores.task
        if head is None or self.config.sees_images:
            return head
        norm = self.learner.feature_norm(self.pool)
        if norm is None:
            return None
        config = LinearConfig(pool=self.pool, feature_norm=isinstance(norm, nn.LayerNorm))
        encoder = copy.deepcopy(self.learner.encoder)
        task = Linear.build(encoder, config, AugmentConfig(), self.train_set.dataset.classes)
        assert isinstance(head, Linear)
        task.head.load_state_dict(head.head.state_dict())
        task.norm.load_state_dict(norm.state_dict())
        return task.eval()


def probe(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    test: Data | None = None,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates an encoder with labels.

    Args:
        run: Anything that `unveil.load` accepts.
        data: Labelled images to train the probe on; by default those that the run was trained on.
        test: Labelled images to test on; by default the test split of `data`, or a tenth of it that is held out.
        out: A folder for the results; by default a new one, `<run>/probe-<kind>`.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `ProbeConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`. For images given in Python, `labels` may
            also be one label for each image, and `split` the name of a split for each.

    Returns:
        The contents of `results.json` in that folder: scores of the encoder, of the same encoder untrained, and of raw pixels.
        The dictionary has the attribute `folder`, and a notebook shows it as a table.

    Raises:
        UnveilError: On input that cannot be used, or if `out` has results already.
    """
    allow(trust)
    data, options = with_columns(data, options)
    if out is None:
        return probe_into(None, run, data, test, options)
    if any((Path(out) / name).exists() for name in ("results.json", "run.json")) or holds_another_model(Path(out)):
        raise UnveilError(f"{out} has results already, of a run or of a probe: choose another --out")
    with locked(Path(out), "probing into"):
        return probe_into(Path(out), run, data, test, options)


def holds_another_model(folder: Path) -> bool:
    """Whether a folder holds a model that no stopped probe has left there."""
    config = model_files.config_of(folder) or {}
    exists = any((folder / name).exists() for name in ("config.json", "model.safetensors"))
    return exists and config.get("task") not in ("linear", "partial")


def augmentation(config: ProbeConfig) -> AugmentConfig:
    """The random crops of a partial probe, and of a linear one with `views`."""
    return AugmentConfig(crop="resized" if config.kind == "partial" else "clipped", crop_scale=config.crop_scale)


def refuse_unused(config: ProbeConfig, options: Mapping[str, Any]) -> None:
    """Raises `UnveilError` for options that the kind or the protocol of a probe does not use."""
    if config.pool == "both" and config.sees_images:
        raise UnveilError(
            "pool both needs features that are computed once: leave --views and --kind partial out, or use class or mean"
        )
    if config.corrupt_images and not config.corrupt:
        raise UnveilError(f"corrupt_images is {config.corrupt_images:,}, but no image is corrupted: add --corrupt")
    if config.whiten and config.kind != "knn":
        raise UnveilError(f"whiten is for k-NN, but the kind is {config.kind}: add --kind knn")
    if config.kind == "linear" and not config.takes_steps:
        names = {each.name for each in (*fields(TrainConfig), *fields(OptimConfig))} - {"seed"}
        unused = next((name for name in options if name in names), None)
        if unused:
            raise UnveilError(f"{unused} has no effect on the quick linear probe, which L-BFGS fits: add --protocol sgd or paper")


def used_options(config: ProbeConfig, recipe: Recipe) -> dict[str, Any]:
    """The options of training that a probe has used."""
    return asdict(recipe.training) | asdict(recipe.optim) if config.takes_steps else {"seed": recipe.training.seed}


def probe_into(
    folder: Path | None, run: str | os.PathLike[str], data: Data | None, test: Data | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """`probe`, with its results in this folder or, for None, in a new one."""
    defaults = PartialFinetune.DEFAULTS if options.get("kind") == "partial" else Linear.DEFAULTS
    if options.get("protocol") == "paper":
        if options.get("kind", "linear") != "linear":
            raise UnveilError(f"protocol paper is for the linear probe, not for kind {options['kind']}: leave one of them out")
        defaults = defaults | Linear.PAPER
    config, *rest = configure({**defaults, **options}, ProbeConfig, TrainConfig, OptimConfig, HardwareConfig)
    refuse_unused(config, options)
    recipe, say = join(*rest), printer(True)
    if recipe.world.size > 1:
        raise UnveilError("a probe runs in one process: start it without torchrun")
    learner = load(run, say=say).to(recipe.world.device).eval()
    encoder = vit_of(learner)
    asked = LabelledOptions(
        split=config.split,
        test_split=config.test_split,
        augment=augmentation(config) if config.views or config.kind == "partial" else None,
        max_pixels=config.max_pixels,
        read=config.sees_images,
        say=say,
        show=True,
    )
    opened = labelled_subsets(run, data if data is not None else data_of(run), test, encoder.config, asked)
    train_set, test_set, held_out = opened.train, opened.test, opened.held_out
    adapt_to_images(encoder, train_set)
    if not config.sees_images:  # features of the pixels that `unveil embed` and `unveil predict` give the model
        train_set, test_set = reopened(encoder.config, train_set, test_set)
    if config.labels:
        train_set = few_labels(train_set, config.labels, recipe.training.seed)
    to_corrupt = images_to_corrupt(test_set, config.corrupt_images, recipe.training.seed) if config.corrupt else None
    pool = config.pool or learner.pool
    setup = Probe(config=config, recipe=recipe, learner=learner, pool=pool, train_set=train_set, test_set=test_set)
    classes, source = train_set.dataset.classes, " held-out" if held_out else ""
    count = count_of(len(train_set), "labelled image")
    if config.kind == "knn" and options.get("neighbours", 0) > len(train_set):
        raise UnveilError(f"neighbours is {config.neighbours:,}, but the train set has {count}: use a smaller number")
    say(f"{config.kind} probe on {count} of {len(classes)} classes, tested on {len(test_set):,}{source}")
    unseen = unseen_classes(train_set, test_set)
    if unseen:
        say(unseen_sentence(unseen, len(test_set)))
    skipped = SkippedFiles(train_set, test_set, None, recipe.world, say)
    encoders: dict[str, ViT | None] = {"encoder": encoder}
    scores, metrics = {}, {}
    with seeded(recipe.training.seed):
        if config.compare:
            encoders["untrained"] = ViT(encoder.config).to(recipe.world.device).eval()
            if config.kind != "partial":
                encoders["raw pixels"] = None
        for name, each in encoders.items():
            scores[name] = setup.scores(name, each, encoder)
            rows, judged = scores[name].features
            metrics[name] = classification_metrics(rows, judged.labels, votes=config.kind == "knn")
            top5 = f"   top-5 {100 * metrics[name]['top5']:5.2f} %" if len(classes) > 5 else ""
            say(f"{name:>10}   top-1 {100 * metrics[name]['top1']:5.2f} %{top5}")
    folder = folder or fresh_folder((Path(run) if Path(run).is_dir() else Path("runs")) / f"probe-{config.kind}")
    skipped.write(folder)
    results = {
        "kind": config.kind,
        "classes": list(test_set.dataset.classes),
        **({"unseen_classes": unseen} if unseen else {}),
        "trained_on": len(train_set),
        "unreadable": skipped.unreadable(),
        "kept_aside": held_out,
        "top1": {name: metric["top1"] for name, metric in metrics.items()},
        "score": metrics["encoder"],
        "config": asdict(config) | {"pool": setup.pool} | used_options(config, recipe) | asdict(recipe.hardware),
        **({"penalty": penalties} if (penalties := {name: each.penalty for name, each in scores.items() if each.penalty}) else {}),
        "run": str(run),
        "data": data_facts(train_set.dataset.source, test_set.dataset.source, opened.splits),
        **receipt(),
    }
    found = scores["encoder"].features
    write_class_scores(folder / "predictions.csv", found.subset, found.rows, votes=config.kind == "knn")
    model = setup.model(scores["encoder"])
    if model is not None:
        model_files.write_config(model, folder)
        model_files.export(model, folder / "model.safetensors")
    write_text(folder / "results.json", json_text(results))
    if to_corrupt is not None:  # results are written before, since this takes long
        classifiers = {name: each.classify for name, each in scores.items()}
        results["corruptions"] = test_on_corruptions(classifiers, to_corrupt, encoder.config, recipe, say)
        write_text(folder / "results.json", json_text(results))
    say(f"Per-class accuracy, confusion matrix and predictions: {folder}")
    if model is not None:
        say(f"To label images with it: unveil predict {folder} IMAGES")
    elif config.kind != "knn":
        say(f"The probe is not saved, because the features of {type(learner).__name__} are not those of its encoder")
    return ProbeResults(results, folder)
