"""What a run of pre-training is before it begins: every knob settled, DATA listed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from unveil.data.dataset import ImageDataset, channel_moments
from unveil.data.loader import ImageLoader
from unveil.data.sources import Data, Source, open_both
from unveil.errors import UnveilError
from unveil.learner import Method
from unveil.methods import method_class, defaults_of
from unveil.models.vit import MODELS, ViTConfig
from unveil.options import configure, known_to
from unveil.runs.open_data import Subset, natural_side, open_parts, sizes_for, stored_side
from unveil.train.loop import TrainConfig
from unveil.train.optim import OptimConfig
from unveil.train.parallel import World, HardwareConfig, join_processes, resolve_precision


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train, and on what."""

    image_size: tuple[int, ...] = ()
    """Side of the images that the encoder takes, or height and width; by default what the data has, up to 224."""
    patch_size: tuple[int, ...] = ()
    """Side of a patch, or height and width; by default 16, 14 for vit-huge, and an eighth of images smaller than 128."""
    channels: int = 0
    """Channels of the images; 0 takes what the data has."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""
    held_out: int = 1000
    """Images kept aside to judge on where DATA has no test split; at most a tenth of them. Probes of this run take the same."""
    repeats: int = 1
    """Samples that are made of an image when it is read, each with its own crop and mask: fewer images are read in a step.
    `epochs` go on to count samples, so a run takes as many steps, and passes over the images less often."""
    recompute: bool = False
    """Gradient checkpointing: less memory, a third more time."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


DIGITS = {
    "crop": "none",
    "target": "pixel",
    "mask_ratio": 0.6,
    "decoder_depth": 1,
    "epochs": 7.5,
    "batch_size": 64,
    "base_lr": 8e-3,
    "monitor_times": 4,
}
"""What differs by default for the embedded digits, whose 64 patches of 4 pixels say little: a minute on two cores."""


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """A run before it begins: every knob settled and DATA listed, with no image kept and nothing written."""

    method: str
    model: str
    own: PretrainConfig
    settings: Any
    """The knobs of the method."""
    augment: AugmentConfig
    training: TrainConfig
    optim: OptimConfig
    hardware: HardwareConfig
    world: World
    source: Source
    test_source: Source | None

    @property
    def config(self) -> dict[str, Any]:
        """Every option, by name, as `run.json` has it."""
        groups = (self.own, self.settings, self.augment, self.training, self.optim, self.hardware)
        return {"method": self.method, "model": self.model} | {k: v for group in groups for k, v in asdict(group).items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What the data is: name, count, fingerprint."""
        facts = {"name": self.source.name, "count": len(self.source.names), "fingerprint": self.source.fingerprint}
        if self.test_source:
            facts |= {"test_count": len(self.test_source.names), "test_fingerprint": self.test_source.fingerprint}
        return facts

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Image and patch size."""
        (height, width), (rows, columns) = self.own.image_size, self.own.patch_size
        return (height, width), (rows, columns)

    def path(self, out: str | Path | None) -> Path:
        """The run folder."""
        return Path(out) if out else Path("runs") / f"{slug(self.source.name)}-{self.method}-{self.model}"

    def open_parts(self) -> tuple[Subset, Subset, bool]:
        """See `unveil.runs.open_data.open_parts`."""
        return open_parts(
            self.source,
            self.test_source,
            side=stored_side(self.sizes[0]),
            channels=self.own.channels or None,
            pixel_limit=self.own.pixel_limit,
            share=0.1,
            most=self.own.held_out,
            show=self.world.is_main,
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
            recompute=self.own.recompute,
        )

    def build(self, vit: ViTConfig) -> Method:
        """An untrained learner, which has been told the classes of DATA."""
        learner = method_class(self.method).build(vit, self.settings, self.augment)
        learner.set_classes(self.source.classes if self.source.labels is not None else ())
        return learner

    def loader(self, dataset: Subset) -> ImageLoader:
        """The images in the order of the run."""
        size, seed, repeats = self.training.batch_size, self.training.seed, self.own.repeats
        return ImageLoader(dataset.dataset, places=dataset.places, batch_size=size, seed=seed, repeats=repeats)


def resolve(
    data: Data, method: str, model: str | None, options: Mapping[str, Any], opened: tuple[Source, Source | None] | None = None
) -> PretrainPlan:
    """Settles every knob by what DATA and the hardware are; `opened` are its parts, where they are listed already.

    Raises:
        UnveilError: On input that cannot be used.
    """
    usual = usual_for(data, method)
    model = model or usual["model"]
    if model not in MODELS:
        raise UnveilError(f"there is no model {model!r}: use one of {', '.join(MODELS)}")
    configs = configs_of(method)
    own, settings, augment, training, optim, hardware = configure(known_to(usual, *configs) | dict(options), *configs)
    world = join_processes(hardware)
    source, test_source = opened or open_both(data)
    image_size, patch_size = sizes_for(natural_side(source, own.pixel_limit), own.image_size, own.patch_size, model == "vit-huge")
    return PretrainPlan(
        method=method,
        model=model,
        own=replace(own, image_size=image_size, patch_size=patch_size),
        settings=settings,
        augment=augment,
        training=training,
        optim=optim,
        hardware=resolve_precision(hardware, world),
        world=world,
        source=source,
        test_source=test_source,
    )


def configs_of(method: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the options of pre-training with a method."""
    return (PretrainConfig, method_class(method).Config, AugmentConfig, TrainConfig, OptimConfig, HardwareConfig)


def usual_for(data: Data, method: str) -> dict[str, Any]:
    """Defaults that hang on DATA and the method: the model, those of the embedded digits, those of the method."""
    if isinstance(data, str) and data.startswith("digits"):
        return {"model": "vit-nano"} | known_to(DIGITS, *configs_of(method)) | defaults_of(method)
    return {"model": "vit-base"} | defaults_of(method)


def moments(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel to normalise with: ImageNet's for 8-bit grey and colour, else the data's own."""
    if dataset.dtype == torch.uint8 and dataset.channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if dataset.dtype == torch.uint8 and dataset.channels == 1:
        return (0.449,), (0.226,)
    return channel_moments(dataset)


def slug(name: str) -> str:
    """A short name of DATA for a folder."""
    last = name.rstrip("/").rsplit("/", 1)[-1].split("{")[0]
    for suffix in (".tar.gz", ".tgz", ".tar", ".zip"):
        last = last.removesuffix(suffix)
    return last.strip("-_. ") or "images"
