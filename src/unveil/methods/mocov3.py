"""Momentum contrast for Vision Transformers (Chen, Xie and He, 2021).

    image -> 2 crops -> encoder -> projection -> prediction -> query -> which key is that of the other crop of the same image?
               2 crops -> momentum encoder -> projection ----> keys -------^

The keys come from all processes. B images of one process, A images of all processes, D width, E width of queries and keys.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.distributed import SyncBatchNorm, all_gather_with_grad, global_row_ids
from unveil.blocks.ema import cosine_to_one, ema_copy, ema_update
from unveil.blocks.transformer import Block
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.multicrop import MultiCrop, byol_views
from unveil.learner import Method, Step
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.ranges import Positive, Share, Width

KEY_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config:
    """The options of MoCo v3."""

    HIDDEN = ("hidden", "train_patches")
    momentum: Share = 0.99
    """EMA momentum of the momentum encoder, which rises to 1 along half a cosine."""
    temperature: Positive = 0.2
    """Temperature of the contrastive loss; a lower one gives more weight to the nearest negatives."""
    hidden: Width | None = None
    """Hidden width of projector and predictor; by default 4096, or 4 times that of encoders narrower than 384."""
    train_patches: bool = False
    """Train the patch embedding, which the paper leaves at its random initialisation for stability."""


class MoCoV3(Method):
    """An encoder that identifies two crops of the same image among the crops of all images."""

    Config = MoCoV3Config
    DEFAULTS = {
        "crop": "resized",
        "crop_scale": 0.08,
        "crop_from": "shrunk",  # views are cut on the device, from a canvas for the largest image of a batch
        "color_jitter": 0.4,
        "base_lr": 1.5e-4,
        "warmup_ratio": 0.13,  # 40 of 300 epochs
        "weight_decay": 0.1,
        "beta2": 0.999,
    }
    needs_whole_batch = True
    pool = "class"
    encoder: ViT
    config: MoCoV3Config

    def __init__(self, encoder: ViT, config: MoCoV3Config, augment: AugmentConfig) -> None:
        super().__init__()
        vit = encoder.config
        vit.require_class_token("MoCo v3")
        hidden = config.hidden or (4096 if vit.width >= 384 else 4 * vit.width)
        self.config, self.encoder = config, encoder
        encoder.embed.requires_grad_(config.train_patches)
        self.projection = mlp_with_batch_norm(vit.width, hidden, hidden, KEY_WIDTH)
        self.prediction = mlp_with_batch_norm(KEY_WIDTH, hidden, KEY_WIDTH)
        self.slow_encoder, self.slow_projection = ema_copy(encoder), ema_copy(self.projection)
        self.augmentation = MultiCrop(augment, vit.image_size, vit.mean, vit.std)
        self.crops = byol_views(vit.image_size, augment.crop_scale)

    @classmethod
    def build(cls, vit: ViTConfig, config: MoCoV3Config, augment: AugmentConfig) -> "MoCoV3":
        """An untrained encoder, and a momentum encoder with the same weights."""
        encoder = ViT(vit)
        initialise(encoder)
        return cls(encoder, config, augment)

    def augment(self, batch: Batch) -> Float[Tensor, "2 B C H W"]:
        """Draws two crops of each image."""
        crops: Tensor = self.augmentation(batch, self.crops)
        return crops

    def forward(self, crops: Float[Tensor, "2 B C H W"]) -> Step:
        """The contrastive loss between the two crops of each image, in both directions."""
        with torch.no_grad():
            first_key, second_key = map(self.slow_projection, self.slow_encoder(crops.flatten(0, 1))[:, 0].chunk(2))
        first, second = (self.prediction(self.projection(x)) for x in self.encoder(crops.flatten(0, 1))[:, 0].chunk(2))
        return Step(self.contrastive_loss(first, second_key) + self.contrastive_loss(second, first_key), {})

    def contrastive_loss(self, query: Float[Tensor, "B E"], key: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
        """InfoNCE (van den Oord et al., 2018), times 2 x temperature, so that gradients do not scale with the temperature."""
        keys = all_gather_with_grad(F.normalize(key, dim=1))  # (A, E)
        cosines = F.linear(F.normalize(query, dim=1), keys).float()  # (B, A)
        temperature = self.config.temperature
        return 2 * temperature * F.cross_entropy(cosines / temperature, global_row_ids(len(query), query.device))

    def after_step(self, progress: float) -> None:
        """Updates the momentum encoder."""
        momentum = cosine_to_one(self.config.momentum, progress)
        ema_update(self.slow_encoder, self.encoder, momentum)
        ema_update(self.slow_projection, self.projection, momentum)


@torch.no_grad()
def initialise(encoder: ViT) -> None:
    """The initial weights of the public code, on which stable training depends (section 4).

    Query, key and value are Xavier-uniform by themselves, with a bound of sqrt(6 / 2D), and not as one matrix of 3D rows, with
    sqrt(6 / 4D). The class token is nearly 0.
    """
    for block in encoder.transformer.blocks:
        assert isinstance(block, Block)
        block.attention.query_key_value.weight.mul_(2**0.5)
    if encoder.class_token is not None:
        encoder.class_token.mul_(1e-6 / 0.02)


def mlp_with_batch_norm(*widths: int) -> nn.Sequential:
    """Linear layers with a batch norm and a ReLU after each; the last one has a batch norm without parameters, and no ReLU."""
    layers: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        linear = nn.Linear(narrow, wide, bias=False)
        layers += [linear, SyncBatchNorm(wide, affine=False)] if last else [linear, SyncBatchNorm(wide), nn.ReLU()]
    return nn.Sequential(*layers)
