"""Runs on images: pre-training, labelled data, and the evaluation of an image encoder."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

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
from unveil.errors import UnveilError
from unveil.evaluate.collapse import collapse
from unveil.evaluate.features import evaluate_features, features_of, features_of_each, predictions_of, raw_pixels, views_of
from unveil.evaluate.held_out import held_out_images, held_out_metrics
from unveil.evaluate.knn import knn_scores
from unveil.learner import Method, Task
from unveil.methods import METHODS, method_class, method_defaults
from unveil.metrics import classification_metrics
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.options import configure, known_to
from unveil.ranges import Count, CountOrZero, Range, Share, Side
from unveil.runs.labelled_data import data_of, labelled_subsets, write_class_scores
from unveil.runs.modality import FinetuneRunConfig, LabelledData, LabelledRequest, Modality, Pretraining, PretrainPlan, slug
from unveil.runs.open_data import natural_side, open_subsets, size_option, sizes_for, stored_side
from unveil.runs.session import Session, join, options_by_name
from unveil.runs.skipped_files import SkippedFiles
from unveil.train.log import Record
from unveil.train.loop import Monitor
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The model, the images, and how they are read."""

    HIDDEN = ("max_pixels", "max_unreadable", "held_out", "repeats", "grad_checkpointing", "tracker")
    image_size: tuple[Side, ...] = ()
    """Side of the input images, or height and width; by default the size of the data, up to 224."""
    patch_size: tuple[Side, ...] = ()
    """Side of a patch, or height and width; by default 16, 14 for vit-huge, or an eighth of images smaller than 128."""
    channels: Annotated[int, Range(0, 1024)] = 0
    """Channels of the images; 0 means those of the data."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    max_unreadable: Share = 0.01
    """Stop, with a checkpoint, if a larger share of the images becomes unreadable during training."""
    held_out: CountOrZero = 1000
    """Images to hold out for evaluation if DATA has no test split; at most a tenth. Probes of this run hold out the same images."""
    repeats: Count = 1
    """Augmented samples per decoded image (repeated augmentation). An epoch counts samples, so the number of steps is unchanged."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory for a third more time (gradient checkpointing)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class ImageFinetuneConfig(FinetuneRunConfig):
    """The labelled images, and how they are read."""

    image_size: tuple[int, ...] = ()
    """Side of the images, or height and width, such as 448 for a model of 224; by default that of the model. Positions are
    interpolated."""
    HIDDEN = ("max_pixels", "max_unreadable")
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    max_unreadable: Share = 0.01
    """Stop, with a checkpoint, if a larger share of the images becomes unreadable during training."""


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
        return ImagePretraining(self, session)

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
        limit = self.run_config.max_unreadable
        return ImageLoader(
            subset.dataset, indices=subset.indices, batch_size=size, seed=seed, repeats=repeats, max_unreadable=limit
        )


class ImagePretraining(Pretraining):
    """A pre-training run on images whose data is open."""

    def __init__(self, plan: ImagePlan, session: Session) -> None:
        self.plan, self.session = plan, session
        self.train_set, self.test_set, self.held_out = plan.open_subsets()
        self.skipped = SkippedFiles([self.train_set, self.test_set], session.world, session.say)
        self.write_skipped()
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
            found: Record = collapse(train.rows)
            if queries is not None:
                test = features_of(function, queries, self.vit, hardware, world)
                scores = knn_scores(test.rows, train.rows, train.subset.labels, len(bank.dataset.classes))
                found["knn"] = classification_metrics(scores, test.subset.labels)["top1"]
            return found

        return [held_out, features]

    def evaluate(self, learner: Method, untrained: Any) -> Record:
        recipe, run = self.session.recipe, self.session.run
        save_samples(run.path / "samples.npz", self.test_set if len(self.test_set) else self.train_set, self.vit)
        batches = held_out_images(self.test_set, learner.encoder.config, recipe.hardware, recipe.world)
        held_out = held_out_metrics(learner, batches, recipe.hardware, recipe.world)
        compared = compare_features(learner, untrained, self.train_set, self.test_set, recipe)
        self.write_skipped()
        found: Record = {
            "images": len(self.train_set),
            "skipped": self.skipped.count,
            "unreadable": self.skipped.unreadable(),
            "held_out": held_out,
        }
        return found | compared | {"images_seen": self.session.samples_trained, "kept_aside": self.held_out}

    def write_skipped(self) -> None:
        self.skipped.write(self.session.run.path)


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
    vit, classes = learner.encoder.config, bank.dataset.classes
    encoders = {"encoder": learner.encoder, "untrained": untrained.to(recipe.world.device).eval()}
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(encoder.features, pool=learner.pool) for name, encoder in encoders.items()
    }
    functions |= {"raw pixels": raw_pixels} if queries else {}
    train, bank = features_of_each(list(functions.values()), bank, vit, recipe.hardware, recipe.world)
    spread = {name: collapse(rows) for name, rows in zip(functions, train, strict=True) if name in encoders}
    found: Record = {"spread": spread, "width": vit.width}
    if not queries:
        return found
    test, queries = features_of_each(list(functions.values()), queries, vit, recipe.hardware, recipe.world)
    accuracy = {
        name: evaluate_features(rows, bank.labels, test_rows, queries.labels, classes)
        for name, rows, test_rows in zip(functions, train, test, strict=True)
    }
    return found | {"features": accuracy, "judged_on": {"train": len(bank), "test": len(queries), "classes": len(classes)}}


