"""Pre-training: from a folder of pictures to an encoder, with proof that it learned."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unveil.blocks.chance import sample_keys
from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, view
from unveil.data.batch import Batch
from unveil.data.cache import Pictures, channel_moments
from unveil.data.feed import PictureFeed
from unveil.data.sources import Data, Source, open_both
from unveil.errors import UnveilError
from unveil.interop import native
from unveil.learner import Method
from unveil.methods import method_class
from unveil.models.vit import MODELS, ViT, ViTConfig
from unveil.options import configure, known_to
from unveil.recipes.features import features_of, judge_features, raw_pixels, views_of
from unveil.recipes.fitting import fit
from unveil.recipes.reading import Part, natural_side, open_parts, sizes_for, skipped_lines, stored_side, write_skipped
from unveil.reports.page import write_page
from unveil.reports.table import terminal_table
from unveil.tasks.knn import knn_scores
from unveil.tasks.score import score
from unveil.train.bill import Clock, cost_line, cost_of_run
from unveil.train.log import Record
from unveil.train.loop import Monitor, TrainConfig, total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig, autocast, join, leave, settled
from unveil.train.run import Run, open_run, show, tell
from unveil.train.state import load_model_state
from unveil.train.trial import give_back


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train, and on what."""

    image_size: tuple[int, ...] = ()
    """Side of the pictures that the encoder takes, or height and width; by default what the data has, up to 224."""
    patch_size: tuple[int, ...] = ()
    """Side of a patch, or height and width; by default 16, 14 for vit-huge, and an eighth of pictures smaller than 128."""
    channels: int = 0
    """Channels of the pictures; 0 takes what the data has."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""
    held_out: int = 1000
    """Pictures kept aside to judge on where DATA has no test split; at most a tenth of them. Probes of this run take the same."""
    recompute: bool = False
    """Gradient checkpointing: less memory, a third more time."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


DIGITS = {
    "crop": "none", "target": "pixel", "mask_ratio": 0.6, "decoder_depth": 1, "epochs": 7.5, "batch_size": 64, "base_lr": 8e-3,
    "monitor_times": 4,
}  # fmt: skip
"""What differs by default for the embedded digits, whose 64 patches of 4 pixels say little: a minute on two cores."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run before it begins: every knob settled and DATA listed, with no picture kept and nothing written."""

    method: str
    model: str
    own: PretrainConfig
    settings: Any
    """The knobs of the method."""
    augment: AugmentConfig
    training: TrainConfig
    optim: OptimConfig
    hardware: SpreadConfig
    place: Place
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
        """Picture and patch size."""
        (height, width), (rows, columns) = self.own.image_size, self.own.patch_size
        return (height, width), (rows, columns)

    def path(self, out: str | Path | None) -> Path:
        """The run folder."""
        return Path(out) if out else Path("runs") / f"{called(self.source.name)}-{self.method}-{self.model}"

    def open_parts(self) -> tuple[Part, Part, bool]:
        """See `unveil.recipes.reading.open_parts`."""
        return open_parts(
            self.source, self.test_source, side=stored_side(self.sizes[0]), channels=self.own.channels or None,
            pixel_limit=self.own.pixel_limit, share=0.1, most=self.own.held_out, show=self.place.lead,
        )  # fmt: skip

    def vit(self, pictures: Pictures) -> ViTConfig:
        """The shape of the encoder."""
        (width, depth, heads), (image_size, patch_size), (mean, std) = MODELS[self.model], self.sizes, moments(pictures)
        return ViTConfig(
            width=width, depth=depth, heads=heads, image_size=image_size, patch_size=patch_size, channels=len(mean),
            mean=mean, std=std, recompute=self.own.recompute,
        )  # fmt: skip

    def build(self, vit: ViTConfig) -> Method:
        """An untrained learner."""
        return method_class(self.method).build(vit, self.settings, self.augment)

    def feed(self, pictures: Part) -> PictureFeed:
        """The pictures in the order of the run."""
        size, seed = self.training.batch_size, self.training.seed
        return PictureFeed(pictures.pictures, places=pictures.places, batch_size=size, seed=seed)


