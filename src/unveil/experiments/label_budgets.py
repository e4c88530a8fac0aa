"""Models that are trained with a few, more and all of the labels, and which test images they classify correctly."""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.splits import Subset, balanced_indices
from unveil.errors import UnveilError
from unveil.evaluate.features import Features, features_by, features_of, raw_pixels, refuse_non_finite
from unveil.evaluate.logistic import fit_logistic
from unveil.experiments.calls import Call
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.learner import Learner
from unveil.models.vit import ViT
from unveil.plain_text import csv_cell
from unveil.runs.open_data import adapt_to_images, reopened
from unveil.train.guards import seeded
from unveil.train.parallel import World
from unveil.train.recipe import Recipe


class Correct(NamedTuple):
    """Which test images a model classifies correctly, after training with some labels and a seed."""

    names: list[str]
    """As `predictions.csv` writes them."""
    right: NDArray[np.bool_]
    """(I,)"""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What models are trained on, and tested on."""

    train_set: Subset
    """All labelled training images."""
    test_set: Subset
    counts: tuple[int, ...]
    """Numbers of labels, in ascending order."""
    recipe: Recipe
    unread: dict[str, int] = field(default_factory=dict)
    """How many training and test images could not be read, once features have been computed."""

    def chosen(self, subset: Subset, count: int, seed: int) -> Tensor:
        """The rows of the training images whose labels are used, among those of a subset that could be read."""
        every = self.train_set.indices
        if count < len(every):
            every = every[balanced_indices(self.train_set.labels, count, seed)]  # as `unveil finetune --labels`
        return torch.isin(subset.indices, every).nonzero()[:, 0]

    def probed(self, function: Callable[[Tensor], Tensor], shape: ViT, seeds: Sequence[int]) -> Iterator[tuple[int, int, Correct]]:
        """Fits linear classifiers to features that are computed once, and yields labels, seed and what is correct.

        Args:
            function: From normalised images to features.
            shape: The encoder whose image size and normalisation are used.
            seeds: The seeds to fit with.
        """
        train, test = (self.features(function, subset, shape) for subset in self.adapted(shape))
        self.unread["training"] = len(self.train_set) - len(train.subset)
        self.unread["test"] = len(self.test_set) - len(test.subset)
        device = self.recipe.world.device
        for count in self.counts:
            for seed in seeds:
                rows = self.chosen(train.subset, count, seed)
                groups = train.subset.groups
                task, _ = fit_logistic(
                    train.rows[rows].to(device),
                    train.subset.labels[rows],
                    self.train_set.dataset.classes,
                    groups=None if groups is None else groups[rows],
                    seed=seed,
                )
                with torch.no_grad():
                    guess = task.logits(test.rows.to(device)).argmax(dim=1).cpu()
                yield count, seed, Correct([csv_cell(name) for name in test.subset.names], (guess == test.subset.labels).numpy())

    def features(self, function: Callable[[Tensor], Tensor], subset: Subset, shape: ViT) -> Features:
        found = features_of(function, subset, shape.config, self.recipe.hardware, self.recipe.world)
        refuse_non_finite(found, "the encoder")
        return found

    def adapted(self, shape: ViT) -> list[Subset]:
        """The train and the test set as an encoder takes them."""
        adapt_to_images(shape, self.train_set)
        return reopened(shape.config, self.train_set, self.test_set)

    def tuned(
        self, weights: str | os.PathLike[str], path: Path, data: Any, test: Any, count: int, seed: int, options: Mapping[str, Any]
    ) -> Call:
        """The call that fine-tunes an encoder, or trains it from scratch if the options say so.

        Args:
            weights: The encoder.
            path: The run folder.
            data: Labelled images.
            test: Labelled test images, if they are not a part of `data`.
            count: The number of labels.
            seed: Draws them, and everything else in the run.
            options: Of `finetune`.
        """
        labels = count if count < len(self.train_set) else 0
        return Call("finetune", (weights, data), {"test": test, "out": path, "seed": seed, "labels": labels, **options})


def frozen_model(
    weights: str | os.PathLike[str], world: World, say: Callable[[str], None]
) -> tuple[Callable[[Tensor], Tensor], ViT]:
    """The features of an encoder, and the encoder itself."""
    learner = load(weights, say=say).to(world.device).eval()
    encoder = vit_of(learner)
    owner: Learner | ViT = learner
    return partial(features_by, owner, learner.pool), encoder


def untrained_model(weights: str | os.PathLike[str], seed: int, world: World) -> tuple[Callable[[Tensor], Tensor], ViT]:
    """The features of an encoder of the same shape with random weights."""
    learner = load(weights, say=lambda text: None)
    with seeded(seed):
        encoder = ViT(vit_of(learner).config).to(world.device).eval()
    return partial(features_by, encoder, learner.pool), encoder


def raw_model(weights: str | os.PathLike[str], world: World) -> tuple[Callable[[Tensor], Tensor], ViT]:
    """The pixels of images of the size that an encoder takes."""
    return raw_pixels, vit_of(load(weights, say=lambda text: None)).to(world.device).eval()


def saved_predictions(folder: Path) -> Correct:
    """What a run of fine-tuning has written of its test images. Raises `UnveilError` if that is damaged."""
    path = folder / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names, right = [row["file"] for row in rows], [row["label"] == row["predicted"] for row in rows]
        if not rows:
            raise KeyError("no rows")
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UnveilError(
            f"{path} is damaged ({type(error).__name__}): remove the folder {folder}, and run the command again"
        ) from None
    return Correct(names, np.array(right))


def label_counts(total: int, classes: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Numbers of labels for shares of all of them: at least one for each class, without repetitions."""
    return tuple(sorted({min(total, max(classes, round(share * total))) for share in shares}))
