"""An encoder whose file has no decoder: it can see, and cannot paint."""

from typing import Any, NoReturn

from torch import Tensor

from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.models.bert import TextEncoder
from unveil.models.vit import ViT


class EncoderOnly(Learner):
    """A learner with an encoder and nothing to train it with.

    Attributes:
        encoder: Offers `encoder(images)` and `encoder.features(images)` as that of any method.
        source: The file that it comes from.
    """

    def __init__(self, encoder: ViT | TextEncoder, source: str = "this model") -> None:
        super().__init__()
        self.encoder, self.source = encoder, source

    def refuse(self) -> NoReturn:
        """Raises `UnveilError`: there is no decoder."""
        raise UnveilError(
            f"{self.source} has no decoder, so it cannot reconstruct images: use .encoder, or load a file with the decoder"
        )

    def forward(self, batch: Any) -> Step:
        """Raises `UnveilError`."""
        self.refuse()

    def loss(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Raises `UnveilError`."""
        self.refuse()

    def reconstruct(self, images: Tensor, hidden: Tensor | None = None) -> Any:
        """Raises `UnveilError`."""
        self.refuse()
