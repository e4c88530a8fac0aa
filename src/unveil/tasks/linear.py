"""Linear probing: a linear classifier on a frozen encoder (MAE, appendix A.1, with a BatchNorm without affine before it)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.heads import ProbeHead, cross_entropy_with_accuracy
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.learner import Step, Task
from unveil.metrics import ClassificationMetric, Metric
from unveil.models.vit import ViT

MAX_IMAGES = 256
"""Number of images that the frozen encoder computes at once."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """The options of a linear probe."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("feature_norm",)
    pool: Literal["mean", "class", "both"] = "mean"
    """Features to classify: the mean of the patch tokens, the class token, or both side by side."""
    feature_norm: bool = False
    """A norm after pooling, which is not trained: that of the head of a fine-tuned model that is probed."""


class Linear(Task):
    """BatchNorm and a linear layer on features, which are the input (B, D) or are computed from images by a frozen encoder."""

    needs_whole_batch = True
    Config = LinearConfig
    DEFAULTS = {
        "optimizer": "sgd",
        "base_lr": 0.5,
        "weight_decay": 0.0,
        "warmup_ratio": 0.1,
        "epochs": 90.0,
        "batch_size": 0,
        "crop_scale": 0.08,
    }
    """The paper's linear probe (appendix A.1), but with SGD instead of LARS, which suits small batches of small datasets.

    Batch size 0 means 1024, or a twentieth of the images. The learning rate of SGD is given for 64 features; with more features it
    is lower.
    """
    PAPER = {"optimizer": "lars", "base_lr": 0.1, "warmup_ratio": 1 / 9, "batch_size": 16_384, "pool": "class", "views": True}
    """What differs from it in the paper and its public code: 10 of 90 epochs of warm-up, the class token, and random crops."""

    def __init__(
        self,
        width: int,
        classes: Sequence[str],
        config: LinearConfig = LinearConfig(),
        *,
        encoder: ViT | None = None,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.augmentation = config, classes, augment
        pool: Any = config.pool
        self.pool = pool  # "both" too: only what is evaluated with this task itself reads it
        self.takes_images = encoder is not None
        self.norm: nn.Module = nn.Identity()
        if encoder is not None:
            self.encoder = encoder.requires_grad_(False)
            if config.feature_norm:
                self.norm = nn.LayerNorm(width, eps=encoder.config.eps).requires_grad_(False)
        self.head = ProbeHead(width, len(classes))

    @classmethod
    def build(cls, encoder: ViT, config: LinearConfig, augment: AugmentConfig, classes: Sequence[str]) -> "Linear":
        vit, width = encoder.config, encoder.config.width * (2 if config.pool == "both" else 1)
        return cls(width, classes, config, encoder=encoder, augment=Augment(augment, vit.image_size, vit.mean, vit.std))

    def layer_of(self, name: str) -> int:
        """0 for everything: only the head is trained, and there may be no encoder."""
        return 0

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy of the true classes."""
        assert isinstance(batch.targets, ClassTargets)
        return Step(*cross_entropy_with_accuracy(self.logits(batch.images), batch.targets.labels))

    def features(self, images: Tensor, pool: Literal["mean", "class"] | None = None) -> Float[Tensor, "B F"]:
        """The features that are classified; others as they are."""
        found: Tensor = self.encoder.features(images, pool=pool or self.config.pool)
        return self.norm(found) if pool in (None, self.config.pool) else found

    def feature_norm(self, pool: str) -> nn.Module | None:
        return self.norm if pool == self.config.pool else nn.Identity()

    def logits(self, images: Tensor) -> Float[Tensor, "B K"]:
        """Class scores, from images (B, C, H, W) or features (B, D)."""
        if self.takes_images:
            encoder = self.encoder.eval()
            with torch.no_grad():  # in parts, since the batch norm needs all features, but the encoder needs memory
                images = torch.cat([self.norm(encoder.features(part, self.config.pool)) for part in images.split(MAX_IMAGES)])
        scores: Tensor = self.head(images)
        return scores

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.logits(batch.images)

    def metric(self) -> Metric:
        return ClassificationMetric(len(self.classes))
