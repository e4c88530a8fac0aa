"""A denoising autoencoder, defined outside of the package. Run: python examples/custom_method.py photos/ [epochs]."""

import sys
from dataclasses import dataclass

from torch import nn, randn_like

import unveil
from unveil.blocks.patches import patchify
from unveil.data.augment import Augment
from unveil.learner import Method, Step
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Options:
    noise: float = 1.0
    """Standard deviation of the noise, in normalised pixels."""


class Denoise(Method):
    """The encoder sees all patches with noise; a linear layer predicts the clean pixels of each patch from its token."""

    Config = Options

    @classmethod
    def build(cls, vit, config, augment):
        self, values = cls(), vit.patch_size[0] * vit.patch_size[1] * vit.channels  # in a patch
        self.config, self.encoder, self.head = config, ViT(vit), nn.Linear(vit.width, values)
        self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        return self

    def forward(self, batch):
        noisy, size = batch.images + self.config.noise * randn_like(batch.images), self.encoder.config.patch_size
        return Step((self.head(self.encoder(noisy)[:, 1:]) - patchify(batch.images, size)).square().mean(), {})


if __name__ == "__main__":  # or: unveil pretrain photos/ --method examples/custom_method.py:Denoise --noise 0.5
    unveil.pretrain(sys.argv[1], method=Denoise, model="vit-nano", epochs=float([*sys.argv, 100][2]))
