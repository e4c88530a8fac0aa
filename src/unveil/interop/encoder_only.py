"""A learner with only an encoder, for files without a decoder or a head."""

from typing import Any, Literal, NoReturn

from torch import Tensor

from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.models.bert import TextConfig, TextEncoder
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.models.weights import digest

Encoder = ViT | TextEncoder
ENCODERS: dict[str, tuple[type, type[ViT] | type[TextEncoder]]] = {"images": (ViTConfig, ViT), "text": (TextConfig, TextEncoder)}
"""The config and the class of the encoder of each modality."""


class EncoderOnly(Learner):
    """An image encoder, which cannot be trained."""

    def __init__(self, encoder: Encoder, source: str = "this model") -> None:
        """`source` is the name of the file for error messages."""
        super().__init__()
        self.encoder, self.source = encoder, source

    def refuse(self) -> NoReturn:
        raise UnveilError(
            f"{self.source} has no decoder, so it cannot reconstruct images: use .encoder, or load a file with the decoder"
        )

    def forward(self, batch: Any) -> Step:
        self.refuse()

    def loss(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Raises `UnveilError`, since there is no decoder."""
        self.refuse()

    def reconstruct(self, images: Tensor, hidden: Tensor | None = None) -> Any:
        """Raises `UnveilError`, since there is no decoder."""
        self.refuse()


class TextEncoderOnly(EncoderOnly):
    """A text encoder, which cannot be trained."""

    modality = "text"


def encoder_only(encoder: Encoder, source: str = "this model", pool: Literal["mean", "class"] = "mean") -> EncoderOnly:
    """Wraps an encoder as a learner of its modality.

    Args:
        encoder: The encoder.
        source: The name of the file, for error messages.
        pool: The features to evaluate: see `Learner.pool`.
    """
    learner = EncoderOnly(encoder, source) if isinstance(encoder, ViT) else TextEncoderOnly(encoder, source)
    learner.pool = pool
    return learner


def has_encoder(learner: Learner) -> bool:
    """Whether a learner has an encoder, of any kind."""
    return "encoder" in dict(learner.named_children())


def encoder_of(learner: Learner) -> Encoder:
    """The Transformer encoder of a learner. Raises `UnveilError` if it has none."""
    encoder = learner.encoder if has_encoder(learner) else None
    if not isinstance(encoder, ViT | TextEncoder):
        raise UnveilError(f"{type(learner).__name__} has no Transformer encoder: use the run of another method")
    return encoder


def checksums(encoder: Encoder, weights: bool = True) -> dict[str, str]:
    """Checksums of the shapes of an encoder's tensors and, unless they are not used, of their values."""
    state = encoder.state_dict()
    found = {"shape": digest({}, {name: str(tuple(value.shape)) for name, value in state.items()})}
    return found | ({"weights": digest(state, {})} if weights else {})


def has_vit(learner: Learner) -> bool:
    """Whether the encoder of a learner is a ViT."""
    return has_encoder(learner) and isinstance(learner.encoder, ViT)


def has_common_vit(learner: Learner) -> bool:
    """Whether the encoder of a learner is a ViT as other libraries have it: without windows and decomposed relative positions."""
    return has_vit(learner) and not vit_of(learner).config.on_grid


def vit_of(learner: Learner) -> ViT:
    """The ViT of a learner. Raises `UnveilError` if it has none."""
    encoder = encoder_of(learner)
    image_config_of(learner)
    assert isinstance(encoder, ViT)
    return encoder


def image_config_of(learner: Learner) -> ViTConfig:
    """The image size, patch size and normalisation of a learner, also of a dVAE. Raises `UnveilError` for a text model."""
    config = learner.encoder.config
    if not isinstance(config, ViTConfig):
        raise UnveilError("this is a text model, expected an image model: for text see `unveil finetune` and `unveil fill-mask`")
    return config
