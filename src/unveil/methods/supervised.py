"""A Vision Transformer that learns from labels alone, with MAE's recipe (appendix A.2): the yardstick of the others.

    image -> [crop, RandAugment, erase, mix] -> encoder -> mean of the patch tokens -> linear head -> class

B images, C H W, K classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import StrengthConfig, StrongAugment
from unveil.errors import UnveilError
from unveil.learner import Method, Step
from unveil.models.vit import ViT, ViTConfig

DEFAULTS = {"base_lr": 1e-4, "weight_decay": 0.3, "warmup": 0.067, "crop_scale": 0.08}


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(StrengthConfig):
    """The regularisation of the recipe."""

    average: float = 0.1
    """Share of the run that the weights which are kept in the end are averaged over: the paper's decay of 0.9999 looks back
    10,000 of its 94,000 steps. 0 keeps the last weights."""


class Supervised(Method):
    """An encoder and a linear layer on the mean of its patch tokens; it has to be told the classes before it can be used."""

    Config = SupervisedConfig
    encoder: ViT
    head: nn.Linear
    config: SupervisedConfig
    steps: Tensor

    def __init__(self, encoder: ViT, config: SupervisedConfig, augment: AugmentConfig) -> None:
        super().__init__()
        self.encoder, self.config, self.augment_config = encoder, config, augment

    @classmethod
    def build(cls, vit: ViTConfig, config: SupervisedConfig, augment: AugmentConfig) -> "Supervised":
        """An untrained encoder."""
        return cls(ViT(replace(vit, drop_path=config.drop_path)), config, augment)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Adds the linear layer. Raises `UnveilError` where there are no two classes."""
        if len(classes) < 2:
            found = f"one class only: {classes[0]}" if classes else "no labels"
            raise UnveilError(f"to learn from labels takes two classes, and DATA has {found}: put each class into its own folder")
        vit, self.classes = self.encoder.config, tuple(classes)
        self.head = nn.Linear(vit.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.augmentation = StrongAugment(self.config, self.augment_config, len(classes), vit.image_size, vit.mean, vit.std)
        if self.config.average:
            self.averages = copy.deepcopy(self.learned()).requires_grad_(False)
            self.register_buffer("steps", torch.zeros(()))

    def learned(self) -> nn.ModuleList:
        """What is trained."""
        return nn.ModuleList([self.encoder, self.head])

    def augment(self, batch: Batch) -> Batch:
        """Crop and flip, RandAugment, normalise, erase, mix."""
        strengthened: Batch = self.augmentation(batch)
        return strengthened

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with the mixed and smoothed classes."""
        assert batch.labels is not None
        smoothing = self.config.smoothing if batch.labels.ndim == 1 else 0.0  # mixed classes are smooth already
        return Step(F.cross_entropy(self.predict(batch.images).float(), batch.labels, label_smoothing=smoothing), {})

    def predict(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """A score for each class; images are normalised."""
        scores: Tensor = self.head(self.encoder.features(images))
        return scores

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The averages follow what is trained, and take its place after the last step."""
        if not self.config.average:
            return
        self.steps += 1
        window = (self.config.average * self.steps / progress).clamp(min=1)  # steps that are looked back upon
        share = torch.maximum(1 / window, 9 / (10 + self.steps))  # young averages follow fast
        for mean, now in zip(self.averages.parameters(), self.learned().parameters(), strict=True):
            mean.add_((now - mean) * share)
            if progress >= 1:
                now.copy_(mean)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """Accuracy."""
        assert batch.labels is not None
        return {"accuracy": float((self.predict(batch.images).argmax(dim=1) == batch.labels).float().mean())}
