"""The modality of images: options, plans of pre-training, and labelled data."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unveil.data.augment import AugmentConfig
from unveil.data.mask_values import MaskConfig
from unveil.data.parts import Roles
from unveil.data.sources import Data, open_both, open_roles
from unveil.data.splits import Subset, few_labels, stratified_split
from unveil.data.targets import PER_IMAGE, ClassTargets
from unveil.errors import UnveilError
from unveil.interop.encoder_only import image_config_of
from unveil.learner import Method, Task
from unveil.methods import METHODS, method_class, method_defaults
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS
from unveil.options import check_options, configure, known_to
from unveil.plain_text import count_of
from unveil.ranges import Count, Share, Side
from unveil.runs.image_pretraining import ImagePlan, PretrainConfig, run_path
from unveil.runs.initial_weights import open_initial_weights
from unveil.runs.labelled_data import LabelledOptions, LabelledSubsets, data_of, labelled_subsets
from unveil.runs.labelled_images import LabelledImages
from unveil.runs.modality import MAX_VALIDATION, FinetuneRunConfig, LabelledRequest, Modality
from unveil.runs.open_data import natural_side, open_each, size_option, sizes_for, without_copies
from unveil.runs.sample_stream import ImageStream
from unveil.runs.session import join
from unveil.runs.teacher import open_teacher_of
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, join_processes
from unveil.train.recipe import TrainConfig
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class ImageFinetuneConfig(FinetuneRunConfig):
    """The labelled images, and how they are read."""

    image_size: tuple[Side, ...] = ()
    """Side of the images, or height and width, such as 448 for a model of 224; by default that of the model. Positions are
    interpolated."""
    HIDDEN = ("test_split", "max_pixels", "max_unreadable", "leave_out_copies")
    split: str | None = None
    """Parts of DATA to train on: train, val, test, unlabeled, other (beside the splits), several as in train+val, or all; by
    default train."""
    test_split: str | None = None
    """The part of DATA to test on; by default test or, if that is missing or has no labels, val."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    max_unreadable: Share = 0.01
    """Stop, with a checkpoint, if a larger share of the images becomes unreadable during training."""
    leave_out_copies: bool = True
    """Leave out training images that are exact copies of test images held out, or of validation images."""


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


def with_validation(opened: LabelledSubsets, config: ImageFinetuneConfig, request: LabelledRequest) -> LabelledSubsets:
    """The images with a validation set, unless it is turned off.

    It is the validation split of DATA, at most `MAX_VALIDATION` of it, or else a share of the training images.
    """
    train, validation = opened.train, opened.validation
    with_classes, may_lack = request.task.TargetType is ClassTargets, issubclass(request.task.TargetType, PER_IMAGE)
    if config.validation == 0:
        return opened._replace(validation=None)
    if validation is not None:
        validation = validation.labelled(MAX_VALIDATION) if may_lack else validation.spread_out(MAX_VALIDATION)
    elif share := config.kept_aside(len(train)):
        labels = train.labels if with_classes else torch.zeros(len(train), dtype=torch.int64)
        rest, aside = stratified_split(labels, share, request.recipe.training.seed, train.groups)
        train, validation = Subset(train.dataset, train.indices[rest]), Subset(train.dataset, train.indices[aside])
        if not len(validation) and config.validation:
            raise UnveilError(
                f"validation is {share:g}, but of {count_of(len(opened.train), 'training image')} that is no whole image of any "
                f"class, so none would be kept aside. Use a larger share, or 0 for none"
            )
        if config.leave_out_copies:
            train = without_copies(train, validation)
    return opened._replace(train=train, validation=validation if validation is not None and len(validation) else None)


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

    def plan(
        self,
        data: Data,
        method: str | type[Method],
        model: str | None,
        options: Mapping[str, Any],
        *,
        out: str | Path | None = None,
        resume_from: str | Path | None = None,
    ) -> ImagePlan:
        check_options(options, *self.configs(method))
        opened = self.open(data, options)
        return self.plan_for(opened, data, method, model, options, folders=(out, resume_from))

    def open(self, data: Data, options: Mapping[str, Any]) -> Roles:
        """Lists DATA for pre-training. An unlabeled part is trained on by default."""
        return open_roles(data, split=options.get("split"), test_split=options.get("test_split"), unlabeled=True)

    def plan_for(
        self,
        opened: Roles,
        data: Data,
        method: str | type[Method],
        model: str | None,
        options: Mapping[str, Any],
        folders: tuple[str | Path | None, str | Path | None] = (None, None),
    ) -> ImagePlan:
        """`plan` for DATA that was opened already; `folders` are `out` and `resume_from`."""
        defaults, configs = self.defaults(data, method), self.configs(method)
        default_model = defaults.pop("model")
        (config, *_, hardware), (out, other) = configure(defaults | dict(options), *configs), folders
        say = printer(join_processes(hardware).is_main)
        init = None
        if config.init:
            path = run_path(out, opened.train, METHODS.find(method), "", config.init)
            init = open_initial_weights(config.init, path, (Path(other),) if other else (), say)
            init.refuse_other_model(model)
            defaults |= init.options(method_class(method), options)
        model = init.model if init else self.check_model(model or default_model)
        config, method_config, augment, *rest = configure(defaults | dict(options), *configs)
        recipe = join(*rest)
        if init:
            vit = init.vit
            config = replace(config, image_size=config.image_size or vit.image_size, patch_size=config.patch_size or vit.patch_size)
        side = 0 if init else natural_side(opened.train, config.max_pixels)
        image_size, patch_size = sizes_for(side, config.image_size, config.patch_size, model == "vit-huge")
        return ImagePlan(
            init=init,
            teacher=open_teacher_of(method_config, say),
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
        config, world, task = request.config, request.recipe.world, request.task
        whole = task.whole_images
        options = LabelledOptions(
            targets=task.TargetType,
            masks=request.task_config if isinstance(request.task_config, MaskConfig) else MaskConfig(),
            whole=whole,
            side=task.training_side(request.task_config, request.augment, request.encoder.image_size) if whole else None,
            split=config.split,
            test_split=config.test_split,
            classes=request.classes,
            augment=request.augment,
            max_pixels=config.max_pixels,
            leave_out_copies=config.leave_out_copies,
            scratch=config.scratch,
            read=request.read,
            say=printer(world.is_main),
            show=world.is_main,
        )
        opened = labelled_subsets(run, data if data is not None else data_of(run), test, request.encoder, options)
        if config.labels and request.task.TargetType is ClassTargets:
            opened = opened._replace(train=few_labels(opened.train, config.labels, request.recipe.training.seed))
        elif config.labels:
            opened = opened._replace(train=opened.train.at_random(config.labels, request.recipe.training.seed))
        return LabelledImages(with_validation(opened, config, request), world, config.max_unreadable)

    def stream(self, learner: Any, data: Data, *, split: str | None, max_pixels: int) -> ImageStream:
        vit = image_config_of(learner)
        parts = open_each(data, split, vit, max_pixels=max_pixels, adapt=False, whole=learner.whole_images)
        return ImageStream(parts, vit, whole=learner.whole_images)

    def label_count(self, data: Data) -> int:
        return int(open_both(data)[0].has_label.sum())


IMAGES = ImageModality()
