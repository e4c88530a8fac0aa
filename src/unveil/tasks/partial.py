"""Partial fine-tuning (MAE, section 4.3 and figure 9): the last blocks are trained, and all earlier layers stay frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from unveil.blocks.heads import ProbeHead, cross_entropy_with_accuracy
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.learner import Step, Task
from unveil.metrics import ClassificationMetric, Metric
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class PartialConfig:
    """The options of partial fine-tuning."""

    blocks: float = 1.0
    """Blocks to fine-tune, counted from the last: 0 (a linear probe), 0.5 (the last MLP only), 1, ... up to all."""


class PartialFinetune(Task):
    """An encoder whose last `blocks` blocks are fine-tuned with a linear classifier on the mean of the patch tokens."""

    needs_whole_batch = True
    Config = PartialConfig
    DEFAULTS = {"optimizer": "adamw", "base_lr": 1e-3, "weight_decay": 0.05, "warmup_ratio": 0.1, "epochs": 50.0, "batch_size": 256}
    """The schedule of the paper's partial fine-tuning (50 epochs), with the augmentation of the linear probe."""

    def __init__(self, encoder: ViT, classes: Sequence[str], config: PartialConfig, augment: Augment | None = None) -> None:
        super().__init__()
        depth, blocks = encoder.config.depth, config.blocks
        if blocks not in {0.5, *range(depth + 1)}:
            raise UnveilError(f"cannot fine-tune {blocks} blocks of {depth}: use 0, 0.5 (the last MLP), or 1 to {depth}")
        self.encoder, self.augmentation, self.config, self.classes = encoder, augment, config, classes
        stack = encoder.transformer
        encoder.requires_grad_(blocks == depth)
        if blocks == 0.5:
            stack.blocks[-1].norm2.requires_grad_(True)
            stack.blocks[-1].mlp.requires_grad_(True)
        elif blocks:
            stack.blocks[depth - int(blocks) :].requires_grad_(True)
        stack.norm.requires_grad_(blocks > 0)
        if encoder.positions is not None:
            encoder.positions.requires_grad_(False)
        self.head = ProbeHead(encoder.config.width, len(classes))

    @classmethod
    def build(cls, encoder: ViT, config: PartialConfig, augment: AugmentConfig, classes: Sequence[str]) -> "PartialFinetune":
        vit = encoder.config
        return cls(encoder, classes, config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy of the true classes."""
        assert isinstance(batch.targets, ClassTargets)
        return Step(*cross_entropy_with_accuracy(self.logits(batch.images), batch.targets.labels))

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of normalised images."""
        scores: Tensor = self.head(self.encoder.features(images))
        return scores

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.logits(batch.images)

    def metric(self) -> Metric:
        return ClassificationMetric(len(self.classes))
