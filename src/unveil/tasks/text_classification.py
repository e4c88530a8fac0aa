"""Fine-tuning of a whole text encoder to classify texts (BERT, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.learner import Step, Task
from unveil.metrics import ClassificationMetric, Metric
from unveil.models.bert import TextEncoder
from unveil.ranges import ShareBelowOne
from unveil.text.wordpiece import TextBatch


@dataclass(frozen=True, kw_only=True)
class TextClassificationConfig:
    """The options of text classification, also used from scratch."""

    pool: Literal["mean", "class"] = "mean"
    """Features to classify: the mean of the tokens, or the [CLS] token (BERT), which is weak without next-sentence training."""
    dropout: ShareBelowOne = 0.1
    """Dropout rate in every block, and before the classifier."""


class TextClassification(Task):
    """A text encoder, one vector per text, and a linear layer, all trained."""

    modality = "text"
    encoder: TextEncoder
    Config = TextClassificationConfig
    DEFAULTS = {
        "base_lr": 2.4e-3,
        "schedule": "linear",
        "beta2": 0.999,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "epochs": 10.0,
        "batch_size": 32,
        "clip_grad": 1.0,
        "eps": 1e-6,
    }
    """BERT's recipe (appendix A.3) with a learning rate for small models: 3e-4 for a batch of 32. For bert-base, use
    `--base-lr 2.4e-4 --epochs 3`."""

    def __init__(self, encoder: TextEncoder, classes: Sequence[str], config: TextClassificationConfig) -> None:
        super().__init__()
        self.encoder, self.config = TextEncoder(replace(encoder.config, dropout=config.dropout)), config
        self.encoder.load_state_dict(encoder.state_dict())
        self.classes, self.dropout = classes, nn.Dropout(config.dropout)
        self.head = nn.Linear(encoder.config.width, len(classes))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def build(
        cls, encoder: TextEncoder, config: TextClassificationConfig, augment: Any, classes: Sequence[str]
    ) -> "TextClassification":
        return cls(encoder, classes, config)

    def forward(self, batch: TextBatch) -> Step:
        """Cross-entropy of the true classes."""
        assert batch.targets is not None
        return Step(F.cross_entropy(self.logits(batch.ids).float(), batch.targets.labels), {})

    def logits(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B K"]:
        """Class scores of texts, given as token ids padded with [PAD]."""
        scores: Tensor = self.head(self.dropout(self.encoder.features(ids, self.config.pool)))
        return scores

    def predict(self, batch: TextBatch) -> Float[Tensor, "B K"]:
        return self.logits(batch.ids)

    def metric(self) -> Metric:
        return ClassificationMetric(len(self.classes))
