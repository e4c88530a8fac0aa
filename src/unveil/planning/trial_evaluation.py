"""The time that the evaluations of a run take, from a trial of each on a part of the images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from unveil.data.splits import Subset
from unveil.evaluate.features import MAX_RAW, MAX_WHITENED, evaluation_batch_size, features_of, raw_pixels
from unveil.evaluate.held_out import held_out_images, held_out_metrics
from unveil.evaluate.knn import knn_scores
from unveil.evaluate.logistic import MAX_SWEEP, LogisticRegression
from unveil.learner import Method
from unveil.runs.image_pretraining import ImagePlan
from unveil.train.log import Record
from unveil.train.recipe import Recipe

TYPICAL_STEPS, TYPICAL_SWEEP = 30, 120
"""Passes of L-BFGS over all features, and over those on which the penalty is chosen."""
MAX_TRAIN, MAX_TEST = 20_000, 10_000
"""Maximum numbers of labelled images in the final evaluation: see `unveil.runs.image_evaluation.compare_features`."""


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Numbers of images in a run."""

    train: int
    """Images to train on."""
    test: int
    """Images to test on."""
    labelled_train: int
    """Labelled images to fit the classifiers of the final evaluation."""
    labelled_test: int
    """Labelled images to test these classifiers."""
    classes: int

    @classmethod
    def of(cls, plan: ImagePlan, train_set: Subset, test_set: Subset, held_out: bool, share: float) -> "ImageCounts":
        """The counts, extrapolated if only a share of the images was read."""
        train, test = round(len(train_set) / share), round(len(test_set) / share)
        if held_out:  # from the same images, up to a limit
            total = train + test
            test = min(plan.run_config.held_out, int(0.1 * total))
            train = total - test
        labelled = ((part.labels >= 0).double().mean().item() if len(part) else 0.0 for part in (train_set, test_set))
        train_share, test_share = labelled
        labelled_train, labelled_test = min(round(train_share * train), MAX_TRAIN), min(round(test_share * test), MAX_TEST)
        both = bool(labelled_train and labelled_test)
        return cls(
            train=train,
            test=test,
            labelled_train=labelled_train * both,
            labelled_test=labelled_test * both,
            classes=max(len(train_set.dataset.classes), 2),
        )


class TimedEvaluator:
    """Evaluates the encoder like the monitors of a run, on as many images as the time allows, and records the time per image.

    At least one full batch is evaluated: it may need more memory than a training step.
    """

    def __init__(self, recipe: Recipe, train_set: Subset, test_set: Subset, counts: ImageCounts, seconds: float) -> None:
        self.recipe, self.train_set, self.test_set, self.counts, self.seconds = recipe, train_set, test_set, counts, seconds
        self.held_out = 0.0
        """Seconds of the method's own metrics on held-out images."""
        self.per_image = 0.0
        """Seconds of the features of an image."""

    def monitor(self, learner: Any) -> Record:
        """Evaluates the encoder, as a monitor of the loop."""
        vit, hardware, world = learner.encoder.config, self.recipe.hardware, self.recipe.world
        if len(self.test_set):

            def held_out(count: int) -> Record:
                batches = held_out_images(self.test_set, vit, hardware, world, count)
                return held_out_metrics(learner, batches, hardware, world)

            most = min(256, self.counts.test)
            self.held_out = most * seconds_per_item(held_out, most, self.seconds, evaluation_batch_size(world))
        self.per_image = self.feature_seconds(learner, learner.encoder.features)
        return {}

    def feature_seconds(self, learner: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Seconds per image of a function of normalised images."""
        vit, hardware, world = learner.encoder.config, self.recipe.hardware, self.recipe.world
        subset = partial(Subset, self.train_set.dataset)
        return seconds_per_item(
            lambda count: features_of(function, subset(self.train_set.indices[:count]), vit, hardware, world),
            min(2500, len(self.train_set)),
            self.seconds,
            evaluation_batch_size(world),
        )

    def monitor_seconds(self) -> float:
        """Seconds of a whole evaluation; 0 if there is none, because the learner is sharded over processes."""
        counts = self.counts
        labelled = min(counts.labelled_train, 2000) + min(counts.labelled_test, 500)
        return self.held_out + (labelled or min(counts.train, 500)) * self.per_image


def seconds_per_item(run: Callable[[int], object], most: int, seconds: float, least: int = 16) -> float:
    """Seconds per item of `run(count)`, measured with between `least` and `most` items, depending on the time."""
    few = min(most, 16)
    run(few)  # a warm-up
    start = time.monotonic()
    run(few)
    each = (time.monotonic() - start) / few
    count = min(most, max(least, int(seconds / each)))
    start = time.monotonic()
    run(count)
    return (time.monotonic() - start) / count


def time_evaluation(learner: Method, evaluator: TimedEvaluator, counts: ImageCounts, encoders: int = 2) -> float:
    """Seconds of the final evaluation of the encoder, of raw pixels, and of encoders without this training: see `encoders`."""
    vit = learner.encoder.config
    with torch.no_grad():
        evaluator.monitor(learner)
    if not counts.labelled_train:
        return evaluator.held_out + encoders * min(counts.train, 2000) * evaluator.per_image
    images = counts.labelled_train + counts.labelled_test
    features = images * (encoders * evaluator.per_image + evaluator.feature_seconds(learner, raw_pixels))
    pixels = min(MAX_RAW, vit.channels * vit.image_size[0] * vit.image_size[1])
    return evaluator.held_out + features + encoders * time_classifiers(vit.width, counts) + time_classifiers(pixels, counts)


def time_classifiers(width: int, counts: ImageCounts) -> float:
    """Seconds of k-NN and of the linear probe on features of this width, extrapolated from a few queries and a few steps.

    The table has the full number of features, up to a quarter of a GiB, since a table that fits into the caches would be read
    faster.
    """
    rows = max(64, min(counts.labelled_train, 2**26 // width))
    features, labels = torch.rand(rows, width), torch.arange(rows) % counts.classes
    queries = features[: min(counts.labelled_test, 1024)]  # the chunk size of `knn_scores`
    start = time.monotonic()
    knn_scores(queries, features, labels, counts.classes)
    per_query = (time.monotonic() - start) / len(queries)

    def fit(steps: int) -> float:
        start = time.monotonic()
        LogisticRegression(features, labels, counts.classes).fit(0.0, max_steps=steps)
        return time.monotonic() - start

    fit(1)  # a warm-up
    few, more = fit(1), fit(6)
    per_row = max(0.0, more - few) / 5 / rows
    linear = per_row * (TYPICAL_STEPS * counts.labelled_train + TYPICAL_SWEEP * min(counts.labelled_train, MAX_SWEEP))
    return per_query * counts.labelled_test * (counts.labelled_train / rows) * (2 if width <= MAX_WHITENED else 1) + linear
