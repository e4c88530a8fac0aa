"""Momentum contrast for Vision Transformers (Chen, Xie and He, 2021).

    image -> 2 crops -> encoder -> projection -> prediction -> q -> which of all k's is of the other crop of my image?
               2 crops -> momentum encoder -> projection ------> k ---^

The k's are those of all processes. B images of a process, A of all, D width, E what is compared.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.distributed import SyncBatchNorm, all_gather_with_grad, global_row_ids
from unveil.blocks.ema import cosine_to_one, ema_copy, ema_update
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.multicrop import Views, pair
from unveil.learner import Method, Step
from unveil.models.vit import ViT, ViTConfig

DEFAULTS = {
    "crop": "resized",
    "crop_scale": 0.08,
    "jitter": 0.4,
    "base_lr": 1.5e-4,
    "warmup": 0.13,
    "weight_decay": 0.1,
    "beta2": 0.999,
}
"""What differs by default: crops of 0.08 to 1 of the image, and the paper's optimiser (40 of 300 epochs of warm-up)."""
OUT = 256


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config:
    """The knobs of MoCo v3."""

    momentum: float = 0.99
    """Share of itself that the momentum encoder keeps in a step; goes to 1 along half a cosine."""
    temperature: float = 0.2
    """Cosines are divided by it: the smaller, the more the nearest of the others count."""
    hidden: int | None = None
    """Hidden width of projection and prediction: 4096, or four times the encoder's where that is narrower than 384."""
    train_patches: bool = False
    """Train the projection of patches, too; the paper leaves it at random, for stability."""


class MoCoV3(Method):
    """An encoder whose crops of an image are found among those of all others."""

    Config = MoCoV3Config
    needs_whole_batch = True
    pool = "class"
    encoder: ViT
    config: MoCoV3Config

    def __init__(self, encoder: ViT, config: MoCoV3Config, augment: AugmentConfig) -> None:
        super().__init__()
        vit = encoder.config
        hidden = config.hidden or (4096 if vit.width >= 384 else 4 * vit.width)
        self.config, self.encoder = config, encoder
        encoder.embed.requires_grad_(config.train_patches)
        self.projection = layers(vit.width, hidden, hidden, OUT)
        self.prediction = layers(OUT, hidden, OUT)
        self.slow_encoder, self.slow_projection = ema_copy(encoder), ema_copy(self.projection)
        self.augmentation = Views(augment, vit.image_size, vit.mean, vit.std)
        self.crops = pair(vit.image_size, augment.crop_scale)

    @classmethod
    def build(cls, vit: ViTConfig, config: MoCoV3Config, augment: AugmentConfig) -> "MoCoV3":
        """An untrained encoder and its slow copy."""
        return cls(ViT(vit), config, augment)

    def augment(self, batch: Batch) -> Float[Tensor, "2 B C H W"]:
        """Draws two crops."""
        crops: Tensor = self.augmentation(batch, self.crops)
        return crops

    def forward(self, crops: Float[Tensor, "2 B C H W"]) -> Step:
        """Each crop looks for the other one of its image."""
        with torch.no_grad():
            first_key, second_key = map(self.slow_projection, self.slow_encoder(crops.flatten(0, 1))[:, 0].chunk(2))
        first, second = (self.prediction(self.projection(x)) for x in self.encoder(crops.flatten(0, 1))[:, 0].chunk(2))
        return Step(self.contrast(first, second_key) + self.contrast(second, first_key), {})

    def contrast(self, query: Float[Tensor, "B E"], key: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
        """InfoNCE (van den Oord et al., 2018), times twice the temperature, so that this does not change the size of gradients."""
        keys = all_gather_with_grad(F.normalize(key, dim=1))  # (A, E)
        cosines = F.linear(F.normalize(query, dim=1), keys).float()  # (B, A)
        temperature = self.config.temperature
        return 2 * temperature * F.cross_entropy(cosines / temperature, global_row_ids(len(query), query.device))

    def after_step(self, progress: float) -> None:
        """The slow copies follow."""
        momentum = cosine_to_one(self.config.momentum, progress)
        ema_update(self.slow_encoder, self.encoder, momentum)
        ema_update(self.slow_projection, self.projection, momentum)


def layers(*widths: int) -> nn.Sequential:
    """Linear layers, each with a batch norm; the last without what it could learn, the others with a ReLU."""
    made: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        linear = nn.Linear(narrow, wide, bias=False)
        made += [linear, SyncBatchNorm(wide, affine=False)] if last else [linear, SyncBatchNorm(wide), nn.ReLU()]
    return nn.Sequential(*made)
