"""A number per image: an encoder and a linear layer with one output, all trained.

    images -> encoder -> features     (B, D)
           -> linear layer            (B,)    the number, with the mean 0 and the deviation 1 of the train set
           -> scaled                  (B,)    the number, in its own units

The loss is that of Huber, so that single wrong numbers do not dominate. Fine-tuning starts from a ridge regression on the features
of the encoder (LP-FT, arXiv 2202.10054). The mean and the deviation of the train set are part of the saved model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import NumberTargets, Targets
from unveil.encoder_with_head import EncoderWithHead, HeadConfig
from unveil.errors import UnveilError
from unveil.label_metrics import RegressionMetric
from unveil.learner import Step
from unveil.metrics import Metric
from unveil.models.vit import ViT
from unveil.predictions import Columns

SMALLEST = 1e-5
"""Smallest deviation of the numbers, as a share of their mean, that float32 can tell apart."""


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(HeadConfig):
    """Options of fine-tuning on a number per image."""


class Regression(EncoderWithHead):
    """An encoder and a linear layer with one output, all trained.

    Attributes:
        mean: The mean of the numbers of the train set.
        deviation: Their standard deviation.
    """

    Config = RegressionConfig
    DEFAULTS = {"min_lr": 1e-6, "layer_decay": 0.75, "beta2": 0.999, "weight_decay": 0.05, "warmup_ratio": 0.1, "crop_scale": 0.35}
    CHOSEN = ("base_lr", "epochs", "batch_size", "drop_path")
    TargetType = NumberTargets
    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: ViT, classes: Sequence[str], config: RegressionConfig, augment: AugmentConfig) -> None:
        super().__init__(encoder, 1, config)
        vit = encoder.config
        self.classes = classes
        """The name of the number."""
        self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    @classmethod
    def build(cls, encoder: ViT, config: RegressionConfig, augment: AugmentConfig, classes: Sequence[str]) -> "Regression":
        return cls(encoder, classes, config, augment)

    @torch.no_grad()
    def set_train_targets(self, targets: Targets) -> None:
        """Stores the mean and the deviation. Raises `UnveilError` if the numbers are all the same."""
        assert isinstance(targets, NumberTargets)
        known = targets.values[~targets.values.isnan()].double()
        mean, deviation = float(known.mean()), float(known.std(correction=0))
        if deviation <= SMALLEST * abs(mean):
            raise UnveilError(
                f"the numbers of the {len(known):,} training images are all the same, or nearly: {float(known.min()):g} to "
                f"{float(known.max()):g}. Give numbers that differ; if they are large, subtract their mean"
            )
        self.mean.fill_(mean)
        self.deviation.fill_(deviation)

    @torch.no_grad()
    def set_head(self, weight: Float[Tensor, "1 D"], bias: Float[Tensor, " 1"]) -> None:
        """Receives a linear layer whose output is in the units of the numbers."""
        super().set_head(
            weight / self.deviation.to(weight.device), ((bias - self.mean.to(bias.device)) / self.deviation.to(bias.device))
        )

    def forward(self, batch: Batch) -> Step:
        """The Huber loss of the standardised number; an image without one counts as 0."""
        assert isinstance(batch.targets, NumberTargets)
        wanted = (batch.targets.values - self.mean) / self.deviation  # (B,)
        known = ~wanted.isnan()
        errors = F.huber_loss(self.outputs(batch.images).float()[:, 0], wanted.nan_to_num(0.0), reduction="none")
        return self.step((errors * known).mean(), "number_loss", batch)

    def predict(self, batch: Batch) -> Float[Tensor, " B"]:
        """The number of each image, in its own units."""
        return self.outputs(batch.images).float()[:, 0] * self.deviation + self.mean

    def metric(self) -> Metric:
        return RegressionMetric(float(self.mean))

    def probabilities(self, predictions: Float[Tensor, " B"]) -> Float[Tensor, "B 0"]:
        """Nothing: a number has no probability."""
        return predictions.new_empty(len(predictions), 0)

    def check_columns(self, top_k: int, scores: bool, owner: str) -> None:
        if top_k != 1 or scores:
            given = f"top_k is {top_k}" if top_k != 1 else "scores is on"
            raise UnveilError(f"{given}, but {owner} predicts one number per image and no classes: leave it out")

    def columns(self, predictions: Float[Tensor, " B"], *, top_k: int = 1, scores: bool = False) -> Columns:
        """One row per image: `value`. There are no scores of classes."""
        self.check_columns(top_k, scores, type(self).__name__)
        return {"value": predictions.numpy()}
