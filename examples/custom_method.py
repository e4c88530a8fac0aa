"""A method of one's own, a denoising autoencoder, in one file. Run: python examples/custom_method.py photos/ [epochs]."""

import sys
from dataclasses import dataclass

from torch import nn, randn_like

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
        self.config, self.encoder, self.head = config, ViT(vit), nn.Linear(vit.width, values)
        self.augment = self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        return self

    def forward(self, batch):
        noisy, patch = batch.images + self.config.noise * randn_like(batch.images), self.encoder.config.patch_size
        return Step((self.head(self.encoder(noisy)[:, 1:]) - patchify(batch.images, patch)).square().mean(), {})


if __name__ == "__main__":
    METHODS["denoise"] = "__main__:Denoise"  # or "package.module:Denoise"
    unveil.pretrain(sys.argv[1], method="denoise", model="vit-nano", epochs=float([*sys.argv, 100][2]))
