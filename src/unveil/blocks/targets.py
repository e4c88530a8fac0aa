"""What the decoder has to say about a hidden patch (MAE, table 1d).

Letters: B images, N patches, M hidden, P values in a patch, Q numbers predicted for a patch.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import Size, gather, patchify
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.errors import UnveilError


class Target(nn.Module, ABC):
    """Makes the target of each hidden patch, compares, and turns a prediction back into pixels."""

    size: int
    """Q, how many numbers are predicted for a patch."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Tensor:
        """The targets of the patches at the positions `hide`."""

    def loss(self, predicted: Float[Tensor, "B M Q"], target: Tensor) -> Float[Tensor, ""]:
        """Mean squared error, in float32."""
        return F.mse_loss(predicted.float(), target.float())

    @abstractmethod
    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        """A prediction as pixels; the true patches lend what the target leaves out."""

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        """Sees a sample of the images once, before the first step."""

    @abstractmethod
    def errors(
        self, predicted: Float[Tensor, "B M Q"], images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]
    ) -> dict[str, float]:
        """Numbers that say how good a prediction of the patches `hide` is, when the patches `keep` were seen."""


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

    def errors(
        self, predicted: Float[Tensor, "B M Q"], images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]
    ) -> dict[str, float]:
        """Squared error in normalised pixels, beside two guesses: the patch's and the image's mean."""
        true = patchify(images, self.patch_size)  # (B, N, P)
        hidden, seen = (gather(true, part).reshape(len(true), part.shape[1], -1, images.shape[1]) for part in (hide, keep))
        guesses = {
            "held_out_error": self.pixels(predicted.float(), gather(true, hide)).reshape(hidden.shape),
            "patch_mean_error": hidden.mean(dim=2, keepdim=True),
            "image_mean_error": seen.mean(dim=(1, 2), keepdim=True),
        }
        return {name: float((hidden - guess).square().mean()) for name, guess in guesses.items()}


class NormalisedTarget(PixelTarget):
    """The pixels less their patch's mean, over its standard deviation (unbiased variance + 1e-6, as the public code)."""

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
        """Uses the true mean and deviation of each patch: say so wherever this is shown."""
        mean, deviation = self.moments(true)
        return predicted * deviation + mean


class PCATarget(PixelTarget):
    """The largest principal coefficients of each patch, 96 in the paper; the axes are fitted once, on a sample."""

    axes: Tensor
    centre: Tensor

    def __init__(self, patch_size: Size, channels: int, coefficients: int = 96) -> None:
        super().__init__(patch_size, channels)
        values = self.size
        self.size = min(coefficients, values)
        self.register_buffer("axes", torch.zeros(values, self.size))
        self.register_buffer("centre", torch.zeros(values))

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        patches = patchify(images, self.patch_size).flatten(0, 1).double()  # (B * N, P)
        self.centre.copy_(patches.mean(dim=0))
        _, axes = torch.linalg.eigh(torch.cov(patches.T).reshape(len(self.centre), -1))
        axes = axes[:, -self.size :].flip(1)  # eigh sorts upwards
        self.axes.copy_(axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign())  # a sign that does not flip

    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B M Q"]:
        return (super().forward(images, hide) - self.centre) @ self.axes

    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        return predicted.to(self.axes.dtype) @ self.axes.T + self.centre


class TokenTarget(Target):
    """The visual token that a tokenizer gives each patch; cross-entropy (BEiT, section 2.3)."""

    def __init__(self, tokenizer: VisualTokenizer) -> None:
        super().__init__()
        self.tokenizer, self.size = tokenizer, tokenizer.size

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        self.tokenizer.prepare(images)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], hide: Int[Tensor, "B M"]) -> Int[Tensor, "B M"]:
        tokens: Tensor = self.tokenizer(images)
        return tokens.gather(1, hide)

    def loss(self, predicted: Float[Tensor, "B M Q"], target: Tensor) -> Float[Tensor, ""]:
        return F.cross_entropy(predicted.float().flatten(0, 1), target.flatten())

    def pixels(self, predicted: Float[Tensor, "B M Q"], true: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
        """Raises `UnveilError`: a token is no image."""
        raise UnveilError("a model that predicts visual tokens cannot draw pixels: train with a pixel target to see them")

    def errors(
        self, predicted: Float[Tensor, "B M Q"], images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]
    ) -> dict[str, float]:
        """Cross-entropy, and the share of tokens that is found."""
        target = self(images, hide)
        found = (predicted.argmax(dim=2) == target).float().mean()
        return {"held_out_loss": float(self.loss(predicted, target)), "token_accuracy": float(found)}
