"""A method of one's own, a denoising autoencoder, in one file. Run: python examples/custom_method.py photos/ [epochs]."""

import sys
from dataclasses import dataclass

import torch

import unveil
from unveil.blocks.patches import patchify
from unveil.data.augment import Augment
from unveil.learner import Method, Step
from unveil.methods import METHODS
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """The one knob: how strong the noise is, in normalised pixels."""
    noise: float = 1.0


class Denoise(Method):
    """Every patch is seen, under noise, and the token of each predicts its clean pixels."""
    Config = DenoiseConfig

    @classmethod
    def build(cls, vit, config, augment):
        self, values = cls(), vit.patch_size[0] * vit.patch_size[1] * vit.channels
        self.encoder, self.head, self.config = ViT(vit), torch.nn.Linear(vit.width, values), config
        self.augment = self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        return self

    def forward(self, batch):
        noisy = batch.images + self.config.noise * torch.randn_like(batch.images)
        clean = patchify(batch.images, self.encoder.config.patch_size)         # (B, N, P)
        return Step((self.head(self.encoder(noisy)[:, 1:]) - clean).square().mean(), {})


if __name__ == "__main__":
    METHODS["denoise"] = "__main__:Denoise"                                    # or "package.module:Denoise"
    unveil.pretrain(sys.argv[1], method="denoise", model="vit-nano", epochs=float([*sys.argv, 100][2]))
