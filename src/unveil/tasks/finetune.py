"""Fine-tuning of an encoder, or of its last blocks.

It starts from a linear probe (LP-FT, arXiv 2202.10054), or has the recipe of MAE (appendix A.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets
from unveil.encoder_with_head import WIDE, EncoderWithHead
from unveil.errors import UnveilError
from unveil.learner import Step
from unveil.metrics import ClassificationMetric, Metric
from unveil.models.last_blocks import train_last_blocks
from unveil.models.vit import ViT
from unveil.ranges import NonNegative

LARGE_BUDGET = 5_000_000
"""Images that a run sees from which on it needs all of the paper's regularisation."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RegularisationConfig):
    """What fine-tuning starts from, and its losses. Defaults are those of models that earlier versions saved."""

    HIDDEN = ("blocks", "cutmix", "erasing", "fc_norm", "pool", "randaugment", "smoothing", "start")
    recipe: Literal["auto", "paper"] = "paper"
    """Settings: those that suit the size of the model and the number of labels, or those of the MAE paper (table 9), which are made
    for ViT-B and larger and a million images. Single options override either."""
    start: Literal["probe", "random"] = "random"
    """Initial head: that of a linear probe of the encoder on the same labels (LP-FT), or a random one."""
    fc_norm: bool = True
    """Normalise the mean of the tokens, as the paper does, and not each token before the mean, as in pre-training."""
    pool: Literal["mean", "class"] | None = None
    """Features to classify: the mean of the patch tokens, or the class token; by default the one that suits the method."""
    balance: bool = False
    """Let rare classes count as much as frequent ones: adjust the logits by the frequencies of the classes during training, and
    choose the checkpoint with the best balanced accuracy."""
    blocks: NonNegative | None = None
    """Blocks to fine-tune, counted from the last, while all layers before them stay frozen: 0 (the classifier only), 0.5 (the last
    MLP), 1, ...; by default the whole encoder."""
    mae_loss: NonNegative = 0.0
    """Weight of MAE's reconstruction loss on the same images, as a regulariser for few labels (SSAT); 0 leaves it out."""


class Finetune(EncoderWithHead):
    """An encoder and a linear layer on its features, all trained, or the linear layer and the last blocks."""

    augments_whole_batch = True
    Config = FinetuneConfig
    DEFAULTS = {
        "recipe": "auto",
        "start": "probe",
        "fc_norm": False,
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": 0,
        "erasing": 0.0,
        "min_lr": 1e-6,
        "layer_decay": 0.75,
        "beta2": 0.999,
        "weight_decay": 0.05,
        "warmup_ratio": 0.1,
        "crop_scale": 0.35,
    }
    """See also `settings_for`. Chosen on images kept aside from training, with small encoders: see LAB.md."""
    CHOSEN = ("base_lr", "epochs", "batch_size", "drop_path", "mixup", "cutmix", "randaugment", "erasing")
    PAPER = {
        "start": "random",
        "fc_norm": True,
        "pool": "mean",
        "drop_path": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "randaugment": 9,
        "erasing": 0.25,
        "base_lr": 1e-3,
        "min_lr": 1e-6,
        "layer_decay": 0.75,
        "beta2": 0.999,
        "weight_decay": 0.05,
        "warmup_ratio": 0.05,
        "epochs": 100.0,
        "batch_size": 256,
        "crop_scale": 0.08,
        "validation": 0.0,
    }
    """The paper's recipe (appendix A.1, table 9); the learning rate follows the batch size."""
    log_prior: Tensor | None

    def __init__(self, encoder: ViT, classes: Sequence[str], config: FinetuneConfig, augment: AugmentConfig) -> None:
        super().__init__(encoder, len(classes), config)
        vit = encoder.config
        self.classes = classes
        if config.blocks is not None:
            train_last_blocks(self.encoder, config.blocks)
        if config.blocks == 0 and config.mae_loss:
            raise UnveilError(f"mae_loss is {config.mae_loss:g}, but with 0 blocks the encoder is frozen: leave one of them out")
        self.augmentation = SupervisedAugment(config, augment, len(classes), vit.image_size, vit.mean, vit.std)
        self.register_buffer("log_prior", None, persistent=False)

    @classmethod
    def build(cls, encoder: ViT, config: FinetuneConfig, augment: AugmentConfig, classes: Sequence[str]) -> "Finetune":
        return cls(encoder, classes, config, augment)

    @classmethod
    def settings_for(cls, width: int, samples: int) -> Mapping[str, Any]:
        """Those of `EncoderWithHead`, and all of the paper's regularisation for large models that see millions of images."""
        found = super().settings_for(width, samples)
        if width < WIDE or found["epochs"] * samples < LARGE_BUDGET:
            return found
        return {**found, **{name: cls.PAPER[name] for name in ("drop_path", "mixup", "cutmix", "randaugment", "erasing")}}

    @torch.no_grad()
    def set_head(self, weight: Float[Tensor, "K D"], bias: Float[Tensor, " K"]) -> None:
        """Of a balanced task, the logits of the probe are those that are adjusted during training."""
        super().set_head(weight, bias if self.log_prior is None else bias - self.log_prior.to(bias.device))

    def set_class_counts(self, counts: Int[Tensor, " K"]) -> None:
        """With `balance`, the logarithm of the share of each class is added to its logit in training (arXiv 2007.07314)."""
        if self.config.balance:
            shares = counts.double().clamp(min=1) / counts.sum()
            self.log_prior = shares.log().float().to(self.head.weight.device)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with mixed labels and label smoothing, and the loss of MAE if it has a weight."""
        assert isinstance(batch.targets, ClassTargets)
        labels, logits = batch.targets.labels, self.logits(batch.images).float()
        smoothing = self.config.smoothing if labels.ndim == 1 else 0.0  # mixed labels are already smoothed
        adjusted = logits if self.log_prior is None else logits + self.log_prior
        loss = F.cross_entropy(adjusted, labels, label_smoothing=smoothing)
        return self.step(loss, "class_loss", batch)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of normalised images."""
        return self.outputs(images)

    def predict(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.logits(batch.images)

    def metric(self) -> Metric:
        return ClassificationMetric(len(self.classes), "balanced_accuracy" if self.config.balance else "top1")
