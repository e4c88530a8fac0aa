"""What a detector finds in an image: boxes with scores, classes and, if it draws them, masks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Detections(NamedTuple):
    """The objects found in one image, in any order.

    Boxes and masks of different objects may overlap.
    """

    boxes: Float[Tensor, "n 4"]
    """Left, top, right and bottom in pixels, as in torchvision ("xyxy")."""
    scores: Float[Tensor, " n"]
    """Between 0 and 1; a larger one is more certain."""
    labels: Int[Tensor, " n"]
    """Classes, from 0 on. There is no class for the background."""
    masks: Tensor | Sequence[dict[str, Any]] | None = None
    """A mask of each object: (n, H, W) bool at the size of the image, (n, h, w) probabilities within its box, or run lengths as
    COCO writes them, {"size": [height, width], "counts": text}; None if there are only boxes."""

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        kept = self.scores >= score
        masks = self.masks
        if isinstance(masks, Tensor):
            masks = masks[kept]
        elif masks is not None:
            masks = [masks[row] for row in kept.nonzero()[:, 0].tolist()]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks)
