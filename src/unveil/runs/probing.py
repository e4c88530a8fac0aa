"""A probe of an encoder: its options, how it is trained, and the class scores that it gives."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.loader import ImageLoader
from unveil.data.splits import Subset
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
from unveil.learner import Learner, Task
from unveil.models.vit import ViT
from unveil.ranges import Count, CountOrZero, NonNegative, Share, ShareAboveZero
from unveil.runs.open_data import preprocessed
from unveil.tasks.linear import Linear, LinearConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune
from unveil.train.log import Screen
from unveil.train.loop import total_steps, train
from unveil.train.parallel import autocast
from unveil.train.recipe import Recipe


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


def augmentation(config: ProbeConfig) -> AugmentConfig:
    """The random crops of a partial probe, and of a linear one with `views`."""
    return AugmentConfig(crop="resized" if config.kind == "partial" else "clipped", crop_scale=config.crop_scale)
