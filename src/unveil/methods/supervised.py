"""A Vision Transformer trained from scratch with labels, by the recipe of MAE (appendix A.2): a baseline for other methods.

    image -> [crop, RandAugment, erase, mix] -> encoder -> mean of the patch tokens -> linear head -> class scores

B images, C H W, K classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.learner import Method, Step
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.ranges import Share


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RegularisationConfig):
    """The regularisation of the recipe."""

    HIDDEN = ("erasing", "pool")
    pool: Literal["mean", "class"] = "mean"
    """Features to classify: the mean of the patch tokens, or the class token."""
    average: Share = 0.1
    """Share of the run that the averaged (EMA) weights cover; 0 keeps the last weights. The paper's decay of 0.9999 covers about
    10,000 of 94,000 steps."""


class Supervised(Method):
    """An encoder, and a linear layer on the mean of its patch tokens. Call `set_classes` before using it."""

    augments_whole_batch = True
    Config = SupervisedConfig
    DEFAULTS = {"base_lr": 1e-4, "weight_decay": 0.3, "warmup_ratio": 0.067, "crop_scale": 0.08}
    encoder: ViT
    head: nn.Linear
    config: SupervisedConfig
    steps: Tensor

    def __init__(self, encoder: ViT, config: SupervisedConfig, augment: AugmentConfig) -> None:
        super().__init__()
        self.encoder, self.config, self.augment_config, self.pool = encoder, config, augment, config.pool

    @classmethod
    def build(cls, vit: ViTConfig, config: SupervisedConfig, augment: AugmentConfig) -> "Supervised":
        return cls(ViT(replace(vit, drop_path=config.drop_path)), config, augment)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Adds the linear layer. Raises `UnveilError` for fewer than two classes."""
        if len(classes) < 2:
            found = f"one class only: {classes[0]}" if classes else "no labels"
            raise UnveilError(f"learning from labels takes two classes, but DATA has {found}: put each class into its own folder")
        vit, self.classes = self.encoder.config, tuple(classes)
        self.head = nn.Linear(vit.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.augmentation = SupervisedAugment(self.config, self.augment_config, len(classes), vit.image_size, vit.mean, vit.std)
        if self.config.average:
            self.averages = copy.deepcopy(self.trained()).requires_grad_(False)
            self.register_buffer("steps", torch.zeros(()))

    def trained(self) -> nn.ModuleList:
        """The modules that are trained and averaged."""
        return nn.ModuleList([self.encoder, self.head])

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with mixed labels and label smoothing."""
        labels = labels_of(batch)
        smoothing = self.config.smoothing if labels.ndim == 1 else 0.0  # mixed labels are already smoothed
        return Step(F.cross_entropy(self.logits(batch.images).float(), labels, label_smoothing=smoothing), {})

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of normalised images, before the softmax."""
        scores: Tensor = self.head(self.encoder.features(images, self.pool))
        return scores

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Class scores of a batch of normalised images."""
        return self.logits(batch.images)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Updates the averaged weights."""
        if not self.config.average:
            return
        self.steps += 1
        window = (self.config.average * self.steps / progress).clamp(min=1)  # number of steps that the average covers
        weight = torch.maximum(1 / window, 9 / (10 + self.steps))  # a shorter average in the first steps, as in TensorFlow's EMA
        for mean, current in zip(self.averages.parameters(), self.trained().parameters(), strict=True):
            mean.add_((current - mean) * weight)

    @torch.no_grad()
    def after_training(self) -> None:
        """Replaces the trained weights by the averaged ones."""
        if self.config.average:
            for mean, current in zip(self.averages.parameters(), self.trained().parameters(), strict=True):
                current.copy_(mean)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        return {"accuracy": float((self.logits(batch.images).argmax(dim=1) == labels_of(batch)).float().mean())}


def labels_of(batch: Batch) -> Tensor:
    """The classes of a batch, (B,), or the shares of mixed classes, (B, K)."""
    assert isinstance(batch.targets, ClassTargets)
    return batch.targets.labels
