"""Discrete variational autoencoder (Ramesh et al., 2021, section 2.1): trains the visual tokenizer of BEiT on your own images.

    image -> logits of the tokens of each patch -> [Gumbel-softmax: a differentiable sample] -> image

B images, C H W, N patches, K tokens in the codebook. During training, the samples become sharper, and the weight of the divergence,
which favours a uniform use of all tokens, decreases. Without it in the first steps, a few tokens take over (LAB.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import patchify
from unveil.blocks.reconstruction import Reconstruction, reconstruction
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.visual_tokenizer import codebook_metrics, token_frequencies
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Method, Step
from unveil.models.dvae import DiscreteVAE, gumbel_softmax
from unveil.models.vit_config import ViTConfig
from unveil.ranges import NonNegative, Positive, Range


@dataclass(frozen=True, kw_only=True)
class DVAEConfig:
    """The options of the dVAE. Its width, at most 256, and its depth follow from `--model`."""

    HIDDEN = ("last_temperature", "last_kl_weight")
    codebook_size: Annotated[int, Range(2, 2**20)] | None = None
    """Number of visual tokens; by default 8192, or 512 for images smaller than 128 px."""
    temperature: Positive = 1.0
    """Temperature of the Gumbel-softmax at the first step; a higher one mixes more tokens."""
    last_temperature: Positive = 0.0625
    """Temperature at the last step; it falls geometrically."""
    straight: bool = False
    """Use one sampled token instead of a mixture, with the gradient of the mixture (straight-through)."""
    kl_weight: NonNegative = 0.2
    """Weight of the KL divergence between the token distribution of an image and the uniform one, at the first step."""
    last_kl_weight: NonNegative = 0.05
    """Weight of the KL divergence at the last step; it changes linearly."""


class DVAE(Method):
    """A dVAE as a learner. `encoder` is the whole dVAE; its features come from the encoder half."""

    Config = DVAEConfig
    DEFAULTS = {"base_lr": 1e-3, "weight_decay": 0.0, "beta2": 0.99, "epochs": 10.0}
    reconstructs_hidden, supports_finetuning = False, False
    encoder: DiscreteVAE
    config: DVAEConfig
    progress: Tensor

    def __init__(self, encoder: DiscreteVAE, config: DVAEConfig, augment: Augment | None = None) -> None:
        super().__init__()
        self.encoder, self.config, self.augmentation = encoder, replace(config, codebook_size=encoder.size), augment
        self.register_buffer("progress", torch.zeros(()))

    @classmethod
    def build(cls, vit: ViTConfig, config: DVAEConfig, augment: AugmentConfig) -> "DVAE":
        size = (512 if max(vit.image_size) < 128 else 8192) if config.codebook_size is None else config.codebook_size
        if size < 2:
            raise UnveilError(f"a codebook of {size} tokens cannot encode anything: use 2 or more, for example 512")
        return cls(DiscreteVAE(vit, size), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def after_step(self, progress: float) -> None:
        """Updates the schedules."""
        self.progress.fill_(progress)

    def temperature(self) -> Float[Tensor, ""]:
        """The current temperature of the Gumbel-softmax."""
        first, last = self.config.temperature, self.config.last_temperature
        return first * torch.exp(self.progress * math.log(last / first))

    def kl_weight(self) -> Float[Tensor, ""]:
        """The current weight of the divergence."""
        first, last = self.config.kl_weight, self.config.last_kl_weight
        return first + (last - first) * self.progress

    def forward(self, batch: Batch) -> Step:
        """Computes logits of the tokens, samples from them, decodes the sample, and computes the loss."""
        images, size = batch.images, self.encoder.config.image_size
        scores = self.encoder.encode(images)  # (B, N, K)
        weights = gumbel_softmax(scores, self.noise(batch.keys, scores.shape[1]), self.temperature(), self.config.straight)
        error = F.mse_loss(self.encoder.decode(weights, size).float(), images)
        usage = scores.softmax(dim=-1).mean(dim=1)  # (B, K): the distribution of tokens within each image
        divergence = math.log(self.encoder.size) - torch.special.entr(usage).sum(dim=1).mean()
        frequencies = token_frequencies(scores.argmax(dim=-1), self.encoder.size)
        metrics = {"rebuilt_error": error, "divergence": divergence, **codebook_metrics(frequencies)}
        return Step(error + self.kl_weight() * divergence, metrics)

    def noise(self, keys: Int[Tensor, " B"], patches: int) -> Float[Tensor, "B N K"]:
        """Uniform noise in [0, 1) for the Gumbel-softmax: K independent numbers for an image, shifted modulo 1 for each patch.

        Each patch still samples from the right distribution, but two patches of an image agree slightly more often than with
        independent noise. Computing B x N x K independent hashes would take longer than the rest of a step.
        """
        shifts = uniform(keys, patches, Stream.GUMBEL_SHIFT)[:, :, None]
        return (uniform(keys, self.encoder.size, Stream.GUMBEL)[:, None, :] + shifts) % 1

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """Encodes normalised images to tokens and decodes them. A dVAE encodes the full image and ignores `hidden`."""
        predicted = patchify(self.encoder.autoencode(images).float(), self.encoder.config.patch_size)
        hidden = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=images.device) if hidden is None else hidden
        return reconstruction(images, predicted, hidden, self.encoder.config.patch_size)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, Any]:
        """Squared error of reconstructions in normalised pixels, and the frequency of each token."""
        error = (self.encoder.autoencode(batch.images).float() - batch.images).square().mean()
        return {"rebuilt_error": float(error), "shares": token_frequencies(self.encoder(batch.images), self.encoder.size)}

    def reduce_metrics(self, means: dict[str, Any]) -> dict[str, float]:
        """The squared error, and how many tokens of the codebook all images together use."""
        usage = {name: float(value) for name, value in codebook_metrics(means["shares"]).items()}
        return {"rebuilt_error": means["rebuilt_error"]} | usage

    def figure_facts(self) -> Mapping[str, Any]:
        return {"mask_ratio": None, "sampling": None, "target": "pixel", "loss_on_all": True, "uses_true_patch_statistics": False}
