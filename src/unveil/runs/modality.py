"""The interface to everything about a run that depends on its modality: images or text.

`MODALITIES` has one object for each modality. The commands look it up by `Learner.modality`; no other code distinguishes images
from text.
"""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Int
from torch import Tensor

from unveil.data.loader import Loader
from unveil.errors import UnveilError
from unveil.learner import Method, Task
from unveil.methods import method_defaults
from unveil.metrics import Metric
from unveil.ranges import CountOrZero, ShareBelowOne
from unveil.runs.sample_stream import SampleStream
from unveil.runs.session import Session
from unveil.train.log import Record
from unveil.train.recipe import Recipe
from unveil.train.recorder import Monitor

MIN_SAMPLES, MAX_VALIDATION = 1000, 2000
"""Minimum number of training samples of which some are kept aside by default, since on few the best checkpoint would be chance; and
maximum number of samples that are evaluated during training."""
AnyData = Any
"""DATA in any form that the modality opens: see `unveil.data.sources.FORMS` and `unveil.text.files.open_texts`."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig:
    """Options of a fine-tuning run that do not depend on its task."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("tracker",)
    scratch: bool = False
    """Train the same model from scratch with the same recipe and budget, for comparison."""
    labels: CountOrZero = 0
    """Number of labelled samples to train on, balanced over the classes; 0 means all."""
    validation: ShareBelowOne | None = None
    """Share of the training samples to keep aside, never the test set, to choose the best checkpoint; by default a tenth if there
    are 1,000 or more. A validation split of DATA is used in its place. 0 trains on everything and keeps the last checkpoint."""
    patience: CountOrZero = 0
    """Stop early after this many evaluations in a row (see --num-evals) that were no better than the best one; 0 never does."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases."""

    def kept_aside(self, samples: int) -> float:
        """The share of this many training samples to keep aside for validation, if DATA has no validation split."""
        if self.validation is None:
            return min(0.1, MAX_VALIDATION / samples) if samples >= MIN_SAMPLES else 0.0
        return self.validation


@dataclass(frozen=True, kw_only=True)
class PretrainPlan(ABC):
    """A pre-training run before it begins. All options are resolved and DATA is listed, but nothing is read or written yet."""

    method: str
    """The class of the method, as "module:Class" or "file.py:Class"."""
    model: str
    method_config: Any
    """The options of the method."""
    recipe: Recipe

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Every option, by name."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The data: name, counts, fingerprints."""

    @property
    def weights(self) -> dict[str, Mapping[str, str]]:
        """Checksums of trained weights that the run starts from ("encoder"), or learns from ("teacher")."""
        return {}

    @abstractmethod
    def path(self, out: str | Path | None) -> Path:
        """The run folder."""

    @abstractmethod
    def open(self, session: Session) -> "Pretraining":
        """Reads the data."""


class Pretraining(ABC):
    """A pre-training run whose data is open."""

    @abstractmethod
    def build(self) -> Method:
        """An untrained learner; the caller seeds the generators."""

    def start(self, learner: Method) -> None:  # noqa: B027 (by default, weights are random)
        """Copies the weights that the run starts from, if it has any, into an untrained learner."""

    @abstractmethod
    def loader(self, learner: Method) -> Loader:
        """The training samples, in the order of the run."""

    @abstractmethod
    def summary(self, learner: Method) -> str:
        """A line for the terminal that describes the model and the data."""

    @abstractmethod
    def monitors(self) -> Sequence[Monitor]:
        """Evaluations during the run."""

    @abstractmethod
    def evaluate(self, learner: Method, untrained: Any) -> Record:
        """The results: what the trained encoder learned, compared with the untrained one."""

    @abstractmethod
    def write_skipped(self) -> None:
        """Completes the list of files that could not be read. Does nothing if all samples were read on opening."""


class ProbedHeads(NamedTuple):
    """Linear layers on frozen features, each with weight (K, D) and bias (K,)."""

    probe: tuple[Tensor, Tensor]
    """The linear probe, to compare with."""
    start: tuple[Tensor, Tensor]
    """The layer from which training starts: a probe with a strong penalty, whose small weights disturb the features less."""


