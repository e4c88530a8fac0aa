"""Runs on images: pre-training, labelled data, and the evaluation of an image encoder."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from unveil.data.channel_moments import channel_moments
from unveil.data.dataset import ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.parts import Roles
from unveil.data.pixels import ShrinkTo
from unveil.data.sources import Data, Source, open_both, open_roles
from unveil.data.splits import Subset, few_labels
from unveil.data.targets import ClassTargets
from unveil.evaluate.collapse import collapse
from unveil.evaluate.features import MAX_WHITENED, NothingReadableError, features_of, refuse_non_finite
from unveil.evaluate.held_out import held_out_images, held_out_metrics
from unveil.evaluate.knn import knn_scores, whiten
from unveil.learner import Method, Task
from unveil.methods import METHODS, method_class, method_defaults
from unveil.metrics import classification_metrics
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.options import check_options, configure, known_to
from unveil.plain_text import count_of
from unveil.ranges import Count, CountOrZero, Range, Share, Side
from unveil.runs.image_evaluation import compare_features, evaluation_subsets, save_map, save_samples
from unveil.runs.labelled_data import LabelledOptions, data_facts, data_of, labelled_subsets, recorded_classes
from unveil.runs.labelled_images import LabelledImages
from unveil.runs.modality import FinetuneRunConfig, LabelledRequest, Modality, Pretraining, PretrainPlan, slug
from unveil.runs.open_data import (
    ImageSubsets,
    image_facts,
    natural_side,
    open_subsets,
    pack_sentence,
    say_notes,
    size_option,
    sizes_for,
    stored_side,
)
from unveil.runs.session import Session, join, options_by_name
from unveil.runs.skipped_files import SkippedFiles, refuse_earlier_numbering
from unveil.train.log import Record
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.recorder import Monitor
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The model, the images, and how they are read."""

    HIDDEN = ("test_split", "max_pixels", "max_unreadable", "held_out", "repeats", "grad_checkpointing", "tracker")
    split: str | None = None
    """Parts of DATA to train on: train, val, test, unlabeled, other (beside the splits), several as in train+val, or all; by
    default train and unlabeled."""
    test_split: str | None = None
    """The part of DATA to test on; by default test or, if that is missing or has no labels, val."""
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

    image_size: tuple[Side, ...] = ()
    """Side of the images, or height and width, such as 448 for a model of 224; by default that of the model. Positions are
    interpolated."""
    HIDDEN = ("test_split", "max_pixels", "max_unreadable")
    split: str | None = None
    """Parts of DATA to train on: train, val, test, unlabeled, other (beside the splits), several as in train+val, or all; by
    default train."""
    test_split: str | None = None
    """The part of DATA to test on; by default test or, if that is missing or has no labels, val."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    max_unreadable: Share = 0.01
    """Stop, with a checkpoint, if a larger share of the images becomes unreadable during training."""


DIGITS_DEFAULTS = {
    "crop": "none",
    "target": "pixel",
    "mask_ratio": 0.6,
    "decoder_depth": 1,
    "epochs": 3.5,
    "batch_size": 16,
    "base_lr": 2.4e-2,
    "num_evals": 3,
}
"""Defaults for the embedded digits: 64 patches of 4 pixels, and many small steps, which train in a minute on two cores."""


@dataclass(frozen=True, kw_only=True)
class ImagePlan(PretrainPlan):
    """The plan of a pre-training run on images."""

    run_config: PretrainConfig
    augment: AugmentConfig
    roles: Roles

    @property
    def source(self) -> Source:
        """The images to train on."""
        return self.roles.train

    @property
    def test_source(self) -> Source | None:
        """The images to test on; None if some are to be held out."""
        return self.roles.test

    @property
    def config(self) -> dict[str, Any]:
        recipe = self.recipe
        groups = (self.run_config, self.method_config, self.augment, recipe.training, recipe.optim, recipe.hardware)
        return {**METHODS.describe(method_class(self.method)), "model": self.model} | options_by_name(*groups)

    @property
    def facts(self) -> dict[str, Any]:
        return data_facts(self.source, self.test_source, self.roles.splits)

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Image and patch size."""
        (height, width), (rows, columns) = self.run_config.image_size, self.run_config.patch_size
        return (height, width), (rows, columns)

    @property
    def side(self) -> ShrinkTo:
        """How far images are shrunk when they are read."""
        return stored_side(self.sizes[0], self.augment)

    def path(self, out: str | Path | None) -> Path:
        return Path(out) if out else Path("runs") / f"{slug(self.source.name)}-{METHODS.label(self.method)}-{self.model}"

    def open(self, session: Session) -> "ImagePretraining":
        roles = self.roles.numbered_as(recorded_classes(session.run.path))
        return ImagePretraining(replace(self, roles=roles), session)

    def open_subsets(self) -> ImageSubsets:
        """See `unveil.runs.open_data.open_subsets`."""
        return open_subsets(
            self.roles,
            side=self.side,
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
            **image_facts(dataset, image_size),
            grad_checkpointing=self.run_config.grad_checkpointing,
        )

    def build(self, vit: ViTConfig) -> Method:
        """An untrained learner. It is given the classes of DATA."""
        learner = method_class(self.method).build(vit, self.method_config, self.augment)
        learner.set_classes(self.source.classes if self.source.labels is not None else ())
        return learner

    def loader(self, subset: Subset, learner: Method) -> ImageLoader:
        """The images of a subset in the order of the run, for a learner."""
        size, seed, repeats = self.recipe.training.batch_size, self.recipe.training.seed, self.run_config.repeats
        return ImageLoader(
            subset.dataset,
            indices=subset.indices,
            batch_size=size,
            seed=seed,
            repeats=repeats,
            max_unreadable=self.run_config.max_unreadable,
            draw=learner.draw_early,
        )


