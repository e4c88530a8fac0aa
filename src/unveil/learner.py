"""The interface between models and the rest of the package: `Learner`, and its two kinds, `Method` and `Task`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import Size
from unveil.data.mask_values import MaskValues
from unveil.data.targets import ClassTargets, Draw, Targets
from unveil.errors import UnveilError
from unveil.metrics import Metric
from unveil.models.bert import TextConfig
from unveil.models.vit_config import ViTConfig
from unveil.predictions import PredictsClasses, Table


class Step(NamedTuple):
    """The result of a forward pass."""

    loss: Float[Tensor, ""]
    """The loss to minimise."""
    metrics: dict[str, Tensor]
    """Scalars to log, averaged over processes and over the steps between two log lines."""


class Learner(nn.Module, ABC):
    """Anything the loop can train. `forward` is the loss, so compile, DDP and FSDP2 wrap a learner with no special case."""

    modality: ClassVar[str] = "images"
    """What a batch holds: a key of `unveil.runs.modality.MODALITIES`."""
    encoder: Any
    """The module that is trained or evaluated. It has a `config`, and `features(images)`."""
    needs_whole_batch: bool = False
    """Whether the loss of a sample depends on the others of its batch, by comparing them or by batch norm, so that a batch cannot
    be computed in microbatches."""
    whole_images: ClassVar[bool] = False
    """Whether evaluations and `unveil predict` give `predict` whole images, one at a time and as they are stored: `batch.images` is
    a uint8 or uint16 canvas (1, C, H, W), `batch.sizes` the size of the image on it, and targets are in its pixels. Such a task
    resizes and normalises images itself, and predicts in pixels of the original. If False, images are cropped and normalised."""
    augments_whole_batch: bool = False
    """Whether `augment` mixes samples, or draws from the global generators. It is then given all samples that a process has in a
    step, and its result, a `TensorBatch`, is cut into microbatches."""
    pool: Literal["mean", "class"] = "mean"
    """The features of the encoder to evaluate: the mean of the patch tokens, or the class token."""

    @abstractmethod
    def forward(self, batch: Any) -> Step:
        """The loss of an augmented batch, and metrics to log."""

    def features(self, samples: Tensor, pool: Literal["mean", "class"] | None = None) -> Float[Tensor, "B D"]:
        """One vector for each sample, which `unveil embed` writes and exports reproduce; by default those of the encoder.

        A task whose head begins with a norm returns what the classifier sees, after that norm.

        Args:
            samples: Normalised images, or token ids.
            pool: See `pool`, whose value is the default.
        """
        found: Tensor = self.encoder.features(samples, pool=pool or self.pool)
        return found

    def feature_norm(self, pool: str) -> nn.Module | None:
        """What `features` applies to the pooled tokens of the encoder: nothing (`Identity`), or the norm of a head.

        None if it does something else, so that a probe of the features cannot be saved. A subclass with `features` of its own
        overrides it.

        Args:
            pool: "mean", "class", or "both" side by side.
        """
        return nn.Identity() if type(self).features is Learner.features else None

    def predict_images(
        self, images: Iterable[Any], *, top_k: int = 1, scores: bool = False, batch_size: int = 64, max_pixels: int = 64_000_000
    ) -> Table:
        """Labels images: see `unveil.predictions.PredictsClasses`. Raises `UnveilError`, unless a subclass has a head."""
        raise UnveilError(
            f"{type(self).__name__} has no head, so it has no classes to predict: train one with unveil.finetune or unveil.probe"
        )

    def augment(self, batch: Any) -> Any:
        """Runs before `forward`, on the device, without gradients."""
        return batch

    @property
    def draw_early(self) -> Draw | None:
        """Draws the crops of images, if `augment` begins with one crop of each and also takes `Cropped` batches from the loader.

        None if it needs whole images, as any `augment` of one's own does.
        """
        return None

    def prepare(self, batch: Any) -> None:
        """Receives one augmented batch before the first step of a run (not on resume), to fit values that are not trained."""

    def before_step(self, progress: float) -> None:
        """Runs before each optimiser step, when the gradients are complete and clipped; `progress` goes from 0 to 1."""

    def after_step(self, progress: float) -> None:
        """Runs after each optimiser step; `progress` goes from 0 to 1. A step that is skipped, since it is not finite, has none."""

    def after_training(self) -> None:
        """Runs once after the last step of a run, before its checkpoint."""

    def layer_of(self, name: str) -> int:
        """The depth of a parameter, for layer-wise learning rates: 0 is the embedding, the largest number is the head."""
        return 0

    def no_weight_decay(self) -> set[str]:
        """Names of matrices without weight decay, collected from the modules that own them. Vectors never have weight decay."""
        owners = [(name, module) for name, module in self.named_modules() if name and isinstance(module, ExemptFromDecay)]
        return {f"{prefix}.{name}" for prefix, module in owners for name in module.no_weight_decay()}


class Method(Learner, ABC):
    """A learner that trains an encoder without labels. One file, and one line in `unveil.methods.METHODS` if it is built in."""

    encoder: Any
    """The result of training: a `ViT`, a `TextEncoder`, or another module with a `config` and `features`."""
    EncoderConfig: ClassVar[type] = ViTConfig
    """A frozen dataclass: the shape of the encoder and of its input."""
    Config: ClassVar[type]
    """A frozen dataclass: the options of the method."""
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    """Options, of any group, whose defaults differ for this method, such as `base_lr`."""
    config: Any
    augmentation: Any = None
    """An `Augment`, or another callable with a `config` that augments a batch; None means no augmentation."""
    reconstructs_hidden: ClassVar[bool] = True
    """Whether reconstruction starts from a masked image. If not, figures show the full reconstruction next to the original."""
    supports_finetuning: ClassVar[bool] = True
    """Whether a task can fine-tune the encoder."""
    classes: Sequence[str] = ()
    """Names of the classes, for a method that learns from labels."""

    @classmethod
    @abstractmethod
    def build(cls, encoder: Any, config: Any, augment: Any) -> "Method":
        """Builds an untrained learner from the configs of the encoder, of the method, and of the augmentation if there is one."""

    def augment(self, batch: Any) -> Any:
        """Applies `augmentation`: for images, crop, resize, flip and normalise."""
        return batch if self.augmentation is None else self.augmentation(batch)

    @property
    def draw_early(self) -> Draw | None:
        """That of `augmentation`, unless a subclass has an `augment` of its own."""
        return getattr(self.augmentation, "draw_early", None) if type(self).augment is Method.augment else None

    def set_classes(self, classes: Sequence[str]) -> None:
        """Receives the names of the classes before training or loading; an empty sequence if the data has no labels."""

    def start_from(self, encoder: nn.Module, source: Learner) -> list[str]:
        """Receives pre-trained weights before the first step, for `encoder` and for every copy of it: teachers, averages.

        Args:
            encoder: An encoder of the same class and shape as `encoder`.
            source: The learner whose encoder it was. A method may take other parts of it, if they fit.

        Returns:
            Sentences for the user about the other parts of `source`.

        Raises:
            UnveilError: If this method has no encoder of this class.
        """
        state = encoder.state_dict()
        copies = [module for module in self.modules() if type(module) is type(encoder) and same_shapes(module, encoder)]
        if self.encoder not in copies:
            raise UnveilError(f"{type(self).__name__} cannot start from weights: its encoder is a {type(self.encoder).__name__}")
        for module in copies:
            module.load_state_dict(state)
        return []

    def validation_metrics(self, batch: Any) -> dict[str, Any]:
        """Metrics of a batch of normalised held-out samples, as numbers or tensors. A sample has the same key at every call."""
        return {}

    def reduce_metrics(self, means: dict[str, Any]) -> dict[str, float]:
        """The numbers to log, from the means of `validation_metrics` over all batches."""
        return means


class TextMethod(Method, ABC):
    """A method for text. It has no augmentation."""

    modality = "text"
    EncoderConfig = TextConfig
    pairs: bool = False
    """Whether a sequence has two segments, of which the second may come from another document."""


class Task(PredictsClasses, Learner, ABC):
    """A learner with labels: a head on an encoder. One file, and one line in `unveil.tasks.TASKS` if it is built in.

    `columns` says how its predictions become the columns of `unveil predict`: by default labels and probabilities of class scores.
    """

    Config: ClassVar[type]
    """A frozen dataclass: the options of the task."""
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    """The recipe: options, of any group, whose defaults differ for this task."""
    PAPER: ClassVar[Mapping[str, Any]] = {}
    """Further defaults for --recipe paper, if `Config` has the option `recipe`."""
    CHOSEN: ClassVar[Sequence[str]] = ()
    """Names of the options that `settings_for` chooses."""
    TargetType: ClassVar[type[Targets]] = ClassTargets
    """What `Batch.targets` holds: classes, labels, numbers, boxes, or one class per pixel."""
    on_encoder: ClassVar[bool] = True
    """Whether `unveil finetune` trains it on the encoder of a run."""
    config: Any
    classes: Sequence[str]
    """Names of the classes, in the order of the scores."""
    augmentation: Any = None

    @classmethod
    @abstractmethod
    def build(cls, encoder: Any, config: Any, augment: Any, classes: Sequence[str]) -> Self:
        """Builds an untrained head on a trained encoder.

        Args:
            encoder: A `ViT` or a `TextEncoder`. It may be changed in place, so give a copy to keep the original.
            config: The options of the task.
            augment: The options of the augmentation; None for text.
            classes: Names of the classes.
        """

    def augment(self, batch: Any) -> Any:
        """Applies `augmentation`, which moves `batch.targets` with the images."""
        return batch if self.augmentation is None else self.augmentation(batch)

    @property
    def draw_early(self) -> Draw | None:
        """See `Method.draw_early`."""
        return getattr(self.augmentation, "draw_early", None) if type(self).augment is Task.augment else None

    def layer_of(self, name: str) -> int:
        """The depth of a parameter: 0 for the encoder's embedding, 1 to depth for its blocks, depth + 1 for the head (BEiT)."""
        owner, _, rest = name.partition(".")
        layer: int = self.encoder.layer_of(rest) if owner == "encoder" else self.encoder.config.depth + 1
        return layer

    @classmethod
    def settings_for(cls, width: int, samples: int) -> Mapping[str, Any]:
        """Defaults that follow from the width of the encoder and the number of labelled samples, unless --recipe is "paper"."""
        return {}

    @classmethod
    def training_side(cls, config: Any, augment: Any, image_size: Size) -> int | None:
        """With `whole_images`, how far images are shrunk for training: the length of their short side; None keeps their size.

        Args:
            config: The options of the task.
            augment: The options of the augmentation.
            image_size: The size of the encoder's images.
        """
        return None

    @property
    def starts_from_probe(self) -> bool:
        """Whether training starts with the head of a linear probe of `features` (LP-FT, arXiv 2202.10054): see `set_head`."""
        return False

    def set_head(self, weight: Float[Tensor, "K D"], bias: Float[Tensor, " K"]) -> None:
        """Receives the linear layer of a probe of `features`, if `starts_from_probe`."""

    def set_class_counts(self, counts: Int[Tensor, " K"]) -> None:
        """Receives the number of training samples of each class before training, also when it resumes."""

    def set_mask_values(self, values: MaskValues) -> None:
        """Receives what the masks store for each class before training, also when it resumes, if the labels are masks in files."""

    def set_category_ids(self, ids: Mapping[str, Any]) -> None:
        """Receives the id of each class in the annotations before training, also when it resumes, if the labels are objects."""

    def set_train_targets(self, targets: Targets) -> None:
        """Receives the labels of all training samples before training, also when it resumes, unless they are maps."""

    def set_decoder(self, state: Mapping[str, Tensor]) -> None:
        """Receives the decoder of the MAE that the encoder comes from: see `unveil.protocols.HasPixelDecoder`."""

    def add_training_parts(self) -> None:
        """Adds what only training needs, before it, also when it resumes."""

    def drop_training_parts(self) -> None:
        """Removes what only training needs, after it, so that the saved model is smaller."""

    @abstractmethod
    def predict(self, batch: Any) -> Any:
        """Predictions for a batch of normalised samples.

        They are class scores (B, K), numbers (B,), class maps (B, K, H, W), or the detections of each image. With
        `whole_images`, the batch is one image as it is stored, and the prediction is in its pixels: see there.
        """

    @abstractmethod
    def metric(self) -> Metric:
        """A new metric that accumulates predictions and targets."""


def same_shapes(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have tensors of the same names and shapes."""
    own, found = module.state_dict(), other.state_dict()
    return own.keys() == found.keys() and all(own[name].shape == found[name].shape for name in own)


@runtime_checkable
class ExemptFromDecay(Protocol):
    """A module that owns matrices to which weight decay should not be applied, such as position embeddings."""

    def no_weight_decay(self) -> set[str]:
        """Names of these parameters, as in `named_parameters` of the module."""
