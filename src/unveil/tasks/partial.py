"""Partial fine-tuning as in the MAE paper (section 4.3 and figure 9), which needs no linear probe to start from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.heads import ProbeHead
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets
from unveil.learner import Step, Task
from unveil.metrics import ClassificationMetric, Metric
from unveil.models.last_blocks import train_last_blocks
from unveil.models.vit import ViT
from unveil.ranges import NonNegative


@dataclass(frozen=True, kw_only=True)
class PartialConfig(RegularisationConfig):
    """The options of partial fine-tuning."""

    HIDDEN = ("erasing", "batch_norm")
    blocks: NonNegative = 1.0
    """Blocks to fine-tune, counted from the last: 0 (a linear probe), 0.5 (the last MLP only), 1, ... up to all."""
    pool: Literal["mean", "class"] = "mean"
    """Features to classify: the mean of the patch tokens, or the class token."""
    batch_norm: bool = False
    """Normalise the features by a BatchNorm after the encoder's last norm, as the linear probe does, and not by a new norm."""


class PartialFinetune(Task):
    """An encoder whose last `blocks` blocks are fine-tuned, with a norm and a linear classifier on its features.

    With all blocks it is the same as fine-tuning. With 0 blocks it is a linear probe, so it has the BatchNorm of one.
    """

    augments_whole_batch = True
    Config = PartialConfig
    DEFAULTS = {
        "base_lr": 1e-3,
        "min_lr": 1e-6,
        "layer_decay": 0.75,
        "beta2": 0.999,
        "weight_decay": 0.05,
        "warmup_ratio": 0.1,
        "epochs": 50.0,
        "batch_size": 256,
        "crop_scale": 0.08,
    }
    """The recipe of fine-tuning (appendix A.1, table 9) for 50 epochs. The paper reports the best of 50, 100 and 200 epochs."""

    def __init__(self, encoder: ViT, classes: Sequence[str], config: PartialConfig, augment: AugmentConfig | None = None) -> None:
        super().__init__()
        vit, blocks = encoder.config, config.blocks
        self.needs_whole_batch = config.batch_norm or blocks == 0
        positions = "learned" if blocks == vit.depth and vit.positions == "sincos" and not config.batch_norm else vit.positions
        keeps = self.needs_whole_batch  # the norms of the encoder: the BatchNorm of the head comes after them
        final, pooled = keeps and vit.final_norm, keeps and vit.norm_after_pooling
        shape = replace(vit, drop_path=config.drop_path, positions=positions, final_norm=final, norm_after_pooling=pooled)
        self.encoder = ViT(shape)
        kept = self.encoder.state_dict().keys()
        self.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in kept})
        self.config, self.classes, self.pool = config, classes, config.pool
        train_last_blocks(self.encoder, blocks, positions=config.batch_norm)
        self.norm: nn.Module = nn.Identity()
        if self.needs_whole_batch:
            self.head: nn.Module = ProbeHead(vit.width, len(classes))
        else:
            self.norm = nn.LayerNorm(vit.width, eps=vit.eps)  # after the mean, as in fine-tuning
            self.head = nn.Linear(vit.width, len(classes))
            nn.init.trunc_normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)
        if augment is not None:
            self.augmentation = SupervisedAugment(config, augment, len(classes), vit.image_size, vit.mean, vit.std)

    @classmethod
    def build(cls, encoder: ViT, config: PartialConfig, augment: AugmentConfig, classes: Sequence[str]) -> "PartialFinetune":
        return cls(encoder, classes, config, augment)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with mixed labels and label smoothing."""
        assert isinstance(batch.targets, ClassTargets)
        labels = batch.targets.labels
        smoothing = self.config.smoothing if labels.ndim == 1 else 0.0  # mixed labels are already smoothed
        return Step(F.cross_entropy(self.logits(batch.images).float(), labels, label_smoothing=smoothing), {})

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean", "class"] | None = None) -> Float[Tensor, "B D"]:
        """The features that were trained, after the norm of the head if it has one; others as they are."""
        found: Tensor = self.encoder.features(images, pool=pool or self.pool)
        return self.norm(found) if pool in (None, self.pool) else found

    def feature_norm(self, pool: str) -> nn.Module | None:
        return None if pool == "both" else self.norm if pool == self.pool else nn.Identity()

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of normalised images."""
        scores: Tensor = self.head(self.features(images))
        return scores

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.logits(batch.images)

    def metric(self) -> Metric:
        return ClassificationMetric(len(self.classes))
