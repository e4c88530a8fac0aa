"""`unveil embed`: one row of features per image, with its path, for search, clustering or any classifier."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from unveil.data.python_data import with_columns
from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.evaluate.features import features_by
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.learner import Learner
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.paths import refuse_unless_new_table
from unveil.plain_text import count_of, printable
from unveil.plugins import trust as allow
from unveil.predictions import Columns
from unveil.ranges import Count, Range
from unveil.runs.open_data import open_each, say_notes
from unveil.runs.parts_on_disk import skipped_list
from unveil.runs.sample_stream import ImageStream
from unveil.runs.streamed import TableJob
from unveil.train.parallel import HardwareConfig, World, autocast, join_processes
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which features to compute, and how."""

    HIDDEN = ("max_pixels", "pool")
    split: str | None = None
    """Parts of DATA to embed: train, val, test, unlabeled, other (beside the splits), or several as in train+val; by default
    all."""
    tokens: Literal["mean", "class", "both", "patch"] | None = None
    """Features to write: the mean of the patch tokens, the class token, both side by side, or every patch token; by default those
    that suit the method."""
    pool: Literal["mean", "class", "both", "patches"] | None = None
    """The earlier name of tokens, in which patches is patch."""
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    """Images per batch."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""


def embed(
    run: str | os.PathLike[str], data: Data, *, out: str | Path | None = None, trust: str | Path | None = None, **options: Any
) -> Path:
    """Writes the features of every image of DATA that can be read, of all its splits, and says what was left out.

    It needs the memory of a few batches, goes on where a stopped call was, and shares the images among the processes of torchrun;
    the file has the same bytes in each case.

    Args:
        run: Anything that `unveil.load` accepts.
        data: See `unveil.data.sources.FORMS`.
        out: A new file: .npz with "path", "embedding", "label" if there are classes, and "split" ("train", "val", "test", ...) if
            DATA has splits; or .parquet with the same columns.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `EmbedConfig` and `HardwareConfig`. By default, features are computed in float32.

    Raises:
        UnveilError: If the file exists, or has another suffix; or if features are not finite.
    """
    allow(trust)
    data, options = with_columns(data, options)
    config, hardware = configure(options, EmbedConfig, HardwareConfig)
    if config.pool is not None:
        if config.tokens is not None:
            raise UnveilError("pool is the earlier name of tokens: give one of them")
        config = replace(config, tokens="patch" if config.pool == "patches" else config.pool, pool=None)
    path = Path(out) if out else Path("embeddings.npz")
    refuse_unless_new_table(path)
    world = join_processes(hardware)
    say = printer(world.is_main)
    if hardware.precision == "auto":
        hardware = replace(hardware, precision="float32")  # features are a result: rounding is for those who ask for it
    learner = load(run, say=say).to(world.device).eval()
    encoder = vit_of(learner)
    parts = open_each(data, config.split, encoder.config, max_pixels=config.max_pixels)
    say_notes(say, "", *(part.dataset.source for part in parts.values()))
    stream = ImageStream(parts, encoder.config)
    function = features_function(learner, encoder, config.tokens)
    embedder = Embedder(stream=stream, function=function, hardware=hardware, world=world, owner=str(run))
    shape = embedder.shape()
    job = TableJob(
        stream=stream,
        function=embedder.columns,
        batch_size=config.batch_size,
        row_bytes=4 * int(np.prod(shape)),
        hardware=hardware,
        world=world,
        say=say,
        doing="embedding",
    )
    facts = {"tokens": config.tokens, "split": config.split, "max_pixels": config.max_pixels}
    outcome = job.to_file(path, job.facts("embed", learner, facts))
    if world.is_main:
        job.say_skipped(outcome.skipped, skipped_list(path))
        counts = ", ".join(f"{count:,} of {name}" for name, count in outcome.rows.items())
        splits = f" ({counts})" if len(outcome.rows) > 1 else ""
        say(f"{count_of(sum(outcome.rows.values()), 'image')}{splits}, {' x '.join(map(str, shape))} features each: {path}")
    return path


def features_function(
    learner: Learner, encoder: ViT, tokens: Literal["mean", "class", "both", "patch"] | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from normalised images to the features of `--tokens`."""
    if tokens == "patch":
        return lambda images: encoder(images)[:, encoder.config.prefix_tokens :]
    return partial(features_by, learner, "both") if tokens == "both" else partial(learner.features, pool=tokens)


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """Turns batches into rows of features."""

    stream: ImageStream
    function: Callable[[torch.Tensor], torch.Tensor]
    hardware: HardwareConfig
    world: World
    owner: str
    """The name of the model, for messages."""

    @torch.inference_mode()
    def shape(self) -> tuple[int, ...]:
        """The shape of the features of an image."""
        vit = self.stream.vit
        with autocast(self.hardware, self.world):
            return tuple(self.function(torch.zeros(1, vit.channels, *vit.image_size, device=self.world.device)).shape[1:])

    def columns(self, split: str, batch: Any) -> Columns:
        """The features of a batch, and its classes if any image has one. Raises `UnveilError` if features are not finite."""
        with autocast(self.hardware, self.world):
            rows = self.function(batch.images).float().cpu()
        keys = batch.keys.cpu()
        bad = (~rows.isfinite()).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        if bad:
            first = printable(self.stream.columns(split, keys)["path"][bad[0]])
            raise UnveilError(
                f"the features of {first} are not finite: the numbers in {self.owner} are too large. Use another run, or "
                f"--precision float32"
            )
        labels = {"label": np.array(self.stream.classes(split, keys))} if self.stream.has_classes else {}
        return {"embedding": rows.numpy()} | labels
