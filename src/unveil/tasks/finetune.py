"""Fine-tuning of the whole encoder with the recipe of BEiT and MAE (appendix A.1, table 9)."""

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import StrengthConfig, StrongAugment
from unveil.learner import Step, Task
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(StrengthConfig):
    """The paper's regularisation; all of it is the same with and without pre-training."""


class Finetune(Task):
    """An encoder, the mean of its patch tokens, a norm, and a linear layer, all trained."""

    def __init__(self, encoder: ViT, classes: int, config: FinetuneConfig, augment: AugmentConfig) -> None:
        super().__init__()
        vit = encoder.config
        positions: Any = "learned" if vit.positions == "sincos" else vit.positions
        tuned = ViT(replace(vit, drop_path=config.drop_path, positions=positions))
        tuned.load_state_dict(encoder.state_dict())
        tuned.transformer.norm = nn.Identity()  # its place is after the mean
        self.encoder, self.config = tuned, config
        self.norm = nn.LayerNorm(vit.width, eps=vit.eps)
        self.head = nn.Linear(vit.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.augmentation = StrongAugment(config, augment, classes, vit.image_size, vit.mean, vit.std)

    def augment(self, batch: Batch) -> Batch:
        """Crop and flip, RandAugment, normalise, erase, mix."""
        return self.augmentation(batch)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with the mixed and smoothed classes."""
        assert batch.labels is not None
        smoothing = self.config.smoothing if batch.labels.ndim == 1 else 0.0  # mixed classes are smooth already
        return Step(F.cross_entropy(self.predict(batch.images).float(), batch.labels, label_smoothing=smoothing), {})

    def predict(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """A score for each class; images are normalised."""
        scores: Tensor = self.head(self.norm(self.encoder.features(images)))
        return scores

    def layer_of(self, name: str) -> int:
        """0 for the embedding, 1 to depth for the blocks, depth + 1 for what comes after (BEiT's layer-wise decay)."""
        if name.startswith("encoder.transformer.blocks."):
            return int(name.split(".")[3]) + 1
        return 0 if name.startswith("encoder.") else self.encoder.config.depth + 1
