"""Linear probing: a linear classifier on a frozen encoder (MAE, appendix A.1: a BatchNorm without affine before it)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.heads import ProbeHead, classify
from unveil.data.augment import Augment
from unveil.data.batch import Batch
from unveil.learner import Step, Task
from unveil.models.vit import ViT


class Linear(Task):
    """BatchNorm and a linear layer on features: given as they are (B, D), or computed from images by a frozen encoder."""

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        encoder: ViT | None = None,
        augment: Augment | None = None,
        pool: Literal["mean", "class"] = "mean",
    ) -> None:
        super().__init__()
        self.augmentation, self.pool = augment, pool
        self.sees = encoder is not None
        if encoder is not None:
            self.encoder = encoder.requires_grad_(False)
        self.head = ProbeHead(width, classes)

    def augment(self, batch: Batch) -> Batch:
        """Random resized crop and flip, where images are given."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy of the true classes."""
        assert batch.labels is not None
        return Step(*classify(self.predict(batch.images), batch.labels))

    def predict(self, images: Tensor) -> Float[Tensor, "B K"]:
        """A score for each class, from images (B, C, H, W) or features (B, D)."""
        if self.sees:
            with torch.no_grad():
                images = self.encoder.eval().features(images, self.pool)
        scores: Tensor = self.head(images)
        return scores