class ImagePretraining(Pretraining):
    """A pre-training run on images whose data is open."""

    def __init__(self, plan: ImagePlan, session: Session) -> None:
        self.plan, self.session = plan, session
        say_notes(session.say, plan.roles.sentence, plan.source)
        say_notes(session.say, pack_sentence(plan.source, plan.side))
        self.train_set, self.test_set, self.held_out, self.validation_set = plan.open_subsets()
        self.skipped = SkippedFiles(self.train_set, self.test_set, self.validation_set, session.world, session.say)
        refuse_earlier_numbering(session.run, self.train_set, self.test_set)
        self.write_skipped()
        self.vit = plan.vit(self.train_set.dataset)

    def build(self) -> Method:
        return self.plan.build(self.vit)

    def loader(self, learner: Method) -> ImageLoader:
        return self.plan.loader(self.train_set.labelled() if learner.classes else self.train_set, learner)

    def summary(self, learner: Method) -> str:
        parameters = sum(p.numel() for p in learner.encoder.parameters())
        (height, width), (rows, columns) = self.plan.sizes
        count = count_of(len(self.train_set), "image")
        return (
            f"{type(learner).__name__} with {self.plan.model} ({parameters / 1e6:.1f} M parameters) on {count} "
            f"of {self.plan.source.name}, {height} x {width} px in patches of {rows} x {columns}"
        )

    def monitors(self) -> list[Monitor]:
        hardware, world = self.session.recipe.hardware, self.session.world
        validation_set = self.validation_set or self.test_set  # the test set is evaluated once, if there is another one
        bank, queries = evaluation_subsets(self.train_set, validation_set, 2000, 500)

        def held_out(learner: Any) -> Record:
            judged = validation_set.labelled() if learner.classes else validation_set
            return held_out_metrics(learner, held_out_images(judged, self.vit, hardware, world), hardware, world)

        def features(learner: Any) -> Record:
            function = partial(learner.encoder.features, pool=learner.pool)
            train = features_of(function, bank, self.vit, hardware, world)
            refuse_non_finite(train, "the encoder")
            found: Record = collapse(train.rows)
            if queries is not None:
                with suppress(NothingReadableError):  # of a small test set
                    test = features_of(function, queries, self.vit, hardware, world)
                    pairs = {"knn": (train.rows, test.rows)}
                    if train.rows.shape[1] <= MAX_WHITENED:
                        pairs["whitened"] = whiten(train.rows, test.rows)
                    for name, (rows, queried) in pairs.items():
                        scores = knn_scores(queried, rows, train.subset.labels, len(bank.dataset.classes))
                        found[name] = classification_metrics(scores, test.subset.labels)["top1"]
            return found

        return [held_out, features]

    def evaluate(self, learner: Method, untrained: Any) -> Record:
        recipe, run = self.session.recipe, self.session.run
        save_samples(run.path / "samples.npz", self.test_set if len(self.test_set) else self.train_set, self.vit)
        judged = self.test_set.labelled() if learner.classes else self.test_set
        batches = held_out_images(judged, learner.encoder.config, recipe.hardware, recipe.world)
        held_out = held_out_metrics(learner, batches, recipe.hardware, recipe.world)
        compared = compare_features(learner, untrained, self.train_set, self.test_set, recipe)
        if len(judged):
            save_map(run.path / "map.npz", learner, judged, recipe)
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


