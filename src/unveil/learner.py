"""The one promise: what the loop can train, and what it is given."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from unveil.models.bert import TextConfig
from unveil.models.vit import ViTConfig


class Step(NamedTuple):
    """What a forward pass returns."""

    loss: Float[Tensor, ""]
    """To descend."""
    metrics: dict[str, Tensor]
    """To write down: scalars, averaged over processes and over the steps between two log lines."""


class Learner(nn.Module, ABC):
    """Anything that the loop can train. `forward` is the loss, so compile, DDP and FSDP2 wrap it with no special case."""

    encoder: Any
    """What is learned or judged."""
    needs_whole_batch: ClassVar[bool] = False
    """Whether the loss compares the samples of a batch with each other, so that no step can be computed in parts."""
    pool: Literal["mean", "class"] = "mean"
    """Which features of the encoder are worth judging: the mean of the patch tokens, or the class token."""

    @abstractmethod
    def forward(self, batch: Any) -> Step:
        """A loss to descend, and numbers to write down."""

    def augment(self, batch: Any) -> Any:
        """Runs before `forward`, on the device, without gradients."""
        return batch

    def prepare(self, batch: Any) -> None:
        """Sees one augmented batch once, before the first step of a run (never on resume): to fit what is not trained."""

    def after_step(self, progress: float) -> None:
        """Runs after each optimiser step; progress goes from 0 to 1."""

    def layer_of(self, name: str) -> int:
        """The depth of a parameter, for layer-wise learning rates: 0 is the embedding; the largest is the head."""
        return 0


class Method(Learner, ABC):
    """A learner that trains an encoder without labels. One file and one line in `unveil.methods.IMAGES` or `TEXTS`."""

    encoder: Any
    """What is learned: a `ViT`, a `TextEncoder`, or another module with the `config` of one, and `features` to be judged by."""
    EncoderConfig: ClassVar[type] = ViTConfig
    """A frozen dataclass: the shape of the encoder, and of what it takes in."""
    Config: ClassVar[type]
    """A frozen dataclass: the knobs of the method."""
    config: Any
    augmentation: Any = None
    reconstructs_hidden: ClassVar[bool] = True
    """Whether what it reconstructs was hidden in part; if not, a figure shows the whole beside the original."""
    supports_finetuning: ClassVar[bool] = True
    """Whether a task can be put on the encoder and tuned with it."""
    classes: Sequence[str] = ()
    """The names of the classes that it tells apart; none where it does without labels."""

    @classmethod
    @abstractmethod
    def build(cls, shape: Any, config: Any, augment: Any) -> "Method":
        """An untrained learner from the configs of the encoder, the method, and the augmentation, if it has one."""

    def set_classes(self, classes: Sequence[str]) -> None:
        """Is told the names of the classes once it is built, before it learns or is filled; none where DATA has no labels."""

    def validation_metrics(self, batch: Any) -> dict[str, Any]:
        """Numbers, or tensors, on normalised samples that were not trained on; the same samples have the same keys each time."""
        return {}

    def reduce_metrics(self, means: dict[str, Any]) -> dict[str, float]:
        """What is written down of the means of all batches of `held_out`."""
        return means


class TextMethod(Method, ABC):
    """A method whose samples are texts, which have no augmentation."""

    EncoderConfig = TextConfig
    pairs: bool = False
    """Whether a sequence is two parts, of which the second may come from elsewhere."""


class Task(Learner, ABC):
    """A learner that uses labels to judge or to tune an encoder. One file."""

    @abstractmethod
    def predict(self, samples: Any) -> Float[Tensor, "B K"]:
        """A score for each class; images are normalised, texts are rows of numbers of pieces."""
