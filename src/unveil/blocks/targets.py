"""Prediction targets for masked patches (MAE, table 1d).

Letters: B images, C channels, H W pixels, N patches, V visible, M masked, P values in a patch, Q numbers predicted for a patch.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import Size, gather, patchify
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.errors import UnveilError


class Target(nn.Module, ABC):
    """Computes the target of each masked patch, the loss of a prediction, and the pixels of a prediction."""

    size: int
    """Q, the number of values that are predicted for a patch."""
    uses_true_statistics: ClassVar[bool] = False
    """Whether `pixels` needs statistics of the true patches. Figures must say so."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Tensor:
        """The targets of the patches at the indices `hide`."""

    def loss(self, predicted: Float[Tensor, "B M Q"], target: Tensor) -> Float[Tensor, ""]:
        """Mean squared error, in float32."""
        return F.mse_loss(predicted.float(), target.float())

    @abstractmethod
    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        """Converts a prediction to pixels. Information that the target lacks is taken from the true patches."""

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        """Receives a sample of the images once, before the first step."""

    @abstractmethod
    def metrics(
        self, predicted: Float[Tensor, "B M Q"], images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]
    ) -> dict[str, float]:
        """Metrics of a prediction of the patches `hide`, given the patches `keep`."""


class PixelTarget(Target):
    """The pixels themselves."""

    def __init__(self, patch_size: Size, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.size = patch_size[0] * patch_size[1] * channels

    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B M Q"]:
        return gather(patchify(images, self.patch_size), hide)

    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        return predicted

    def metrics(
        self, predicted: Float[Tensor, "B M Q"], images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]
    ) -> dict[str, float]:
        """Squared error in normalised pixels, and that of two baselines: the mean of the masked patch, and of the visible image."""
        true = patchify(images, self.patch_size)  # (B, N, P)
        hidden, visible = (gather(true, part).reshape(len(true), part.shape[1], -1, images.shape[1]) for part in (hide, keep))
        guesses = {
            "held_out_error": self.pixels(predicted.float(), gather(true, hide)).reshape(hidden.shape),
            "patch_mean_error": hidden.mean(dim=2, keepdim=True),
            "image_mean_error": visible.mean(dim=(1, 2), keepdim=True),
        }
        return {name: float((hidden - guess).square().mean()) for name, guess in guesses.items()}


class NormalisedTarget(PixelTarget):
    """The pixels minus the mean of their patch, over its standard deviation (unbiased variance + 1e-6, as the public code)."""

    uses_true_statistics = True

    @staticmethod
    def moments(patches: Float[Tensor, "B M P"]) -> tuple[Float[Tensor, "B M 1"], Float[Tensor, "B M 1"]]:
        """Mean and standard deviation of each patch."""
        variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B M Q"]:
        patches = super().forward(images, hide)
        mean, deviation = self.moments(patches)
        return (patches - mean) / deviation

    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        """Uses the true mean and standard deviation of each patch."""
        mean, deviation = self.moments(true)
        return predicted * deviation + mean


PCA_COEFFICIENTS = 96
"""The principal components of a patch that the paper predicts (table 1d)."""


class PCATarget(PixelTarget):
    """The first principal components of each patch. The axes are fitted once, on a sample of images."""

    axes: Tensor
    centre: Tensor

    def __init__(self, patch_size: Size, channels: int, coefficients: int = PCA_COEFFICIENTS) -> None:
        super().__init__(patch_size, channels)
        values = self.size
        self.size = min(coefficients, values)
        self.register_buffer("axes", torch.zeros(values, self.size))
        self.register_buffer("centre", torch.zeros(values))

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        patches = patchify(images, self.patch_size).flatten(0, 1).double()  # (B * N, P)
        self.centre.copy_(patches.mean(dim=0))
        _, axes = torch.linalg.eigh(torch.cov(patches.T).reshape(len(self.centre), -1))
        axes = axes[:, -self.size :].flip(1)  # eigh sorts in ascending order
        # The sign of an axis is arbitrary: the largest coordinate is made positive, so that it is the same on every machine.
        self.axes.copy_(axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign())

    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B M Q"]:
        with torch.autocast(images.device.type, enabled=False):  # in half precision, the target would have an error of 0.3 %
            return (super().forward(images, hide).to(self.axes.dtype) - self.centre) @ self.axes

    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        return predicted.to(self.axes.dtype) @ self.axes.T + self.centre


class TokenTarget(Target):
    """The visual token of each patch, predicted with a cross-entropy loss (BEiT, section 2.3)."""

    def __init__(self, tokenizer: VisualTokenizer) -> None:
        super().__init__()
        self.tokenizer, self.size = tokenizer, tokenizer.size

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        self.tokenizer.prepare(images)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Int[Tensor, "B M"]:
        with torch.autocast(images.device.type, enabled=False):  # in half precision, 0.8 % of the tokens of a dVAE would differ
            tokens: Tensor = self.tokenizer(images.to(torch.promote_types(images.dtype, torch.float32)))
        return tokens.gather(1, hide)

    def loss(self, predicted: Float[Tensor, "B M Q"], target: Tensor) -> Float[Tensor, ""]:
        return F.cross_entropy(predicted.float().flatten(0, 1), target.flatten())

    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        """Raises `UnveilError`: a token is not an image."""
        raise UnveilError("a model that predicts visual tokens cannot reconstruct pixels: train one with a pixel target instead")

    def metrics(
        self, predicted: Float[Tensor, "B M Q"], images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]
    ) -> dict[str, float]:
        """Cross-entropy, and the share of tokens that are predicted correctly."""
        target = self(images, hide)
        accuracy = (predicted.argmax(dim=2) == target).float().mean()
        return {"held_out_loss": float(self.loss(predicted, target)), "token_accuracy": float(accuracy)}


PIXEL_TARGETS: dict[str, type[PixelTarget]] = {"pixel": PixelTarget, "normalised": NormalisedTarget, "pca": PCATarget}
"""The targets that are computed from patches alone, by the values of MAE's option `target`."""
