"""Discrete variational autoencoder (Ramesh et al., 2021, section 2.1): the tokenizer of BEiT, trained on the images at hand.

    image -> a score for each token at each patch -> [Gumbel-softmax: a draw that gradients go through] -> image

B images, C H W, N patches, K tokens in the codebook. As training goes on, the draws become sharper and the pull towards a use of
all tokens alike gives way: without it in the first steps, a few tokens take all (LAB.md).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import patchify
from unveil.blocks.reconstruction import Reconstruction, reconstruction
from unveil.blocks.stateless_random import uniform
from unveil.blocks.visual_tokenizer import shares_of, usage
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Method, Step
from unveil.models.dvae import DiscreteVAE, gumbel_softmax
from unveil.models.vit import ViTConfig

DEFAULTS = {"base_lr": 1e-3, "weight_decay": 0.0, "beta2": 0.99, "epochs": 10.0}


@dataclass(frozen=True, kw_only=True)
class DVAEConfig:
    """The knobs of the dVAE; `--model` turns its width, up to 256, and its depth."""

    codebook: int | None = None
    """Tokens that there are: 8192, or 512 for images smaller than 128 px."""
    temperature: float = 1.0
    """Of the draws in the first step; higher blends more tokens."""
    last_temperature: float = 0.0625
    """Of the draws in the last step; it falls as a geometric row."""
    straight: bool = False
    """Draw one token instead of a blend, and let the gradient pass as if it were the blend (straight-through)."""
    kl_weight: float = 0.2
    """Weight, in the first step, of how far an image's tokens together are from all tokens alike (KL divergence)."""
    last_kl_weight: float = 0.05
    """The same in the last step; it changes in a line."""


class DVAE(Method):
    """A dVAE as a learner; `encoder` is the whole of it, judged by what its encoder sees."""

    Config = DVAEConfig
    reconstructs_hidden, supports_finetuning = False, False
    encoder: DiscreteVAE
    config: DVAEConfig
    progress: Tensor

    def __init__(self, encoder: DiscreteVAE, config: DVAEConfig, augment: Augment | None = None) -> None:
        super().__init__()
        self.encoder, self.config, self.augmentation = encoder, replace(config, codebook=encoder.size), augment
        self.register_buffer("progress", torch.zeros(()))

    @classmethod
    def build(cls, vit: ViTConfig, config: DVAEConfig, augment: AugmentConfig) -> "DVAE":
        """An untrained dVAE."""
        codebook = (512 if max(vit.image_size) < 128 else 8192) if config.codebook is None else config.codebook
        if codebook < 2:
            raise UnveilError(f"a codebook of {codebook} tokens says nothing: use 2 or more, for example 512")
        return cls(DiscreteVAE(vit, codebook), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def augment(self, batch: Batch) -> Batch:
        """Crops, flips and normalises."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def after_step(self, progress: float) -> None:
        """The schedules follow the run."""
        self.progress.fill_(progress)

    def temperature(self) -> Float[Tensor, ""]:
        """Of the draws, now."""
        first, last = self.config.temperature, self.config.last_temperature
        return first * torch.exp(self.progress * math.log(last / first))

    def kl_weight(self) -> Float[Tensor, ""]:
        """Of the divergence, now."""
        first, last = self.config.kl_weight, self.config.last_kl_weight
        return first + (last - first) * self.progress

    def forward(self, batch: Batch) -> Step:
        """Score, draw, rebuild, compare."""
        images, size = batch.images, self.encoder.config.image_size
        scores = self.encoder.encode(images)  # (B, N, K)
        chosen = gumbel_softmax(scores, self.noise(batch.keys, scores.shape[1]), self.temperature(), self.config.straight)
        error = F.mse_loss(self.encoder.decode(chosen, size).float(), images)
        together = scores.softmax(dim=-1).mean(dim=1)  # (B, K), image by image: none are compared
        divergence = math.log(self.encoder.size) - torch.special.entr(together).sum(dim=1).mean()
        metrics = {"rebuilt_error": error, "divergence": divergence, **usage(shares_of(scores.argmax(dim=-1), self.encoder.size))}
        return Step(error + self.kl_weight() * divergence, metrics)

    def noise(self, keys: Int[Tensor, " B"], patches: int) -> Float[Tensor, "B N K"]:
        """Numbers in [0, 1) for the draws: independent ones for the tokens of a patch, and for each patch the same, turned round.

        So each patch draws as it should, and two of an image draw the same a little more often than independent ones would. A hash
        for each number of its own would take more time than all the rest of a step.
        """
        turns = uniform(keys, patches, stream=1)[:, :, None]
        return (uniform(keys, self.encoder.size, stream=2)[:, None, :] + turns) % 1

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """The normalised images as their tokens tell them; a dVAE sees all of an image, whatever `hidden` says."""
        painted = patchify(self.encoder.rebuild(images).float(), self.encoder.config.patch_size)
        hidden = torch.zeros(painted.shape[:2], dtype=torch.bool, device=images.device) if hidden is None else hidden
        return reconstruction(images, painted, hidden, self.encoder.config.patch_size)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, Any]:
        """Squared error of images rebuilt from their tokens, in normalised pixels, and how often they need each token."""
        error = (self.encoder.rebuild(batch.images).float() - batch.images).square().mean()
        return {"rebuilt_error": float(error), "shares": shares_of(self.encoder(batch.images), self.encoder.size)}

    def reduce_metrics(self, means: dict[str, Any]) -> dict[str, float]:
        """The error, and how much of the codebook all images together use."""
        return {"rebuilt_error": means["rebuilt_error"]} | {k: float(value) for k, value in usage(means["shares"]).items()}
