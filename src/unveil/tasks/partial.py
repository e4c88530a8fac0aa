"""Partial fine-tuning (MAE, section 4.3 and figure 9): the last blocks learn, everything below stays frozen."""

from jaxtyping import Float
from torch import Tensor

from unveil.blocks.heads import ProbeHead, classify
from unveil.data.augment import Augment
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Step, Task
from unveil.models.vit import ViT


class PartialFinetune(Task):
    """An encoder whose last `blocks` blocks are tuned.

    0 is a linear probe, 0.5 tunes the MLP of the last block only, and all of them everything.
    """

    def __init__(self, encoder: ViT, classes: int, blocks: float, augment: Augment | None = None) -> None:
        super().__init__()
        depth = encoder.config.depth
        if blocks not in {0.5, *range(depth + 1)}:
            raise UnveilError(f"cannot tune {blocks} blocks: use 0, 0.5 (the last MLP), or 1 to {depth}")
        self.encoder, self.augmentation = encoder, augment
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
        self.head = ProbeHead(encoder.config.width, classes)

    def augment(self, batch: Batch) -> Batch:
        """Random resized crop and flip."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy of the true classes."""
        assert batch.labels is not None
        return Step(*classify(self.predict(batch.images), batch.labels))

    def predict(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """A score for each class."""
        scores: Tensor = self.head(self.encoder.features(images))
        return scores
