"""Runs on images: pre-training, labelled data, and the evaluation of an image encoder."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from unveil.data.dataset import ImageDataset, channel_moments
from unveil.data.loader import ImageLoader
from unveil.data.sources import Data, Source, open_both
from unveil.data.splits import Subset, few_labels
from unveil.data.targets import ClassTargets, PixelTargets
from unveil.evaluate.collapse import collapse
from unveil.evaluate.features import evaluate_features, features_of, predictions_of, raw_pixels, views_of
from unveil.evaluate.held_out import held_out_images, held_out_metrics
from unveil.evaluate.knn import knn_scores
from unveil.learner import Method, Task
from unveil.methods import METHODS, method_class, method_defaults
from unveil.metrics import classification_metrics
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.options import configure, known_to
from unveil.runs.labelled_data import data_of, labelled_subsets, write_class_scores
from unveil.runs.modality import FinetuneRunConfig, LabelledData, LabelledRequest, Modality, Pretraining, PretrainPlan, slug
from unveil.runs.open_data import natural_side, open_subsets, sizes_for, skipped_lines, stored_side, write_skipped
from unveil.runs.session import Session, join, options_by_name
from unveil.train.log import Record
from unveil.train.loop import Monitor
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import Recipe, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The model, the images, and how they are read."""

    HIDDEN = ("max_pixels", "held_out", "repeats", "grad_checkpointing", "tracker")
    image_size: tuple[int, ...] = ()
    """Side of the input images, or height and width; by default the size of the data, up to 224."""
    patch_size: tuple[int, ...] = ()
    """Side of a patch, or height and width; by default 16, 14 for vit-huge, or an eighth of images smaller than 128."""
    channels: int = 0
    """Channels of the images; 0 means those of the data."""
    max_pixels: int = 64_000_000
    """Files with more pixels than this are not decoded."""
    held_out: int = 1000
    """Images to hold out for evaluation if DATA has no test split; at most a tenth. Probes of this run hold out the same images."""
    repeats: int = 1
    """Augmented samples per decoded image (repeated augmentation). An epoch counts samples, so the number of steps is unchanged."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory for a third more time (gradient checkpointing)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class ImageFinetuneConfig(FinetuneRunConfig):
    """The labelled images, and how they are read."""

    HIDDEN = ("max_pixels",)
    max_pixels: int = 64_000_000
    """Files with more pixels than this are not decoded."""


DIGITS_DEFAULTS = {
    "crop": "none",
    "target": "pixel",
    "mask_ratio": 0.6,
    "decoder_depth": 1,
    "epochs": 7.5,
    "batch_size": 64,
    "base_lr": 8e-3,
    "num_evals": 4,
}
"""Defaults for the embedded digits: 64 patches of 4 pixels, which train in a minute on two cores."""


@dataclass(frozen=True, kw_only=True)
class ImagePlan(PretrainPlan):
    """The plan of a pre-training run on images."""

    run_config: PretrainConfig
    augment: AugmentConfig
    source: Source
    test_source: Source | None

    @property
    def config(self) -> dict[str, Any]:
        recipe = self.recipe
        groups = (self.run_config, self.method_config, self.augment, recipe.training, recipe.optim, recipe.hardware)
        return {**METHODS.describe(method_class(self.method)), "model": self.model} | options_by_name(*groups)

    @property
    def facts(self) -> dict[str, Any]:
        facts = {"name": self.source.name, "count": len(self.source), "fingerprint": self.source.fingerprint}
        if self.test_source:
            facts |= {"test_count": len(self.test_source), "test_fingerprint": self.test_source.fingerprint}
        return facts

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Image and patch size."""
        (height, width), (rows, columns) = self.run_config.image_size, self.run_config.patch_size
        return (height, width), (rows, columns)

    def path(self, out: str | Path | None) -> Path:
        return Path(out) if out else Path("runs") / f"{slug(self.source.name)}-{METHODS.label(self.method)}-{self.model}"

    def open(self, session: Session) -> "ImagePretraining":
        opened = ImagePretraining(self, session)
        write_skipped(session.run.path, [opened.train_set, opened.test_set], session.world, session.say)
        return opened

    def open_subsets(self) -> tuple[Subset, Subset, bool]:
        """See `unveil.runs.open_data.open_subsets`."""
        return open_subsets(
            self.source,
            self.test_source,
            side=stored_side(self.sizes[0]),
            channels=self.run_config.channels or None,
            max_pixels=self.run_config.max_pixels,
            most=self.run_config.held_out,
            show=self.recipe.world.is_main,
        )

    def vit(self, dataset: ImageDataset) -> ViTConfig:
        """The shape of the encoder."""
        (width, depth, heads), (image_size, patch_size), (mean, std) = MODELS[self.model], self.sizes, moments(dataset)
        return ViTConfig(
            width=width,
            depth=depth,
            heads=heads,
            image_size=image_size,
            patch_size=patch_size,
            channels=len(mean),
            mean=mean,
            std=std,
            grad_checkpointing=self.run_config.grad_checkpointing,
        )

    def build(self, vit: ViTConfig) -> Method:
        """An untrained learner. It is given the classes of DATA."""
        learner = method_class(self.method).build(vit, self.method_config, self.augment)
        learner.set_classes(self.source.classes if self.source.labels is not None else ())
        return learner

    def loader(self, subset: Subset) -> ImageLoader:
        """The images of a subset in the order of the run."""
        size, seed, repeats = self.recipe.training.batch_size, self.recipe.training.seed, self.run_config.repeats
        return ImageLoader(subset.dataset, indices=subset.indices, batch_size=size, seed=seed, repeats=repeats)


