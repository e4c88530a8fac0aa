"""Labelled images for fine-tuning: a train set and a test set, and the predictions on it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.class_map_files import class_colours
from unveil.data.loader import ImageLoader
from unveil.data.mask_meaning import listed
from unveil.data.mask_values import MaskValues
from unveil.data.splits import Subset
from unveil.data.targets import PER_IMAGE, BoxTargets, ClassTargets, MultiLabelTargets, NumberTargets, PixelTargets, Targets
from unveil.errors import UnveilError
from unveil.evaluate.features import (
    Features,
    NothingReadableError,
    features_of,
    independent_count,
    predictions_of,
    refuse_non_finite,
    views_of,
)
from unveil.evaluate.label_fits import fit_labels, fit_ridge
from unveil.evaluate.logistic import fit_logistic
from unveil.learner import Task
from unveil.metrics import Metric
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import count_of
from unveil.runs.box_samples import BoxSamples
from unveil.runs.labelled_data import LabelledSubsets, data_facts, unseen_classes, write_arrays, write_class_scores
from unveil.runs.map_samples import MapSamples
from unveil.runs.modality import LabelledData, ProbedHeads
from unveil.runs.open_data import adapt_to_images, preprocessed
from unveil.runs.session import Session
from unveil.runs.skipped_files import SkippedFiles, refuse_earlier_numbering
from unveil.runs.value_predictions import judged as compared
from unveil.runs.value_predictions import worst, write_values
from unveil.segmentation_metrics import MeanIoU
from unveil.train.parallel import World
from unveil.train.recipe import Recipe
from unveil.train.terminal import printer

MAX_PROBED = 50_000
"""Maximum number of images that the initial head is fitted to."""
START_PENALTY = 0.3
"""Penalty of the probe from which training starts. The large weights of the best probe pass large gradients on to the encoder:
with them, fine-tuning ended at 36 % instead of 46 % (LAB.md)."""
MAX_MISTAKES = 12
"""Maximum number of mistakes that the report shows as images."""


class LabelledImages(LabelledData):
    """Images with labels: a train set, a test set, and perhaps others to validate on."""

    noun = "images"
    train_set: Subset
    test_set: Subset
    validation_set: Subset | None

    def __init__(self, opened: LabelledSubsets, world: World, max_unreadable: float) -> None:
        self.train_set, self.test_set, self.held_out, self.validation_set, self.splits, self.cautions = opened
        self.max_unreadable, self.say = max_unreadable, printer(world.is_main)
        self.classes = self.train_set.dataset.classes
        objects = self.train_set.dataset.source.objects
        if objects is not None and len(self.train_set) and not objects.counts[self.train_set.indices.numpy()].any():
            count = count_of(len(self.train_set), "training image")
            raise UnveilError(f"{self.train_set.dataset.source.name}: none of {count} has an object, so there is nothing to learn")
        self.skipped = SkippedFiles(self.train_set, self.test_set, self.validation_set, world, self.say)

    @property
    def class_counts(self) -> Int[Tensor, " K"]:
        labels = self.train_set.labels
        return torch.bincount(labels[labels >= 0], minlength=len(self.classes))

    @property
    def mask_values(self) -> MaskValues | None:
        return self.train_set.dataset.source.mask_values

    @property
    def category_ids(self) -> Mapping[str, Any] | None:
        objects = self.train_set.dataset.source.objects
        return None if objects is None else objects.category_ids

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of objects: whether they have masks, and room for a half more than the most in a training image, if it has over 100."""
        objects = self.train_set.dataset.source.objects
        if objects is None:
            return {}
        most = int(objects.counts[self.train_set.indices.numpy()].max(initial=0))
        return {"masks": objects.segments is not None, "detections": 100 if most <= 100 else 100 * -(-3 * most // 200)}

    @property
    def train_targets(self) -> Targets | None:
        source = self.train_set.dataset.source
        return None if source.map_reader or source.objects is not None else self.train_set.targets

    @property
    def about(self) -> str:
        source = self.train_set.dataset.source
        if source.objects is not None:
            count = int(source.objects.counts[self.train_set.indices.numpy()].sum())
            return f"with {count_of(count, 'object')} of {count_of(len(self.classes), 'class', 'classes')}"
        if source.values is None:
            return super().about
        name = count_of(len(self.classes), "label") if source.values.ndim == 2 else self.classes[0]
        return f"with {name}" if source.values.ndim == 2 else f"with the number {name}"

    def primary_of(self, metric: Metric, *, validation: bool = False) -> str:
        chosen = (self.validation_set if validation else None) or self.test_set
        objects = chosen.dataset.source.objects
        return metric.primary_for(has_masks=objects is not None and objects.segments is not None)

    def probed_heads(self, task: Task, recipe: Recipe) -> ProbedHeads:
        hardware, world = recipe.hardware, recipe.world
        some = preprocessed(self.train_set.labelled(MAX_PROBED), task.encoder.config)  # as `unveil probe` sees them
        rows, subset = features_of(task.eval().features, some, task.encoder.config, hardware, world)
        refuse_non_finite(Features(rows, subset), "the encoder")
        targets, groups, seed = subset.targets, subset.groups, recipe.training.seed
        if isinstance(targets, NumberTargets):
            values = targets.values
            return ProbedHeads(
                fit_ridge(rows, values, groups=groups), fit_ridge(rows, values, penalties=(START_PENALTY * len(rows),))
            )
        if isinstance(targets, MultiLabelTargets):
            values = targets.values
            return ProbedHeads(
                fit_labels(rows, values, groups=groups, seed=seed), fit_labels(rows, values, penalties=(START_PENALTY,))
            )
        labels, classes = subset.labels, self.classes
        probe, _ = fit_logistic(rows, labels, classes, groups=groups, seed=seed)
        start, _ = fit_logistic(rows, labels, classes, penalties=(START_PENALTY,))
        return ProbedHeads(probe.head.folded(), start.head.folded())

    @property
    def facts(self) -> dict[str, Any]:
        train, test = self.train_set.dataset.source, self.test_set.dataset.source
        return data_facts(train, test, self.splits) | {"test": test.name}

    @property
    def unseen(self) -> dict[str, int]:
        return unseen_classes(self.train_set, self.test_set)

    @property
    def test_classes(self) -> Sequence[str]:
        return self.test_set.dataset.classes

    def adapt(self, encoder: ViT) -> None:
        adapt_to_images(encoder, self.train_set)

    def loader(self, recipe: Recipe, learner: Task) -> ImageLoader:
        size, seed = recipe.training.batch_size, recipe.training.seed
        train, limit, draw = self.train_set, self.max_unreadable, learner.draw_early
        return ImageLoader(train.dataset, indices=train.indices, batch_size=size, seed=seed, max_unreadable=limit, draw=draw)

    def predictions(self, task: Task, recipe: Recipe, *, validation: bool = False) -> Iterator[tuple[Any, Any, Any]]:
        if validation:
            assert self.validation_set is not None
            return predictions_of(task, self.validation_set, recipe.hardware, recipe.world)
        exact = replace(recipe.hardware, precision="float32")  # as `unveil predict` computes them: from the file on, in float32
        if task.whole_images:
            return predictions_of(task, self.test_set, exact, recipe.world)
        if task.TargetType in (PixelTargets, BoxTargets):  # they follow the crops of the training
            return predictions_of(task, self.test_set, recipe.hardware, recipe.world)
        return predictions_of(task, preprocessed(self.test_set, task.encoder.config), exact, recipe.world)

    def evaluate(self, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Class scores are written as a table with one row per image; of class maps, a few are kept for the report."""
        metric, scores, maps, read = task.metric(), list[Tensor](), list[list[Tensor]](), list[Tensor]()
        shown = self.test_set.spread_out(8).indices
        samples, objects = MapSamples(len(self.classes), shown), BoxSamples(self.classes, shown)
        for batch, predictions, targets in self.predictions(task, recipe):
            metric.update(predictions, targets)
            read.append(batch.keys.cpu())
            if isinstance(targets, PER_IMAGE):
                scores.append(predictions.float().cpu())
            elif isinstance(targets, PixelTargets) and task.whole_images:
                samples.add(batch, predictions, targets.maps)
            elif isinstance(targets, BoxTargets) and task.whole_images:
                objects.add(batch, predictions, targets)
            elif isinstance(targets, PixelTargets):
                rows = torch.isin(batch.keys, shown.to(batch.keys.device)).nonzero()[:, 0]
                parts = (batch.keys, batch.images.float(), targets.maps, predictions.argmax(dim=1))
                maps.append([part[rows].cpu() for part in parts])
        if not read:
            name, count = self.test_set.dataset.source.name, len(self.test_set)
            raise NothingReadableError(f"none of {count:,} test images of {name} can be read")
        judged = Subset(self.test_set.dataset, torch.cat(read))
        if scores and judged.dataset.source.values is not None:
            predicted = torch.cat(scores)
            truth = compared(task, judged, predicted)
            write_values(folder / "predictions.csv", judged, predicted, truth, task)
            rows = worst(truth, MAX_MISTAKES)
            labels, guesses = ([column[row] for row in rows.tolist()] for column in (truth.true, truth.predicted))
            write_images(
                folder / "mistakes.npz", judged, rows, task.encoder.config, labels, guesses, {truth.measure: truth.error[rows]}
            )
        elif scores:
            write_class_scores(folder / "predictions.csv", judged, torch.cat(scores))
            write_mistakes(folder / "mistakes.npz", judged, torch.cat(scores), task.encoder.config)
        objects.write(folder, judged)
        samples.write(folder, judged, getattr(task, "colours", class_colours(len(self.classes))))
        if isinstance(metric, MeanIoU) and metric.absent:
            count, absent = len(metric.absent), listed(metric.absent)
            verb = "has" if count == 1 else "have"
            self.say(
                f"{count_of(count, 'class', 'classes')} {verb} no pixel in the test set, so no IoU, or 0 if predicted: {absent}"
            )
        if maps:
            indices, images, true, predicted = (torch.cat(parts) for parts in zip(*maps, strict=True))
            names = np.array(Subset(judged.dataset, indices).names)
            arrays = {"images": images.numpy(), "maps": true.numpy(), "predicted": predicted.numpy()}
            write_arrays(folder / "samples.npz", {"names": names, **arrays})
        found = metric.compute()
        if scores and judged.groups is not None and isinstance(judged.targets, ClassTargets):
            correct = torch.cat(scores).argmax(dim=1) == judged.labels
            found["independent"] = max(1, round(independent_count(correct, judged.groups)))
        return found

    def write_skipped(self, session: Session) -> None:
        refuse_earlier_numbering(session.run, self.train_set, self.test_set)
        self.skipped.write(session.run.path)

    def unreadable(self) -> dict[str, int]:
        return self.skipped.unreadable()


def write_mistakes(path: Path, subset: Subset, scores: Tensor, vit: ViTConfig) -> None:
    """Saves the images with the most confident wrong predictions, for the report: an empty file of none if all are correct.

    Args:
        path: The .npz file.
        subset: Images with a class.
        scores: Their class scores (n, K).
        vit: The size and normalisation of the images.
    """
    probability, guess = scores.softmax(dim=1).max(dim=1)
    wrong = (guess != subset.labels).nonzero()[:, 0]
    rows = wrong[probability[wrong].argsort(descending=True, stable=True)[:MAX_MISTAKES]]
    classes = subset.dataset.classes
    true, predicted = ([classes[i] for i in each[rows].tolist()] for each in (subset.labels, guess))
    write_images(path, subset, rows, vit, true, predicted, {"probability": probability[rows]})


def write_images(
    path: Path,
    subset: Subset,
    rows: Tensor,
    vit: ViTConfig,
    true: Sequence[str],
    predicted: Sequence[str],
    measured: dict[str, Tensor],
) -> None:
    """Saves images with what is right and what is predicted, and a number for each by its name; nothing if there are none."""
    path.unlink(missing_ok=True)
    if not len(rows):
        return
    with suppress(NothingReadableError):
        views = views_of(Subset(subset.dataset, subset.indices[rows]), vit)
        found = torch.isin(subset.indices[rows], views.subset.indices)
        texts = {"true": true, "predicted": predicted}
        arrays = {name: np.array(values)[found.numpy()] for name, values in texts.items()}
        numbers = {name: values[found].numpy() for name, values in measured.items()}
        names = np.array(views.subset.names)
        write_arrays(path, {"images": views.rows.numpy(), "names": names, **arrays, **numbers})
