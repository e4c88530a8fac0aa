"""SimMIM (Xie et al., 2021): pixels of hidden squares, from an encoder that sees mask tokens in their place.

    image -> patches -> [mask tokens in 60 %, in squares] -> encoder -> linear head -> pixels of the hidden patches

B images, C H W, N patches, M hidden, P values in a patch, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.fast.recompute import Linear
from unveil.blocks.masks import Mask, as_bool, given_mask, unit_mask, units_of
from unveil.blocks.patches import gather, patchify
from unveil.blocks.reconstruction import Reconstruction, reconstruction
from unveil.blocks.stateless_random import uniform
from unveil.blocks.targets import NormalisedTarget, PixelTarget
from unveil.blocks.transformer import xavier
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.learner import Method, Step
from unveil.models.vit import ViT, ViTConfig

DEFAULTS = {"base_lr": 1e-4, "beta2": 0.999, "clip": 5.0, "crop_scale": 0.67}


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig:
    """The knobs of SimMIM."""

    mask_ratio: float = 0.6
    """Share of the image that is hidden."""
    mask_unit: int = 2
    """Side of the squares that are hidden, in patches: the paper's 32 px are 2 patches of 16."""
    target: Literal["pixel", "normalised"] = "pixel"
    """What is painted: pixels (the paper's), or pixels less their patch's mean, over its deviation (MAE's), for better features."""


class SimMIM(Method):
    """An encoder with mask tokens, and a linear layer from each token to the pixels of its patch."""

    Config = SimMIMConfig
    encoder: ViT
    config: SimMIMConfig

    def __init__(self, encoder: ViT, config: SimMIMConfig, augment: Augment | None = None) -> None:
        super().__init__()
        vit = encoder.config
        self.config, self.encoder, self.augmentation = config, encoder, augment
        made = NormalisedTarget if config.target == "normalised" else PixelTarget
        self.target = made(vit.patch_size, vit.channels)
        self.mask_token = nn.Parameter(torch.randn(vit.width) * 0.02)
        self.head = Linear(vit.width, self.target.size)
        xavier(self.head)
        self.mask(torch.zeros(1, dtype=torch.int64))  # what cannot be hidden is refused now

    @classmethod
    def build(cls, vit: ViTConfig, config: SimMIMConfig, augment: AugmentConfig) -> "SimMIM":
        """An untrained learner."""
        return cls(ViT(vit), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def augment(self, batch: Batch) -> Batch:
        """Crops, flips and normalises."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def forward(self, batch: Batch) -> Step:
        """Hide, encode, paint, compare."""
        _, hide = self.mask(batch.keys)
        painted = gather(self.paint(batch.images, hide), hide)  # (B, M, P)
        return Step(F.l1_loss(painted.float(), self.target(batch.images, hide).float()), {})

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """The patches to keep (B, V) and to hide (B, M) of the samples with these keys."""
        grid, unit = self.encoder.config.grid, self.config.mask_unit
        noise = uniform(keys, math.prod(units_of(grid, unit)), stream=1)
        return unit_mask(noise, grid, self.config.mask_ratio, unit)

    def paint(self, images: Tensor, hide: Int[Tensor, "B M"]) -> Float[Tensor, "B N P"]:
        """Predicts every patch, each in its place."""
        tokens = self.encoder(images, hidden=as_bool(hide, math.prod(self.encoder.config.grid)), mask_token=self.mask_token)
        painted: Tensor = self.head(tokens[:, 1:])
        return painted

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """Rebuilds normalised images; `hidden` is True where a patch is hidden, the same count in each row.

        With a normalised target each patch borrows its true mean and deviation.
        """
        vit = self.encoder.config
        if hidden is None:
            _, hide = self.mask(torch.randint(2**62, (len(images),), device=images.device))
        else:
            _, hide = given_mask(hidden, len(images), math.prod(vit.grid))
        painted = self.target.pixels(self.paint(images, hide).float(), patchify(images, vit.patch_size))
        return reconstruction(images, painted, as_bool(hide, math.prod(vit.grid)), vit.patch_size)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """Squared error on the hidden patches in normalised pixels, beside two guesses: the patch's and the image's mean."""
        keep, hide = self.mask(batch.keys)
        return self.target.errors(gather(self.paint(batch.images, hide), hide), batch.images, keep, hide)