class ImagePretraining(Pretraining):
    """A pre-training run on images whose data is open."""

    def __init__(self, plan: ImagePlan, session: Session) -> None:
        self.plan, self.session = plan, session
        self.train_set, self.test_set, self.held_out = plan.open_subsets()
        self.vit = plan.vit(self.train_set.dataset)

    def build(self) -> Method:
        return self.plan.build(self.vit)

    def loader(self, learner: Method) -> ImageLoader:
        return self.plan.loader(self.train_set.labelled() if learner.classes else self.train_set)

    def summary(self, learner: Method) -> str:
        parameters = sum(p.numel() for p in learner.encoder.parameters())
        (height, width), (rows, columns) = self.plan.sizes
        return (
            f"{type(learner).__name__} with {self.plan.model} ({parameters / 1e6:.1f} M parameters) on {len(self.train_set):,} "
            f"images of {self.plan.source.name}, {height} x {width} px in patches of {rows} x {columns}"
        )

    def monitors(self) -> list[Monitor]:
        hardware, world = self.session.recipe.hardware, self.session.world
        bank, queries = evaluation_subsets(self.train_set, self.test_set, 2000, 500)

        def held_out(learner: Any) -> Record:
            return held_out_metrics(learner, held_out_images(self.test_set, self.vit, hardware, world), hardware, world)

        def features(learner: Any) -> Record:
            function = partial(learner.encoder.features, pool=learner.pool)
            train = features_of(function, bank, self.vit, hardware, world)
            found: Record = collapse(train)
            if queries is not None:
                test = features_of(function, queries, self.vit, hardware, world)
                scores = knn_scores(test, train, bank.labels, len(bank.dataset.classes))
                found["knn"] = classification_metrics(scores, queries.labels)["top1"]
            return found

        return [held_out, features]

    def evaluate(self, learner: Method, untrained: Any) -> Record:
        recipe, run = self.session.recipe, self.session.run
        save_samples(run.path / "samples.npz", self.test_set if len(self.test_set) else self.train_set, self.vit)
        write_skipped(run.path, [self.train_set, self.test_set], recipe.world, lambda text: None)
        batches = held_out_images(self.test_set, learner.encoder.config, recipe.hardware, recipe.world)
        found: Record = {
            "images": len(self.train_set),
            "skipped": len(skipped_lines(self.train_set, self.test_set)),
            "held_out": held_out_metrics(learner, batches, recipe.hardware, recipe.world),
        }
        found |= compare_features(learner, untrained, self.train_set, self.test_set, recipe)
        return found | {"images_seen": self.session.samples_trained, "kept_aside": self.held_out}


