"""Fine-tuning of the whole encoder with the recipe of BEiT and MAE (appendix A.1, table 9)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets
from unveil.learner import Step, Task
from unveil.metrics import ClassificationMetric, Metric
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RegularisationConfig):
    """The regularisation of the paper's recipe, also used from scratch."""


class Finetune(Task):
    """An encoder, the mean of its patch tokens, a norm, and a linear layer, all trained."""

    augments_whole_batch = True
    Config = FinetuneConfig
    DEFAULTS = {
        "base_lr": 1e-3,
        "min_lr": 1e-6,
        "layer_decay": 0.75,
        "beta2": 0.999,
        "weight_decay": 0.05,
        "warmup_ratio": 0.05,
        "epochs": 100.0,
        "batch_size": 256,
        "crop_scale": 0.08,
    }
    """The paper's recipe (appendix A.1, table 9); the learning rate follows the batch size."""

    def __init__(self, encoder: ViT, classes: Sequence[str], config: FinetuneConfig, augment: AugmentConfig) -> None:
        super().__init__()
        vit = encoder.config
        positions: Literal["learned", "none"] = "none" if vit.positions == "none" else "learned"
        # The norm comes after the mean (fc_norm in timm), so the encoder has no final norm.
        shape = replace(vit, drop_path=config.drop_path, positions=positions, final_norm=False, norm_after_pooling=False)
        finetuned = ViT(shape)
        kept = finetuned.state_dict().keys()
        finetuned.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in kept})
        self.encoder, self.config, self.classes = finetuned, config, classes
        self.norm = nn.LayerNorm(vit.width, eps=vit.eps)
        self.head = nn.Linear(vit.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.augmentation = SupervisedAugment(config, augment, len(classes), vit.image_size, vit.mean, vit.std)

    @classmethod
    def build(cls, encoder: ViT, config: FinetuneConfig, augment: AugmentConfig, classes: Sequence[str]) -> "Finetune":
        return cls(encoder, classes, config, augment)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with mixed labels and label smoothing."""
        assert isinstance(batch.targets, ClassTargets)
        labels = batch.targets.labels
        smoothing = self.config.smoothing if labels.ndim == 1 else 0.0  # mixed labels are already smoothed
        return Step(F.cross_entropy(self.logits(batch.images).float(), labels, label_smoothing=smoothing), {})

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean", "class"] | None = None) -> Float[Tensor, "B D"]:
        """The mean of the patch tokens after the norm, as in timm. The class token is not trained, and has no norm."""
        found: Tensor = self.encoder.features(images, pool=pool or "mean")
        return found if pool == "class" else self.norm(found)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of normalised images."""
        scores: Tensor = self.head(self.features(images))
        return scores

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.logits(batch.images)

    def metric(self) -> Metric:
        return ClassificationMetric(len(self.classes))
