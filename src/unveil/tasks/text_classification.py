"""Fine-tuning of a whole encoder to tell classes of texts apart (BERT, section 4.1)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.learner import Step, Task
from unveil.models.bert import TextEncoder
from unveil.text.wordpiece import TextBatch


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """How texts become classes; all of it is the same with and without pre-training."""

    pool: Literal["mean", "class"] = "mean"
    """One vector a text: the mean of its tokens, or the token of [CLS] (BERT), which means little before next-sentence training."""
    dropout: float = 0.1
    """Share of values dropped in every block, and before the classes, while training."""


class Classify(Task):
    """An encoder, one vector a text, and a linear layer, all trained."""

    encoder: TextEncoder

    def __init__(self, encoder: TextEncoder, classes: int, config: ClassifyConfig) -> None:
        super().__init__()
        self.encoder, self.config = TextEncoder(replace(encoder.config, dropout=config.dropout)), config
        self.encoder.load_state_dict(encoder.state_dict())
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(encoder.config.width, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: TextBatch) -> Step:
        """Cross-entropy of the true classes."""
        assert batch.labels is not None
        return Step(F.cross_entropy(self.predict(batch.ids).float(), batch.labels), {})

    def predict(self, samples: Int[Tensor, "B T"]) -> Float[Tensor, "B K"]:
        """A score for each class; a text is a row of numbers of pieces, filled up with [PAD]."""
        scores: Tensor = self.head(self.dropout(self.encoder.features(samples, self.config.pool)))
        return scores

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, 1 to depth for the blocks, depth + 1 for the classes."""
        if name.startswith("encoder.transformer.blocks."):
            return int(name.split(".")[3]) + 1
        return 0 if name.startswith("encoder.") else self.encoder.config.depth + 1