class LabelledData(ABC):
    """Labelled samples: a train set, a test set, and perhaps others to choose the best checkpoint."""

    noun: ClassVar[str]
    """Plural noun for the samples, for messages: "images" or "texts"."""
    classes: Sequence[str]
    held_out: bool
    """Whether the test set was held out from the training data because DATA has no test split."""
    train_set: Sized
    test_set: Sized
    validation_set: Sized | None
    """The samples that are evaluated during training; None if there are none. They are never those of the test set."""
    cautions: Sequence[str] = ()
    """Clauses on test samples that the encoder, or the model, is trained on as well, which make the results too good."""

    @property
    def counts(self) -> tuple[int, int]:
        """Samples in the train set and in the test set."""
        return len(self.train_set), len(self.test_set)

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The data, for `run.json`."""

    @property
    def unseen(self) -> Mapping[str, int]:
        """Classes of test samples that no training sample has, with the number of their test samples. These count as wrong."""
        return {}

    @property
    def test_classes(self) -> Sequence[str]:
        """The names of `classes`, and after them those of classes that only test samples have."""
        return self.classes

    def adapt(self, encoder: Any) -> None:  # noqa: B027 (texts have nothing to record)
        """Records in the config of an encoder what depends on these samples: for images, their centre crop in evaluations."""

    @abstractmethod
    def loader(self, recipe: Recipe, learner: Task) -> Loader:
        """The train set, in the order of a run, for a learner."""

    @property
    def validation_count(self) -> int:
        """Samples that are evaluated during training; 0 if there are none."""
        return 0 if self.validation_set is None else len(self.validation_set)

    @property
    @abstractmethod
    def class_counts(self) -> Int[Tensor, " K"]:
        """The number of training samples of each class."""

    @property
    def train_targets(self) -> Any:
        """The labels of the train set, as `Batch.targets` holds them; None for those that are not kept in memory."""
        return None

    @property
    def mask_values(self) -> Any:
        """What the masks of the train set store, as a `MaskValues`; None if the labels are no masks in files."""
        return None

    @property
    def category_ids(self) -> Mapping[str, Any] | None:
        """The id of each class in the annotations, by its name; None if the labels are no objects."""
        return None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Options of the task whose defaults follow from the labels, such as whether objects have masks."""
        return {}

    @property
    def about(self) -> str:
        """What the labels are, for the line that announces a run: "of 10 classes"."""
        return f"of {len(self.classes)} classes"

    def primary_of(self, metric: Metric, *, validation: bool = False) -> str:
        """The number of a metric that stands for the whole, on the test set or on the samples to validate on."""
        return metric.primary

    def probed_heads(self, task: Task, recipe: Recipe) -> "ProbedHeads":
        """Linear probes of the features of a task, fitted to the train set."""
        raise UnveilError(f"a task for {self.noun} cannot start from a linear probe: use --start random")

    @abstractmethod
    def predictions(self, task: Task, recipe: Recipe, *, validation: bool = False) -> Iterable[tuple[Any, Any, Any]]:
        """Yields (batch, predictions, targets) for each batch of the test set, or of the samples to validate on."""

    @abstractmethod
    def evaluate(self, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Computes the metric of a task over the test set, and writes the predictions into a run folder."""

    @abstractmethod
    def write_skipped(self, session: Session) -> None:
        """Writes the list of files that could not be read into the run folder. Does nothing if all samples were read on opening."""

    @abstractmethod
    def unreadable(self) -> dict[str, int]:
        """The numbers of samples in the train set and the test set that could not be read; empty if that is not possible."""


class Modality(ABC):
    """The base class of modalities."""

    noun: ClassVar[str]
    """Plural noun for the samples, for messages: "images" or "texts"."""
    models: ClassVar[Mapping[str, tuple[int, int, int]]]
    """Width, depth and heads of the encoders, by name."""
    default_model: ClassVar[str]
    default_task: ClassVar[str]
    """The task of `unveil finetune`."""

    @abstractmethod
    def configs(self, method: str | type[Method]) -> tuple[type, ...]:
        """The dataclasses whose fields are the options of pre-training with a method."""

    def defaults(self, data: AnyData, method: str | type[Method]) -> dict[str, Any]:
        """Defaults that depend on the method or on DATA: the model, and other options."""
        return {"model": self.default_model} | method_defaults(method)

    def check_model(self, model: str) -> str:
        """The name of a model. Raises `UnveilError` for one that does not exist."""
        if model not in self.models:
            raise UnveilError(f"there is no model {model!r} for {self.noun}: use one of {', '.join(self.models)}")
        return model

    @abstractmethod
    def plan(
        self,
        data: AnyData,
        method: str | type[Method],
        model: str | None,
        options: Mapping[str, Any],
        *,
        out: str | Path | None = None,
        resume_from: str | Path | None = None,
    ) -> PretrainPlan:
        """Resolves every option of a pre-training run from DATA and the hardware.

        Args:
            data: As for `pretrain`.
            method: As for `pretrain`.
            model: As for `pretrain`.
            options: Fields of `configs`.
            out: As for `pretrain`. A run that is resumed may have a copy of the weights that it started from.
            resume_from: The same.

        Raises:
            UnveilError: On input that cannot be used.
        """

    @abstractmethod
    def finetune_configs(self, task: type[Task]) -> tuple[type, ...]:
        """The dataclasses whose fields are the options of fine-tuning: of the run, of the task, and of the augmentation."""

    def resized(self, encoder: Any, config: Any) -> Any:
        """The encoder to fine-tune, for samples of the size that the options of the run ask for."""
        return encoder

    @abstractmethod
    def untrained(self, encoder: Any) -> Any:
        """An untrained encoder of the same shape."""

    @abstractmethod
    def labelled(
        self, run: str | os.PathLike[str], data: AnyData | None, test: AnyData | None, request: "LabelledRequest"
    ) -> LabelledData:
        """Opens labelled data for fine-tuning.

        Args:
            run: The run of the encoder. Its data is used if `data` is None.
            data: Labelled samples to train on.
            test: Labelled samples to test on; by default the test split of `data`, or a tenth of it.
            request: What the task needs.
        """

    @abstractmethod
    def stream(self, learner: Any, data: AnyData, *, split: str | None, max_pixels: int) -> SampleStream:
        """Opens samples to apply a learner to, one after the other.

        Args:
            learner: The model, whose encoder says what it takes.
            data: The samples.
            split: The parts of `data`; by default all.
            max_pixels: Image files with more pixels than this are not decoded.
        """

    @abstractmethod
    def label_count(self, data: AnyData) -> int:
        """The number of labelled samples of the train set of DATA. Lists the samples, but does not read them.

        Raises:
            UnveilError: If DATA does not exist, or holds no samples.
        """


@dataclass(frozen=True, kw_only=True)
class LabelledRequest:
    """The kind of labelled data that a task needs."""

    task: type[Task]
    encoder: Any
    """The config of the encoder."""
    config: Any
    """The run's options: `labels`, and for images `max_pixels`."""
    recipe: Recipe
    augment: Any = None
    """The `AugmentConfig` of images."""
    task_config: Any = None
    """The options of the task."""
    classes: Sequence[str] = ()
    """The classes of the run that is resumed, so that labels keep their numbers."""
    read: bool = True
    """Whether images are read into memory if they fit; not for a run that has finished, whose settings are only compared."""


PLACES = {"images": "unveil.runs.images:IMAGES", "text": "unveil.runs.texts:TEXT"}


def modality(name: str) -> Modality:
    """The modality of this name: "images" or "text"."""
    module, _, attribute = PLACES[name].partition(":")
    found: Modality = getattr(importlib.import_module(module), attribute)
    return found


def slug(name: str) -> str:
    """A short name for DATA, to use in the name of a folder."""
    last = name.rstrip("/").rsplit("/", 1)[-1].split("{")[0]
    for suffix in (".tar.gz", ".tgz", ".tar", ".zip"):
        last = last.removesuffix(suffix)
    return last.strip("-_. ") or "images"