def settle(
    data: Data, method: str, model: str | None, options: Mapping[str, Any], opened: tuple[Source, Source | None] | None = None
) -> Setting:
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
    place = join(hardware)
    source, test_source = opened or open_both(data)
    image_size, patch_size = sizes_for(natural_side(source, own.pixel_limit), own.image_size, own.patch_size, model == "vit-huge")
    return Setting(
        method=method, model=model, own=replace(own, image_size=image_size, patch_size=patch_size), settings=settings,
        augment=augment, training=training, optim=optim, hardware=settled(hardware, place), place=place,
        source=source, test_source=test_source,
    )  # fmt: skip


def configs_of(method: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the options of pre-training with a method."""
    return (PretrainConfig, method_class(method).Config, AugmentConfig, TrainConfig, OptimConfig, SpreadConfig)


def usual_for(data: Data, method: str) -> dict[str, Any]:
    """Defaults that hang on DATA: the model, and those of the embedded digits."""
    embedded = isinstance(data, str) and data.startswith("digits")
    return {"model": "vit-nano"} | known_to(DIGITS, *configs_of(method)) if embedded else {"model": "vit-base"}


def pretrain(
    data: Data = "digits", *, method: str = "mae", model: str | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Trains an encoder on pictures without labels, or goes on with a run that was stopped.

    Args:
        data: See `unveil.data.sources.FORMS`; or an array (N, H, W, C) of uint8 or uint16.
        method: A name from `unveil.methods.METHODS`.
        model: A name from `unveil.models.vit.MODELS`; vit-base, or vit-nano for the embedded digits.
        out: The run folder, `runs/<data>-<method>-<model>` by default. If it holds this run already, it goes on.
        **options: Fields of `PretrainConfig`, the method's `Config`, `AugmentConfig`, `TrainConfig`, `OptimConfig`, `SpreadConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    clock = Clock()
    setting = settle(data, method, model, options)
    own, training, hardware, place = setting.own, setting.training, setting.hardware, setting.place
    say = tell(place.lead)
    run = open_run(setting.path(out), "pretrain", setting.config, setting.facts, write=place.lead, say=say)
    if run.results:
        say(f"{run.path} is finished. Its report: {run.path / 'report.html'}")
        return run

    pictures, judged, cut = setting.open_parts()
    write_skipped(run.path, [pictures, judged], place, say)
    vit = setting.vit(pictures.pictures)
    torch.manual_seed(training.seed)
    learner = setting.build(vit)
    untrained = copy.deepcopy(learner.encoder)
    if place.lead:
        native.write_config(learner, run.path)
    feed = setting.feed(pictures)
    total = total_steps(training, feed)
    parameters = sum(p.numel() for p in learner.encoder.parameters())
    (height, width), (rows, columns) = setting.sizes
    say(
        f"{type(learner).__name__} with {setting.model} ({parameters / 1e6:.1f} M parameters) on {len(pictures):,} pictures of "
        f"{setting.source.name}, {height} x {width} px in patches of {rows} x {columns}; {total:,} steps of "
        f"{training.batch_size} in {hardware.precision} on {place.world} {place.device.type} "
        f"process{'es' * (place.world > 1)}"
    )
    if total < 500:
        say(f"{total} steps are few to learn from: think of more --epochs, or of a smaller --batch-size")
    watched = monitors(pictures, judged, vit, hardware, place)
    first = fit(learner, feed, run, place, training, setting.optim, hardware, watched, own.tracker, "pretrain")
    if place.lead:
        give_back()
        learner = setting.build(vit)
        load_model_state(learner, run.checkpoints().load(total, "model"))
        learner.to(place.device).eval()
        native.save(learner, run.path)
        save_samples(run, judged if len(judged) else pictures, vit)
        write_skipped(run.path, [pictures, judged], place, lambda text: None)
        say("judging what was learned ...")
        results = prove(learner, untrained, pictures, judged, hardware, place)
        seconds = sum(line.get("seconds", 0.0) for line in run.log)
        results |= {"pictures_seen": total * training.batch_size, "seconds": seconds, "kept_aside": cut}
        run.write_results(results)
        page = write_page(run, learner, lambda: run.write_results(results | {"cost": cost_of_run(run, clock, first, place)}))
        show(terminal_table(run.results))
        say(f"{cost_line(run.results['cost'])}\nThe encoder: {run.path / 'encoder.safetensors'}\nThe report:  {page}")
    leave(place)
    return run


def moments(pictures: Pictures) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel to normalise with: ImageNet's for 8-bit grey and colour, else the data's own."""
    if pictures.dtype == torch.uint8 and pictures.channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if pictures.dtype == torch.uint8 and pictures.channels == 1:
        return (0.449,), (0.226,)
    return channel_moments(pictures)


def prove(learner: Method, untrained: ViT, pictures: Part, judged: Part, hardware: SpreadConfig, place: Place) -> Record:
    """What was learned: error on pictures kept aside, and what the features are worth."""
    return {
        "pictures": len(pictures), "skipped": len(skipped_lines(pictures, judged)),
        "held_out": held_out(learner, judged=judged, vit=learner.encoder.config, hardware=hardware, place=place),
    } | compare(learner.encoder, untrained, pictures, judged, hardware, place)  # fmt: skip


def monitors(pictures: Part, judged: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place) -> list[Monitor]:
    """What is looked at during a run: error on pictures kept aside, and k-NN accuracy where there are labels."""
    watched: list[Monitor] = [partial(held_out, judged=judged, vit=vit, hardware=hardware, place=place)]
    bank, queries = pictures.labelled(2000), judged.labelled(500)
    if len(bank) and len(queries):
        watched.append(partial(online_knn, bank=bank, queries=queries, vit=vit, hardware=hardware, place=place))
    return watched


def online_knn(learner: Method, *, bank: Part, queries: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place) -> Record:
    """k-NN accuracy of the encoder as it is now."""
    known, asked = (features_of(learner.encoder.features, part, vit, hardware, place) for part in (bank, queries))
    return {"knn": score(knn_scores(asked, known, bank.labels, len(bank.pictures.classes)), queries.labels).top1}


@torch.no_grad()
def held_out(
    learner: Method, *, judged: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place, most: int = 256
) -> Record:
    """What the method says of pictures that were kept aside, each with the same mask every time."""
    if not len(judged):
        return {}
    places = judged.places[:most]
    images, sizes = judged.pictures.batch(places)
    batch = Batch(images, sizes, sample_keys(0, 0, len(places))).to(place.device)
    with autocast(hardware, place):
        return learner.held_out(batch._replace(images=view(batch, vit.image_size, vit.mean, vit.std)))


def compare(
    encoder: ViT, untrained: ViT, pictures: Part, judged: Part, hardware: SpreadConfig, place: Place, most: int = 20_000
) -> Record:
    """k-NN and linear accuracy of the encoder, of the same encoder untrained, and of raw pixels, where there are labels."""
    bank, queries = pictures.labelled(most), judged.labelled(most // 2)
    if not (len(bank) and len(queries)):
        return {}
    vit, rows = encoder.config, {}
    contestants = {"encoder": encoder.features, "untrained": untrained.to(place.device).eval().features, "raw pixels": raw_pixels}
    for name, features in contestants.items():
        known, asked = (features_of(features, part, vit, hardware, place) for part in (bank, queries))
        scores = judge_features(known, bank.labels, asked, queries.labels, len(bank.pictures.classes))
        rows[name] = {probe: result.top1 for probe, result in scores.items()}
    sizes = {"train": len(bank), "test": len(queries), "classes": len(bank.pictures.classes)}
    return {"features": rows, "judged_on": sizes}


def save_samples(run: Run, part: Part, vit: ViTConfig, count: int = 8) -> None:
    """A few pictures for the report, normalised, as `samples.npz`."""
    chosen = part.spread_out(count)
    np.savez(run.path / "samples.npz", images=views_of(chosen, vit).numpy(), names=np.array(chosen.names))


def called(name: str) -> str:
    """A short name of DATA for a folder."""
    last = name.rstrip("/").rsplit("/", 1)[-1].split("{")[0]
    for suffix in (".tar.gz", ".tgz", ".tar", ".zip"):
        last = last.removesuffix(suffix)
    return last.strip("-_. ") or "pictures"
