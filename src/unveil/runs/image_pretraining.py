"""Pre-training on images: the plan of a run, and the run once its data is open."""

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
from unveil.data.sources import Source
from unveil.data.splits import Subset
from unveil.data.taught import Taught
from unveil.evaluate.collapse import collapse
from unveil.evaluate.features import MAX_WHITENED, NothingReadableError, features_of, refuse_non_finite
from unveil.evaluate.held_out import held_out_images, held_out_metrics
from unveil.evaluate.knn import knn_scores, whiten
from unveil.learner import Method
from unveil.methods import METHODS, method_class
from unveil.metrics import classification_metrics
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.plain_text import count_of
from unveil.ranges import Count, CountOrZero, Range, Share, Side
from unveil.runs.image_evaluation import compare_features, evaluation_subsets, save_map, save_samples
from unveil.runs.initial_weights import InitialWeights, name_of_weights
from unveil.runs.labelled_data import data_facts, recorded_classes
from unveil.runs.modality import Pretraining, PretrainPlan, slug
from unveil.runs.open_data import ImageSubsets, image_facts, open_subsets, pack_sentence, say_notes, stored_side
from unveil.runs.seen_images import sentences_on_seen_images
from unveil.runs.session import Session, options_by_name
from unveil.runs.skipped_files import SkippedFiles, refuse_earlier_numbering
from unveil.runs.teacher import Teacher, TeacherWeights
from unveil.train.log import Record
from unveil.train.recorder import Monitor


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The model, the images, and how they are read."""

    HIDDEN = (
        "channels",
        "grad_checkpointing",
        "held_out",
        "leave_out_copies",
        "max_pixels",
        "max_unreadable",
        "normalisation",
        "repeats",
        "test_split",
        "tracker",
    )
    init: str | None = None
    """Weights to start from, in any form that RUN may have; the size of the model follows from them. By default random."""
    split: str | None = None
    """Parts of DATA to train on: train, val, test, unlabeled, other (beside the splits), several as in train+val, or all; by
    default train and unlabeled."""
    test_split: str | None = None
    """The part of DATA to test on; by default test or, if that is missing or has no labels, val."""
    image_size: tuple[Side, ...] = ()
    """Side of the input images, or height and width; by default that of --init, or the size of the data, up to 224."""
    patch_size: tuple[Side, ...] = ()
    """Side of a patch, or height and width; by default that of --init, or 16, 14 for vit-huge, or an eighth of images smaller than
    128."""
    channels: Annotated[int, Range(0, 1024)] = 0
    """Channels of the images; 0 means those of the data."""
    normalisation: Literal["auto", "data"] = "auto"
    """Mean and standard deviation to normalise images: auto takes those of --init if they fit, or else ImageNet's for 8-bit grey
    and colour; data measures those of the data."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    max_unreadable: Share = 0.01
    """Stop, with a checkpoint, if a larger share of the images becomes unreadable during training."""
    held_out: CountOrZero = 1000
    """Images to hold out for evaluation if DATA has no test split; at most a tenth. Probes of this run hold out the same images."""
    leave_out_copies: bool = True
    """Leave out training images that are exact copies of held-out ones."""
    repeats: Count = 1
    """Augmented samples per decoded image (repeated augmentation). An epoch counts samples, so the number of steps is unchanged."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory for a third more time (gradient checkpointing)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class ImagePlan(PretrainPlan):
    """The plan of a pre-training run on images."""

    run_config: PretrainConfig
    augment: AugmentConfig
    roles: Roles
    init: InitialWeights | None = None
    teacher: TeacherWeights | None = None

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
    def weights(self) -> dict[str, Mapping[str, str]]:
        found = {"encoder": self.init and self.init.checksums, "teacher": self.teacher and self.teacher.checksums}
        return {name: sums for name, sums in found.items() if sums}

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
        return run_path(out, self.source, self.method, self.model, self.run_config.init)

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
            leave_out_copies=self.run_config.leave_out_copies,
        )

    def vit(self, dataset: ImageDataset) -> ViTConfig:
        """The shape of the encoder."""
        image_size, patch_size = self.sizes
        width, depth, heads = self.init.size if self.init else MODELS[self.model]
        mean, std = channel_moments(dataset) if self.run_config.normalisation == "data" else moments(dataset)
        own = ViTConfig(
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
        return self.init.config_for(own, self.run_config.normalisation) if self.init else own

    def build(self, vit: ViTConfig) -> Method:
        """An untrained learner, with its teacher if it has one. It is given the classes of DATA."""
        options, weights, recipe = self.method_config, self.teacher, self.recipe
        options = replace(options, teacher=weights.record) if weights else options
        learner = method_class(self.method).build(vit, options, self.augment)
        learner.set_classes(self.source.classes if self.source.labels is not None else ())
        if weights:
            learner.augmentation = Taught(learner.augmentation, Teacher(weights, vit, recipe.hardware, recipe.world))
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
        self.train_set, self.test_set, self.held_out, self.validation_set, note = plan.open_subsets()
        say_notes(session.say, note)
        self.cautions = [note] * bool(note and not self.held_out) + self.say_cautions()
        self.skipped = SkippedFiles(self.train_set, self.test_set, self.validation_set, session.world, session.say)
        refuse_earlier_numbering(session.run, self.train_set, self.test_set)
        self.write_skipped()
        self.vit = plan.vit(self.train_set.dataset)
        self.before: ViT | None = None
        """The encoder before training, if it does not start at random."""

    def say_cautions(self) -> list[str]:
        """Says which test images of today the weights of --init were trained on, in clauses that it returns."""
        session = self.session
        if not self.plan.init or not session.is_main:
            return []
        found = sentences_on_seen_images(session.run.path, self.plan.roles, self.test_set) or []
        for clause in found:
            session.say(clause)
        return found

    def build(self) -> Method:
        return self.plan.build(self.vit)

    def start(self, learner: Method) -> None:
        init, session = self.plan.init, self.session
        if init is None:
            return
        resumes = bool(session.run.checkpoints().steps())
        self.before = init.start(learner, (lambda text: None) if resumes else session.say)
        if session.is_main:
            init.write_copy(self.before, session.run.path, learner)

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
        baselines = {"untrained": untrained} | ({"before training": self.before} if self.before else {})
        compared = compare_features(learner, baselines, self.train_set, self.test_set, recipe)
        if len(judged):
            save_map(run.path / "map.npz", learner, judged, recipe)
        self.write_skipped()
        found: Record = {
            "images": len(self.train_set),
            "skipped": self.skipped.count,
            "unreadable": self.skipped.unreadable(),
            "held_out": held_out,
            **({"cautions": self.cautions} if self.cautions else {}),
        }
        return found | compared | {"images_seen": self.session.samples_trained, "kept_aside": self.held_out}

    def write_skipped(self) -> None:
        self.skipped.write(self.session.run.path)


def run_path(out: str | Path | None, source: Source, method: str, model: str, init: str | None) -> Path:
    """The folder of a pre-training run: `out`, or runs/<data>-<method>-<model>, or -from-<weights> if it starts from weights."""
    suffix = f"from-{name_of_weights(init)}" if init else model
    return Path(out) if out else Path("runs") / f"{slug(source.name)}-{METHODS.label(method)}-{suffix}"


def moments(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel for normalisation: ImageNet's for 8-bit grey and colour, else the data's own."""
    if dataset.dtype == torch.uint8 and dataset.channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if dataset.dtype == torch.uint8 and dataset.channels == 1:
        return (0.449,), (0.226,)
    return channel_moments(dataset)