def moments(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel for normalisation: ImageNet's for 8-bit grey and colour, else the data's own."""
    if dataset.dtype == torch.uint8 and dataset.channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if dataset.dtype == torch.uint8 and dataset.channels == 1:
        return (0.449,), (0.226,)
    return channel_moments(dataset)


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
        check_options(options, *self.configs(method))
        return self.plan_for(self.open(data, options), data, method, model, options)

    def open(self, data: Data, options: Mapping[str, Any]) -> Roles:
        """Lists DATA for pre-training. An unlabeled part is trained on by default."""
        return open_roles(data, split=options.get("split"), test_split=options.get("test_split"), unlabeled=True)

    def plan_for(
        self, opened: Roles, data: Data, method: str | type[Method], model: str | None, options: Mapping[str, Any]
    ) -> ImagePlan:
        """`plan` for DATA that was opened already."""
        defaults, configs = self.defaults(data, method), self.configs(method)
        default_model = defaults.pop("model")
        model = self.check_model(model or default_model)
        config, method_config, augment, *rest = configure(defaults | dict(options), *configs)
        recipe = join(*rest)
        image_size, patch_size = sizes_for(
            natural_side(opened.train, config.max_pixels), config.image_size, config.patch_size, model == "vit-huge"
        )
        return ImagePlan(
            method=METHODS.find(method),
            model=model,
            method_config=method_config,
            recipe=recipe,
            run_config=replace(config, image_size=image_size, patch_size=patch_size),
            augment=augment,
            roles=opened,
        )

    def finetune_configs(self, task: type[Task]) -> tuple[type, ...]:
        return (ImageFinetuneConfig, task.Config, AugmentConfig)

    def resized(self, encoder: ViT, config: ImageFinetuneConfig) -> ViT:
        size = size_option(config.image_size, "image_size")
        return encoder if size in (None, encoder.config.image_size) else encoder.resized(size)

    def untrained(self, encoder: ViT) -> ViT:
        return ViT(encoder.config)

    def labelled(
        self, run: str | os.PathLike[str], data: Data | None, test: Data | None, request: LabelledRequest
    ) -> LabelledImages:
        config, world = request.config, request.recipe.world
        options = LabelledOptions(
            targets=request.task.TargetType,
            split=config.split,
            test_split=config.test_split,
            classes=request.classes,
            augment=request.augment,
            max_pixels=config.max_pixels,
            say=printer(world.is_main),
            show=world.is_main,
        )
        opened = labelled_subsets(run, data if data is not None else data_of(run), test, request.encoder, options)
        if config.labels and request.task.TargetType is ClassTargets:
            opened = opened._replace(train=few_labels(opened.train, config.labels, request.recipe.training.seed))
        elif config.labels:
            opened = opened._replace(train=opened.train.at_random(config.labels, request.recipe.training.seed))
        return LabelledImages(opened, world, config.max_unreadable)

    def has_labels(self, data: Data) -> bool:
        return open_both(data)[0].is_labelled


IMAGES = ImageModality()
