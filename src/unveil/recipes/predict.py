"""`unveil predict`: labels new images, or texts, with a trained model."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from unveil.data.python_data import with_columns
from unveil.data.targets import BoxTargets
from unveil.errors import UnveilError
from unveil.evaluate.features import evaluation_batch_size
from unveil.interop.load import load
from unveil.learner import Learner
from unveil.options import configure
from unveil.paths import refuse_unless_new_labels, refuse_unless_new_predictions
from unveil.plain_text import count_of
from unveil.plugins import trust as allow
from unveil.predictions import Columns, Predictions, PredictsClasses, Table
from unveil.protocols import Predicts, WritesFolder
from unveil.ranges import Count, Range, ShareBelowOne
from unveil.runs.folder_job import SKIPPED, FolderJob
from unveil.runs.modality import AnyData, modality
from unveil.runs.parts_on_disk import skipped_list
from unveil.runs.sample_stream import ImageStream
from unveil.runs.streamed import TableJob
from unveil.train.parallel import HardwareConfig, World, autocast, join_processes
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which samples to label, and what to write."""

    HIDDEN = ("max_pixels",)
    top_k: Count = 1
    """Number of best labels to write, with their probabilities: label, label_2, label_3, ..."""
    scores: bool = False
    """Also write the probability of every class, in a column p(CLASS) of its own."""
    split: str | None = None
    """Parts of IMAGES to label: train, val, test, unlabeled, other (beside the splits), or several as in train+val; by default
    all."""
    batch_size: Annotated[int, Range(0, 2**20)] = 0
    """Samples per batch; 0 means a size that suits the device."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""
    min_score: ShareBelowOne = 0.0
    """Of a detector: the lowest score of the objects that are written. Overlays show all of them then, and not only those with a
    score of at least 0.5."""
    overlays: bool = True
    """Of a model that predicts class maps or objects, also draw them over the images."""


def predict(
    run: str | os.PathLike[str], images: AnyData, *, out: str | Path | None = None, trust: str | Path | None = None, **options: Any
) -> Path | Table | Predictions:
    """Labels every image, or text, that can be read. A segmenter gives a map of classes for each image, a detector its objects.

    With `out`, it needs the memory of a few batches, goes on where a stopped call was, and shares the samples among the processes
    of torchrun; the file has the same bytes in each case. What cannot be read has no row, and is listed in a file beside it.

    Args:
        run: A classifier: anything that `unveil.load` accepts and that has a head, such as a fine-tuned run or a linear probe.
        images: See `unveil.data.sources.FORMS`; in Python also an array (N, H, W, C), or a list of paths, Pillow images, arrays
            (H, W, C) and tensors (C, H, W). For a text classifier: a file or a folder of texts.
        out: A new .csv, .parquet or .jsonl file; for class maps and objects, a new folder. None returns the table; or for each
            image its map, an array (H, W) of numbers of classes, or its objects, as `Detections`.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `PredictConfig` and `HardwareConfig`. By default, scores are computed in float32.

    Returns:
        The path of the file or folder; or the table, a dictionary of columns; or a list with the maps or objects of each image.

    Raises:
        UnveilError: If the model has no head, the file exists, or scores are not finite.
    """
    allow(trust)
    images, options = with_columns(images, options)
    config, hardware = configure(options, PredictConfig, HardwareConfig)
    if out is not None:
        refuse_unless_new_predictions(out)
    world = join_processes(hardware)
    say = printer(world.is_main)
    if world.size > 1 and out is None:
        raise UnveilError("several processes write one file: give out=, or start without torchrun")
    if hardware.precision == "auto":
        hardware = replace(hardware, precision="float32")  # scores are a result: rounding is for those who ask for it
    learner = load(run, say=say).to(world.device).eval()
    refuse_without_head(learner, run)
    if isinstance(learner, WritesFolder):
        return FolderPredictor(learner, config, hardware, world, str(run)).predict(images, out, say)
    if out is not None:
        refuse_unless_new_labels(out)
    labeller = Labeller(learner, config, hardware, world, str(run))
    labeller.refuse_options()
    stream = modality(learner.modality).stream(learner, images, split=config.split, max_pixels=config.max_pixels)
    for note in stream.notes:
        say(note)
    job = TableJob(
        stream=stream,
        function=labeller.columns,
        batch_size=config.batch_size or evaluation_batch_size(world, hardware),
        row_bytes=8 * (len(getattr(learner, "classes", ())) if config.scores else config.top_k),
        hardware=hardware,
        world=world,
        say=say,
        doing="predicting",
    )
    if out is None:
        labeller.kept = []
        columns, skipped = job.in_memory()
        job.say_skipped(skipped, None)
        return labeller.table(columns, skipped)
    path = Path(out)
    facts = {"top_k": config.top_k, "scores": config.scores, "split": config.split, "max_pixels": config.max_pixels}
    outcome = job.to_file(path, job.facts("predict", learner, facts))
    if world.is_main:
        job.say_skipped(outcome.skipped, skipped_list(path))
        say(f"{count_of(sum(outcome.rows.values()), stream.noun)} labelled: {path}")
    return path


def predict_to_file(
    run: str | os.PathLike[str], images: AnyData, *, out: str | Path | None = None, trust: str | Path | None = None, **options: Any
) -> Path:
    """`predict` on the command line, which always writes a file or a folder."""
    path = predict(run, images, out=default_out(run, trust) if out is None else out, trust=trust, **options)
    assert isinstance(path, Path)
    return path


def default_out(run: str | os.PathLike[str], trust: str | Path | None) -> str:
    """A file or, for a model whose predictions are no rows of a table, a folder."""
    allow(trust)
    return "predictions" if isinstance(load(run, say=lambda text: None), WritesFolder) else "predictions.csv"


def refuse_without_head(learner: Learner, run: str | os.PathLike[str]) -> None:
    """Raises `UnveilError` if a learner predicts nothing."""
    if not isinstance(learner, Predicts):
        probe = f" or `unveil probe {run} DATA`" if learner.modality == "images" else ""
        raise UnveilError(
            f"{run} is an encoder without a head, so it has no classes to predict: train one with "
            f"`unveil finetune {run} DATA`{probe}, and give the run of that"
        )


class Labeller:
    """Turns batches into columns."""

    def __init__(self, learner: Learner, config: PredictConfig, hardware: HardwareConfig, world: World, owner: str) -> None:
        assert isinstance(learner, Predicts)
        self.learner, self.config, self.hardware, self.world, self.owner = learner, config, hardware, world, owner
        self.kept: list[torch.Tensor] | None = None
        """What the model put out, if it is to be returned."""

    def refuse_options(self) -> None:
        """Raises `UnveilError` for options that do not fit the model, before anything is read."""
        if self.config.min_score:
            raise UnveilError(f"min_score is {self.config.min_score:g}, but {self.owner} finds no objects: leave it out")
        if isinstance(self.learner, PredictsClasses):
            self.learner.check_columns(self.config.top_k, self.config.scores, self.owner)

    def columns(self, split: str, batch: Any) -> Columns:
        """The predictions of a batch. Raises `UnveilError` if they are not finite."""
        with autocast(self.hardware, self.world):
            predictions = self.learner.predict(batch)
        if isinstance(predictions, torch.Tensor):
            predictions = predictions.float().cpu()
            if not bool(predictions.isfinite().all()):
                raise UnveilError(
                    f"the scores of {self.owner} are not finite: the numbers in it are too large. Use another run, or --precision "
                    "float32"
                )
            if self.kept is not None:
                self.kept.append(predictions)
        return self.learner.columns(predictions, top_k=self.config.top_k, scores=self.config.scores)

    def table(self, columns: Columns, skipped: dict[str, str]) -> Table:
        """The predictions in memory."""
        table = Table(columns)
        scores = torch.cat(self.kept or [torch.empty(0)])
        probabilities = getattr(self.learner, "probabilities", lambda scores: scores)(scores)
        table.scores, table.probabilities, table.skipped = scores.numpy(), probabilities.numpy(), skipped
        return table


class FolderPredictor:
    """Writes the predictions of a learner that takes whole images into a folder."""

    def __init__(self, learner: Any, config: PredictConfig, hardware: HardwareConfig, world: World, owner: str) -> None:
        self.learner, self.config, self.hardware, self.world, self.owner = learner, config, hardware, world, owner

    def items(self, batch: Any) -> list[Any]:
        """What is predicted for each image of a batch."""
        with autocast(self.hardware, self.world):
            predictions = self.learner.predict(batch)
        found: list[Any] = self.learner.items(predictions, batch.sizes)
        return [each.above(self.config.min_score) for each in found] if self.config.min_score else found

    def predict(self, images: AnyData, out: str | Path | None, say: Callable[[str], None]) -> Path | Predictions:
        """See `predict`."""
        learner, config = self.learner, self.config
        self.refuse_options(out)
        stream = modality(learner.modality).stream(learner, images, split=config.split, max_pixels=config.max_pixels)
        assert isinstance(stream, ImageStream)
        job = FolderJob(
            stream=stream, function=self.items, batch_size=1, hardware=self.hardware, world=self.world, say=say, doing="predicting"
        )
        if out is None:
            names, found, skipped = job.in_memory()
            job.say_skipped(skipped, None, "prediction")
            result = Predictions(found)
            result.names, result.classes, result.skipped = names, list(learner.classes), skipped
            return result
        path = Path(out)
        facts: dict[str, Any] = {"split": config.split, "max_pixels": config.max_pixels, "overlays": config.overlays}
        facts |= {"min_score": config.min_score} if config.min_score else {}
        shown = {"shown_score": config.min_score} if config.min_score else {}
        make = partial(learner.writer, overlays=config.overlays, **shown)
        count, skipped = job.to_folder(path, job.facts("predict", learner, facts), make)
        if self.world.is_main:
            job.say_skipped(skipped, path / SKIPPED, "prediction")
            say(f"{count_of(count, stream.noun)} predicted: {path}")
        return path

    def refuse_options(self, out: str | Path | None) -> None:
        """Raises `UnveilError` for options that are for tables."""
        config = self.config
        given = [f"top_k is {config.top_k}"] * (config.top_k != 1) + ["scores is on"] * config.scores
        if given:
            raise UnveilError(f"{given[0]}, but {self.owner} predicts no row of a table for an image: leave it out")
        if config.min_score and self.learner.TargetType is not BoxTargets:
            raise UnveilError(f"min_score is {config.min_score:g}, but {self.owner} finds no objects: leave it out")
        if config.batch_size > 1:
            raise UnveilError(f"batch_size is {config.batch_size}, but {self.owner} takes one whole image at a time: leave it out")
        if out is not None and Path(out).suffix in (".csv", ".parquet", ".jsonl"):
            raise UnveilError(
                f"{out} is a table, but {self.owner} predicts no row of a table for an image: give a new folder as --out"
            )
