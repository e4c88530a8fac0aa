"""Protocols for what a learner can do besides training: reconstruct images, predict tokens or labels, classify, show attention.

A class implements a protocol by having its members; it need not name the protocol. Reports, exports and evaluations check for
it with `isinstance`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.masks import Mask
from unveil.blocks.reconstruction import Reconstruction
from unveil.predictions import Columns


@runtime_checkable
class Reconstructs(Protocol):
    """A learner that reconstructs images, such as MAE, SimMIM or a dVAE. Used by reports and `unveil reconstruct`."""

    if TYPE_CHECKING:
        encoder: Any
    reconstructs_hidden: bool

    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """Reconstructs normalised images; `hidden` is True where a patch is masked, the same count in each row."""

    def figure_facts(self) -> Mapping[str, Any]:
        """Settings to name in the caption of a figure: see `unveil.reports.reconstruct`."""


@runtime_checkable
class HasPixelDecoder(Protocol):
    """A learner with a decoder that predicts normalised pixels, such as MAE, from which fine-tuning with MAE's loss starts."""

    def decoder_state(self) -> dict[str, Tensor]:
        """The weights of the decoder, with the names of `unveil.blocks.predictor.Predictor`; {} if it predicts something else."""


@runtime_checkable
class SamplesMasks(Protocol):
    """A learner that draws its own masks, such as blocks, so that figures show the same kind of mask as training uses."""

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """Indices of the patches to keep (B, V) and to hide (B, M), for the samples with these keys."""


@runtime_checkable
class PredictsTokens(Protocol):
    """A learner of text that predicts the token at each position, such as BERT."""

    if TYPE_CHECKING:
        encoder: Any

    def token_logits(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """A score for each token of the vocabulary at each position."""


@runtime_checkable
class HasAttention(Protocol):
    """An encoder whose attention can be drawn."""

    def attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        """The attention of the class token to each patch in the last block, head by head."""


@runtime_checkable
class Classifies(Protocol):
    """A learner that gives each image one score per class, such as a fine-tuned model. Exports include its head."""

    classes: Sequence[str]

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of normalised images, before the softmax."""


@runtime_checkable
class Predicts(Protocol):
    """A learner whose predictions `unveil predict` writes: every task, and a method with a head."""

    def predict(self, batch: Any) -> Any:
        """Predictions for a batch of normalised samples."""

    def columns(self, predictions: Any, *, top_k: int = 1, scores: bool = False) -> Columns:
        """The predictions as columns of a table: see `unveil.predictions.PredictsClasses`."""


@runtime_checkable
class MapsClasses(Protocol):
    """A learner that gives each pixel one score per class, such as `unveil.tasks.segment`. Exports to ONNX compute the scores."""

    if TYPE_CHECKING:
        classes: Sequence[str]

    def map_logits(self, images: Float[Tensor, "B C S T"]) -> Float[Tensor, "B K S T"]:
        """The scores of normalised images of the size of the encoder's."""

    def classes_of(self, image: Tensor, score: Any) -> Tensor:
        """The class of each pixel of an image (C, H, W) as it is stored, by `map_logits` or a function that computes the same."""

    def graph_facts(self) -> Mapping[str, Any]:
        """What a program needs besides the graph of `map_logits`: how images are resized and cut, and what masks hold.

        Raises:
            UnveilError: If a graph cannot compute it.
        """


class FolderWriter(Protocol):
    """Writes predictions that are no rows of a table into a folder. Several processes may write other images into the same one."""

    def has(self, name: str) -> bool:
        """Whether everything about an image was written; `name` is its relative path, without an ending as a rule."""

    def add(self, name: str, image: Any, prediction: Any, file: str = "") -> None:
        """Writes what is predicted for an image (H, W, C) of uint8 or uint16, called `file` in DATA. Each file appears complete."""

    def close(self) -> str:
        """Writes what is about all images, such as a legend. Called once, when all images were added.

        Returns a sentence for the user on what was found, or "".
        """


@runtime_checkable
class WritesFolder(Protocol):
    """A learner with `whole_images` whose predictions `unveil predict` writes into a folder: class maps, or boxes and masks."""

    def items(self, predictions: Any, sizes: Int[Tensor, "B 2"]) -> list[Any]:
        """What is predicted for each image of a batch, from the result of `predict` and the sizes of the images."""

    def writer(self, out: Any, *, overlays: bool) -> FolderWriter:
        """What writes such items into a folder.

        Args:
            out: The folder, which may hold files of a stopped command.
            overlays: Whether to draw predictions over the images.
        """
