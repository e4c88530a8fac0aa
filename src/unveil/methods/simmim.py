"""SimMIM (Xie et al., 2021): predicts the pixels of masked squares, from an encoder that gets mask tokens in their place.

    image -> patches -> [mask tokens in 60 %, in squares] -> encoder -> linear head -> pixels of the masked patches

B images, C H W, N patches, V visible, M masked, P values in a patch, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.block_masks import unit_mask, units_of
from unveil.blocks.feature_target import TeacherConfig, feature_target
from unveil.blocks.init import xavier
from unveil.blocks.masks import Mask, as_bool, given_mask
from unveil.blocks.patches import gather, patchify
from unveil.blocks.reconstruction import Reconstruction, reconstruction
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.targets import PIXEL_TARGETS
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.learner import Method, Step
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.ranges import Count, Positive, Share, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(TeacherConfig):
    """The options of SimMIM."""

    HIDDEN = ("positions", "layer_scale", "teacher_weight")
    mask_ratio: Share = 0.6
    """Share of the image that is masked."""
    mask_unit: Count = 2
    """Side of the masked squares in patches; the paper's 32 px are 2 patches of 16 px."""
    target: Literal["pixel", "normalised"] = "pixel"
    """Prediction target: raw pixels as in the paper, or pixels normalised in each patch as in MAE, for better features."""
    relative_bias: Literal["shared", "block", "none"] = "shared"
    """Learned attention biases by relative position: one table for all blocks, one per block, or none."""
    positions: Literal["none", "sincos", "learned"] = "none"
    """Position embeddings, in addition to the relative biases."""
    layer_scale: Positive | None = 0.1
    """Initial value of LayerScale, a learned factor on each branch."""
    drop_path: ShareBelowOne = 0.1
    """Probability that a sample skips a block, in the last block; it grows linearly with depth."""


class SimMIM(Method):
    """An encoder with mask tokens, and a linear layer from each token to the pixels of its patch."""

    Config = SimMIMConfig
    DEFAULTS = {
        "base_lr": 5e-5,  # 1e-4 for a batch of 512
        "schedule": "multistep",
        "warmup_ratio": 0.0125,  # 10 of 800 epochs
        "beta2": 0.999,
        "clip_grad": 5.0,
        "crop_scale": 0.67,
    }
    """The recipe of the public code for ViT-B."""
    encoder: ViT
    config: SimMIMConfig

    def __init__(self, encoder: ViT, config: SimMIMConfig, augment: Augment | None = None) -> None:
        super().__init__()
        vit = encoder.config
        self.config, self.encoder, self.augmentation = config, encoder, augment
        self.target = PIXEL_TARGETS[config.target](vit.patch_size, vit.channels)
        self.mask_token = nn.Parameter(torch.randn(vit.width) * 0.02)
        self.head = nn.Linear(vit.width, self.target.size)
        xavier(self.head)
        self.feature_target = feature_target(config, vit.width)  # last, so that a teacher changes no other random weight
        self.mask(torch.zeros(1, dtype=torch.int64))  # fails now, not during training, if the ratio is impossible

    @classmethod
    def build(cls, vit: ViTConfig, config: SimMIMConfig, augment: AugmentConfig) -> "SimMIM":
        """An untrained learner. The options set the positions, relative biases, layer scale and drop path of its encoder."""
        vit = replace(
            vit,
            positions=config.positions,
            relative_bias=config.relative_bias,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
        )
        return cls(ViT(vit), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def forward(self, batch: Batch) -> Step:
        """Masks patches, encodes the image, predicts the masked patches, and computes the loss."""
        keep, hide = self.mask(batch.keys)
        tokens = self.encode(batch.images, hide)  # (B, N, D)
        predicted = gather(self.head(tokens), hide)  # (B, M, P)
        loss = F.l1_loss(predicted.float(), self.target(batch.images, hide).float())
        if self.feature_target is None:
            return Step(loss, {})
        feature_loss = self.feature_target(gather(tokens, keep), keep, batch.features)
        metrics = {"reconstruction_loss": loss, "feature_loss": feature_loss}
        return Step(loss + self.feature_target.weight * feature_loss, metrics)

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """Indices of the patches to keep (B, V) and to hide (B, M), for the samples with these keys."""
        grid, unit = self.encoder.config.grid, self.config.mask_unit
        noise = uniform(keys, math.prod(units_of(grid, unit)) + 1, Stream.MASK)
        return unit_mask(noise, grid, self.config.mask_ratio, unit)

    def predict_patches(self, images: Tensor, hide: Int[Tensor, "B M"]) -> Float[Tensor, "B N P"]:
        """Predictions for all patches, in their order in the image."""
        predicted: Tensor = self.head(self.encode(images, hide))
        return predicted

    def encode(self, images: Tensor, hide: Int[Tensor, "B M"]) -> Float[Tensor, "B N D"]:
        """Tokens of all patches, without the class token, with mask tokens for the masked patches."""
        patches = math.prod(self.encoder.config.grid)
        tokens: Tensor = self.encoder(images, hidden=as_bool(hide, patches), mask_token=self.mask_token)
        return tokens[:, -patches:]

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """Reconstructs normalised images; `hidden` is True where a patch is masked, the same count in each row.

        A normalised target needs the true mean and standard deviation of each patch.
        """
        vit = self.encoder.config
        if hidden is None:
            _, hide = self.mask(torch.randint(2**62, (len(images),), device=images.device))
        else:
            _, hide = given_mask(hidden, len(images), math.prod(vit.grid))
        pixels = self.target.pixels(self.predict_patches(images, hide).float(), patchify(images, vit.patch_size))
        return reconstruction(images, pixels, as_bool(hide, math.prod(vit.grid)), vit.patch_size)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """Squared error of the masked patches in normalised pixels, with two baselines; see `PixelTarget.metrics`."""
        keep, hide = self.mask(batch.keys)
        return self.target.metrics(gather(self.predict_patches(batch.images, hide), hide), batch.images, keep, hide)

    def figure_facts(self) -> Mapping[str, Any]:
        return {
            "mask_ratio": self.config.mask_ratio,
            "sampling": None,  # figures show random masks
            "target": self.config.target,
            "loss_on_all": False,
            "uses_true_patch_statistics": self.target.uses_true_statistics,
        }