def save_samples(path: Path, subset: Subset, vit: ViTConfig, count: int = 8) -> None:
    """Saves a few normalised images for the report."""
    views = views_of(subset.spread_out(count), vit)
    np.savez(path, images=views.rows.numpy(), names=np.array(views.subset.names))


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

    def __init__(self, train_set: Subset, test_set: Subset, held_out: bool, world: World, max_unreadable: float) -> None:
        self.train_set, self.test_set, self.held_out, self.max_unreadable = train_set, test_set, held_out, max_unreadable
        self.classes = train_set.dataset.classes
        self.skipped = SkippedFiles([train_set, test_set], world, printer(world.is_main))

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
        train, limit = self.train_set, self.max_unreadable
        return ImageLoader(train.dataset, indices=train.indices, batch_size=size, seed=seed, max_unreadable=limit)

    def predictions(self, task: Task, recipe: Recipe, most: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
        subset = self.test_set
        if most is not None:
            subset = subset.labelled(most) if task.TargetType is ClassTargets else subset.spread_out(most)
        return predictions_of(task, subset, recipe.hardware, recipe.world)

    def evaluate(self, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Class scores are written as a table with one row per image; of class maps, a few are kept for the report."""
        metric, scores, maps, read = task.metric(), list[Tensor](), list[list[Tensor]](), list[Tensor]()
        shown = self.test_set.spread_out(8).indices
        for batch, predictions, targets in self.predictions(task, recipe):
            metric.update(predictions, targets)
            read.append(batch.keys.cpu())
            if isinstance(targets, ClassTargets):
                scores.append(predictions.float().cpu())
            elif isinstance(targets, PixelTargets):
                rows = torch.isin(batch.keys, shown.to(batch.keys.device)).nonzero()[:, 0]
                parts = (batch.keys, batch.images.float(), targets.maps, predictions.argmax(dim=1))
                maps.append([part[rows].cpu() for part in parts])
        if not read:
            raise UnveilError(f"none of {len(self.test_set):,} test images of {self.test_set.dataset.source.name} can be read")
        judged = Subset(self.test_set.dataset, torch.cat(read))
        if scores:
            write_class_scores(folder / "predictions.csv", judged, torch.cat(scores))
        if maps:
            indices, images, true, predicted = (torch.cat(parts) for parts in zip(*maps, strict=True))
            names = np.array(Subset(judged.dataset, indices).names)
            arrays = {"images": images.numpy(), "maps": true.numpy(), "predicted": predicted.numpy()}
            np.savez(folder / "samples.npz", names=names, **arrays)
        return metric.compute()

    def write_skipped(self, session: Session) -> None:
        self.skipped.write(session.run.path)

    def unreadable(self) -> dict[str, int]:
        return self.skipped.unreadable()


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

    def resized(self, encoder: ViT, config: ImageFinetuneConfig) -> ViT:
        size = size_option(config.image_size, "image_size")
        return encoder if size in (None, encoder.config.image_size) else encoder.resized(size)

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
        return LabelledImages(train_set, test_set, held_out, request.recipe.world, request.config.max_unreadable)

    def has_labels(self, data: Data) -> bool:
        labels = open_both(data)[0].labels
        return labels is not None and bool((labels >= 0).any())


IMAGES = ImageModality()
