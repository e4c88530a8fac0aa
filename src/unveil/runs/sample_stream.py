"""Samples without labels in a fixed order, batch by batch: what `unveil predict` and `unveil embed` read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from unveil.data.read_ahead import read_ahead
from unveil.data.splits import Subset
from unveil.evaluate.features import prepared, read_batch
from unveil.models.vit_config import ViTConfig
from unveil.predictions import Columns
from unveil.train.parallel import HardwareConfig, World


class Span(NamedTuple):
    """Consecutive samples of a split."""

    split: str
    start: int
    stop: int


class SampleStream(ABC):
    """Samples in memory or on disk.

    Attributes:
        counts: The number of samples of each split; one entry if there are no splits.
        fingerprints: They change with the samples.
        listed: What was skipped when the samples were listed, by name, with the reason.
        notes: How the samples were read, as far as a user should know, each in one sentence.
    """

    noun: ClassVar[str]
    """Singular noun for a sample, for messages."""
    counts: Mapping[str, int]
    fingerprints: Sequence[str]
    listed: Mapping[str, str]
    notes: Sequence[str] = ()

    @abstractmethod
    def batches(self, spans: Iterable[Span], hardware: HardwareConfig, world: World) -> Iterator[Any | None]:
        """A batch for each span, in order, without the samples that cannot be read; None if none can.

        The keys of a batch are the numbers of its samples in their split. The next batches are read while the caller works.
        """

    @abstractmethod
    def columns(self, split: str, keys: Int[Tensor, " B"]) -> Columns:
        """The first columns of the table: which samples these are."""

    def unreadable(self, span: Span) -> list[tuple[str, str]]:
        """The names of those that could not be read, with the reason, after their batches have been read."""
        return []

    @property
    def total(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())


class ImageStream(SampleStream):
    """Images, preprocessed for a model.

    Args:
        parts: The images of each split; see `unveil.runs.open_data.open_each`.
        vit: Their size and normalisation.
        whole: Whether batches are images as they are stored, for a task that takes whole images.
    """

    noun = "image"

    def __init__(self, parts: Mapping[str, Subset], vit: ViTConfig, *, whole: bool = False) -> None:
        self.parts, self.vit, self.whole = parts, vit, whole
        self.counts = {name: len(subset) for name, subset in parts.items()}
        self.fingerprints = [subset.dataset.source.fingerprint for subset in parts.values()]
        self.listed = {name: reason for subset in parts.values() for name, reason in subset.dataset.source.skipped.items()}

    def batches(self, spans: Iterable[Span], hardware: HardwareConfig, world: World) -> Iterator[Any | None]:
        def read(span: Span) -> tuple[Subset, Any]:
            subset = self.parts[span.split]
            indices = subset.indices[span.start : span.stop]
            return subset, subset.dataset.readable(indices) if self.whole else read_batch(subset, indices, self.vit)

        for subset, batch in read_ahead(read, spans):
            if batch is None or self.whole:
                yield None if batch is None else batch.to(world.device)
            else:
                yield prepared(batch, subset, self.vit, hardware, world)

    def columns(self, split: str, keys: Int[Tensor, " B"]) -> Columns:
        names = self.parts[split].dataset.names
        found = {"path": np.array([names[key] for key in keys.tolist()])}
        return found | ({"split": np.full(len(keys), split)} if len(self.parts) > 1 else {})

    def unreadable(self, span: Span) -> list[tuple[str, str]]:
        dataset = self.parts[span.split].dataset
        return [(dataset.names[index], fault.reason) for index, fault in dataset.faults_within(span.start, span.stop)]

    def classes(self, split: str, keys: Int[Tensor, " B"]) -> list[str]:
        """The class of each image according to DATA; "" if it has none."""
        dataset = self.parts[split].dataset
        labels = dataset.source.labels
        return [""] * len(keys) if labels is None else [dataset.classes[i] if i >= 0 else "" for i in labels[keys.numpy()].tolist()]

    @property
    def has_classes(self) -> bool:
        """Whether any image has a class according to DATA."""
        return any(subset.dataset.source.is_labelled for subset in self.parts.values())