def evaluation_subsets(train_set: Subset, test_set: Subset, train: int, test: int) -> tuple[Subset, Subset | None]:
    """Labelled images to fit classifiers on, and others to test them on. Without labels: any images, and None."""
    bank, queries = train_set.labelled(train), test_set.labelled(test)
    return (bank, queries) if len(bank) and len(queries) else (train_set.spread_out(min(test, 2000)), None)


def compare_features(
    learner: Method, untrained: ViT, train_set: Subset, test_set: Subset, recipe: Recipe, most: int = 20_000
) -> Record:
    """Measures of the features of the encoder: their variation and, with labels, their k-NN and linear accuracy.

    The untrained encoder and, with labels, raw pixels are evaluated as baselines.
    """
    bank, queries = evaluation_subsets(train_set, test_set, most, most // 2)
    vit, accuracy, spread, classes = learner.encoder.config, {}, {}, bank.dataset.classes
    encoders = {"encoder": learner.encoder, "untrained": untrained.to(recipe.world.device).eval()}
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(encoder.features, pool=learner.pool) for name, encoder in encoders.items()
    }
    for name, function in (functions | ({"raw pixels": raw_pixels} if queries else {})).items():
        train = features_of(function, bank, vit, recipe.hardware, recipe.world)
        if name in encoders:
            spread[name] = collapse(train)
        if queries:
            test = features_of(function, queries, vit, recipe.hardware, recipe.world)
            accuracy[name] = evaluate_features(train, bank.labels, test, queries.labels, classes)
    found: Record = {"spread": spread, "width": vit.width}
    if queries:
        found |= {"features": accuracy, "judged_on": {"train": len(bank), "test": len(queries), "classes": len(classes)}}
    return found


def save_samples(path: Path, subset: Subset, vit: ViTConfig, count: int = 8) -> None:
    """Saves a few normalised images for the report."""
    chosen = subset.spread_out(count)
    np.savez(path, images=views_of(chosen, vit).numpy(), names=np.array(chosen.names))


