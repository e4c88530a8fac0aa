"""Labelled images for fine-tuning: a train set and a test set, and the predictions on it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.data.loader import ImageLoader
from unveil.data.splits import Subset
from unveil.data.targets import ClassTargets, PixelTargets
from unveil.evaluate.features import NothingReadableError, predictions_of
from unveil.learner import Task
from unveil.models.vit import ViT
from unveil.runs.labelled_data import LabelledSubsets, data_facts, unseen_classes, write_arrays, write_class_scores
from unveil.runs.modality import LabelledData
from unveil.runs.open_data import adapt_to_images, preprocessed
from unveil.runs.session import Session
from unveil.runs.skipped_files import SkippedFiles, refuse_earlier_numbering
from unveil.train.parallel import World
from unveil.train.recipe import Recipe
from unveil.train.terminal import printer


class LabelledImages(LabelledData):
    """Images with labels: a train set and a test set."""

    noun = "images"

    def __init__(self, opened: LabelledSubsets, world: World, max_unreadable: float) -> None:
        self.train_set, self.test_set, self.held_out, self.validation_set, self.splits = opened
        self.max_unreadable = max_unreadable
        self.classes = self.train_set.dataset.classes
        self.skipped = SkippedFiles(self.train_set, self.test_set, self.validation_set, world, printer(world.is_main))

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.train_set), len(self.test_set)

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

    def predictions(self, task: Task, recipe: Recipe, most: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
        subset = self.test_set
        if most is not None:
            subset = self.validation_set or subset
            subset = subset.labelled(most) if task.TargetType is ClassTargets else subset.spread_out(most)
        return predictions_of(task, subset, recipe.hardware, recipe.world)

    def evaluate(self, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Class scores are written as a table with one row per image; of class maps, a few are kept for the report."""
        metric, scores, maps, read = task.metric(), list[Tensor](), list[list[Tensor]](), list[Tensor]()
        shown = self.test_set.spread_out(8).indices
        if task.TargetType is PixelTargets:  # maps follow the crops of the training
            found = self.predictions(task, recipe)
        else:  # as `unveil predict` computes them: from the file on, in float32
            exact = replace(recipe.hardware, precision="float32")
            found = predictions_of(task, preprocessed(self.test_set, task.encoder.config), exact, recipe.world)
        for batch, predictions, targets in found:
            metric.update(predictions, targets)
            read.append(batch.keys.cpu())
            if isinstance(targets, ClassTargets):
                scores.append(predictions.float().cpu())
            elif isinstance(targets, PixelTargets):
                rows = torch.isin(batch.keys, shown.to(batch.keys.device)).nonzero()[:, 0]
                parts = (batch.keys, batch.images.float(), targets.maps, predictions.argmax(dim=1))
                maps.append([part[rows].cpu() for part in parts])
        if not read:
            name, count = self.test_set.dataset.source.name, len(self.test_set)
            raise NothingReadableError(f"none of {count:,} test images of {name} can be read")
        judged = Subset(self.test_set.dataset, torch.cat(read))
        if scores:
            write_class_scores(folder / "predictions.csv", judged, torch.cat(scores))
        if maps:
            indices, images, true, predicted = (torch.cat(parts) for parts in zip(*maps, strict=True))
            names = np.array(Subset(judged.dataset, indices).names)
            arrays = {"images": images.numpy(), "maps": true.numpy(), "predicted": predicted.numpy()}
            write_arrays(folder / "samples.npz", {"names": names, **arrays})
        return metric.compute()

    def write_skipped(self, session: Session) -> None:
        refuse_earlier_numbering(session.run, self.train_set, self.test_set)
        self.skipped.write(session.run.path)

    def unreadable(self) -> dict[str, int]:
        return self.skipped.unreadable()
