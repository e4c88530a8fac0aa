"""Any number of labels per image: an encoder and a logistic regression for each label, all trained.

    images -> encoder -> features     (B, D)
           -> linear layer            (B, K)    one logit per label
           -> sigmoid                 (B, K)    one probability per label, each on its own

The loss is the binary cross-entropy of each label, over the labels that are known. Fine-tuning starts from a logistic regression of
each label on the features of the encoder (LP-FT, arXiv 2202.10054).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import MultiLabelTargets, Targets
from unveil.encoder_with_head import EncoderWithHead, HeadConfig
from unveil.errors import UnveilError
from unveil.label_metrics import THRESHOLD, MultiLabelMetric
from unveil.learner import Step
from unveil.metrics import Metric
from unveil.models.vit import ViT
from unveil.predictions import Columns, score_names

SEPARATOR = "|"


@dataclass(frozen=True, kw_only=True)
class MultiLabelConfig(HeadConfig):
    """Options of fine-tuning on any number of labels per image."""


class MultiLabel(EncoderWithHead):
    """An encoder and a linear layer with one logit per label, all trained."""

    Config = MultiLabelConfig
    DEFAULTS = {"min_lr": 1e-6, "layer_decay": 0.75, "beta2": 0.999, "weight_decay": 0.05, "warmup_ratio": 0.1, "crop_scale": 0.35}
    CHOSEN = ("base_lr", "epochs", "batch_size", "drop_path")
    TargetType = MultiLabelTargets

    def __init__(self, encoder: ViT, classes: Sequence[str], config: MultiLabelConfig, augment: AugmentConfig) -> None:
        super().__init__(encoder, len(classes), config)
        vit = encoder.config
        self.classes = classes
        self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)

    @classmethod
    def build(cls, encoder: ViT, config: MultiLabelConfig, augment: AugmentConfig, classes: Sequence[str]) -> "MultiLabel":
        return cls(encoder, classes, config, augment)

    def set_train_targets(self, targets: Targets) -> None:
        """Raises `UnveilError` if no training image has any label, so that there is nothing to learn."""
        assert isinstance(targets, MultiLabelTargets)
        if not bool((targets.values == 1).any()):
            raise UnveilError(f"no training image has any of the labels {', '.join(self.classes[:5])}: there is nothing to learn")

    def forward(self, batch: Batch) -> Step:
        """Binary cross-entropy: the mean over all labels of all images, where unknown ones count as 0."""
        assert isinstance(batch.targets, MultiLabelTargets)
        values, logits = batch.targets.values, self.logits(batch.images).float()
        known = ~values.isnan()
        errors = F.binary_cross_entropy_with_logits(logits, values.nan_to_num(0.0), reduction="none")  # (B, K)
        return self.step((errors * known).mean(), "label_loss", batch)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """One logit per label; its sigmoid is the probability."""
        return self.outputs(images)

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.logits(batch.images)

    def metric(self) -> Metric:
        return MultiLabelMetric(len(self.classes))

    def probabilities(self, predictions: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The probability of each label."""
        return predictions.float().sigmoid()

    def check_columns(self, top_k: int, scores: bool, owner: str) -> None:
        if top_k != 1:
            raise UnveilError(
                f"top_k is {top_k}, but {owner} predicts every label whose probability is at least {THRESHOLD:g}: leave top_k "
                f"out, or add scores, which writes the probability of each label"
            )

    def columns(self, predictions: Float[Tensor, "B K"], *, top_k: int = 1, scores: bool = False) -> Columns:
        """One row per image: `labels` and `probability`; with `scores`, `p(NAME)` of each label.

        Labels are those with a probability of at least 0.5, joined by `|` in the order of `classes`, and their probabilities are
        joined in the same order. Both cells are empty if there are none.
        """
        self.check_columns(top_k, scores, type(self).__name__)
        shares = self.probabilities(predictions)
        chosen = [(row >= THRESHOLD).nonzero()[:, 0].tolist() for row in shares]
        found: Columns = {
            "labels": np.array([SEPARATOR.join(self.classes[i] for i in own) for own in chosen]),
            "probability": np.array(
                [SEPARATOR.join(f"{row[i]:.4g}" for i in own) for row, own in zip(shares.tolist(), chosen, strict=True)]
            ),
        }
        if scores:
            found |= {name: shares[:, index].numpy() for index, name in enumerate(score_names(self.classes))}
        return found