def moments(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel for normalisation: ImageNet's for 8-bit grey and colour, else the data's own."""
    if dataset.dtype == torch.uint8 and dataset.channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if dataset.dtype == torch.uint8 and dataset.channels == 1:
        return (0.449,), (0.226,)
    return channel_moments(dataset)


class LabelledImages(LabelledData):
    """Images with labels: a train set and a test set."""

    noun = "images"

    def __init__(self, train_set: Subset, test_set: Subset, held_out: bool) -> None:
        self.train_set, self.test_set, self.held_out = train_set, test_set, held_out
        self.classes = train_set.dataset.classes

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.train_set), len(self.test_set)

    @property
    def facts(self) -> dict[str, Any]:
        train, test = self.train_set.dataset.source, self.test_set.dataset.source
        return {
            "name": train.name,
            "count": len(train.names),
            "fingerprint": train.fingerprint,
            "test": test.name,
            "test_count": len(test.names),
            "test_fingerprint": test.fingerprint,
        }

    def loader(self, recipe: Recipe) -> ImageLoader:
        size, seed = recipe.training.batch_size, recipe.training.seed
        return ImageLoader(self.train_set.dataset, indices=self.train_set.indices, batch_size=size, seed=seed)

    def predictions(self, task: Task, recipe: Recipe, most: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
        subset = self.test_set
        if most is not None:
            subset = subset.labelled(most) if task.TargetType is ClassTargets else subset.spread_out(most)
        return predictions_of(task, subset, recipe.hardware, recipe.world)

    def evaluate(self, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Class scores are written as a table with one row per image; of class maps, a few are kept for the report."""
        metric, scores, maps, done = task.metric(), list[Tensor](), list[list[Tensor]](), 0
        shown = torch.linspace(0, len(self.test_set) - 1, min(8, len(self.test_set))).long()
        for batch, predictions, targets in self.predictions(task, recipe):
            metric.update(predictions, targets)
            if isinstance(targets, ClassTargets):
                scores.append(predictions.float().cpu())
            elif isinstance(targets, PixelTargets):
                rows = (shown[(shown >= done) & (shown < done + len(predictions))] - done).to(predictions.device)
                maps.append([part[rows].cpu() for part in (batch.images.float(), targets.maps, predictions.argmax(dim=1))])
            done += len(predictions)
        if scores:
            write_class_scores(folder / "predictions.csv", self.test_set, torch.cat(scores))
        if maps:
            images, true, predicted = (torch.cat(parts).numpy() for parts in zip(*maps, strict=True))
            names = np.array(self.test_set.names)[shown.numpy()]
            np.savez(folder / "samples.npz", names=names, images=images, maps=true, predicted=predicted)
        return metric.compute()

    def write_skipped(self, session: Session) -> None:
        write_skipped(session.run.path, [self.train_set, self.test_set], session.world, session.say)


class ImageModality(Modality):
    """The modality of images."""

    noun = "images"
    models = MODELS
    default_model = "vit-base"
    default_task = "finetune"

    def configs(self, method: str | type[Method]) -> tuple[type, ...]:
        return (PretrainConfig, method_class(method).Config, AugmentConfig, TrainConfig, OptimConfig, HardwareConfig)

    def defaults(self, data: Data, method: str | type[Method]) -> dict[str, Any]:
        if isinstance(data, str) and data.startswith("digits"):
            return {"model": "vit-nano"} | known_to(DIGITS_DEFAULTS, *self.configs(method)) | method_defaults(method)
        return super().defaults(data, method)

    def plan(self, data: Data, method: str | type[Method], model: str | None, options: Mapping[str, Any]) -> ImagePlan:
        return self.plan_for(open_both(data), data, method, model, options)

    def plan_for(
        self,
        opened: tuple[Source, Source | None],
        data: Data,
        method: str | type[Method],
        model: str | None,
        options: Mapping[str, Any],
    ) -> ImagePlan:
        """`plan` for DATA that was opened already."""
        defaults, configs = self.defaults(data, method), self.configs(method)
        default_model = defaults.pop("model")
        model = self.check_model(model or default_model)
        config, method_config, augment, *rest = configure(defaults | dict(options), *configs)
        recipe = join(*rest)
        source, test_source = opened
        image_size, patch_size = sizes_for(
            natural_side(source, config.max_pixels), config.image_size, config.patch_size, model == "vit-huge"
        )
        return ImagePlan(
            method=METHODS.find(method),
            model=model,
            method_config=method_config,
            recipe=recipe,
            run_config=replace(config, image_size=image_size, patch_size=patch_size),
            augment=augment,
            source=source,
            test_source=test_source,
        )

    def finetune_configs(self, task: type[Task]) -> tuple[type, ...]:
        return (ImageFinetuneConfig, task.Config, AugmentConfig)

    def untrained(self, encoder: ViT) -> ViT:
        return ViT(encoder.config)

    def labelled(self, run: str | Path, data: Data | None, test: Data | None, request: LabelledRequest) -> LabelledImages:
        train_set, test_set, held_out = labelled_subsets(
            run,
            data if data is not None else data_of(run),
            test,
            request.encoder,
            targets=request.task.TargetType,
            max_pixels=request.config.max_pixels,
            show=request.recipe.world.is_main,
        )
        if request.config.labels and request.task.TargetType is ClassTargets:
            train_set = few_labels(train_set, request.config.labels, request.recipe.training.seed)
        elif request.config.labels:
            train_set = train_set.at_random(request.config.labels, request.recipe.training.seed)
        return LabelledImages(train_set, test_set, held_out)

    def has_labels(self, data: Data) -> bool:
        labels = open_both(data)[0].labels
        return labels is not None and bool((labels >= 0).any())


IMAGES = ImageModality()
