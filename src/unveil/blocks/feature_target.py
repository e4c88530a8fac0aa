"""The features of a frozen teacher as a second target: continual pre-training (GFM, Mendieta et al., 2023).

    visible tokens of the student -> linear -> 1 - cosine to the teacher's tokens of the same patches, which saw the whole image

GFM projects the pooled features of one layer by a linear map, and adds minus their cosine similarity to those of the teacher to the
loss. Here each visible patch is compared by itself, since the student has a token for it. The tokens of the teacher are
layer-normalised without weights, so that a few dimensions of large mean do not decide the cosine.

Letters: B images, V visible patches, D width of the student, F width of the teacher.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.init import xavier
from unveil.blocks.patches import gather
from unveil.errors import UnveilError
from unveil.json_files import parse_json
from unveil.ranges import NonNegative

DEFAULT_WEIGHT = 1.0


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen teacher of a masked autoencoder."""

    teacher: str | None = None
    """Weights of a frozen teacher, in any form that RUN may have: the visible tokens learn to match its features of the whole
    image (GFM)."""
    teacher_weight: NonNegative | None = None
    """Factor on the loss of the teacher's features, 1 - cosine, which is added to that of the pixels; by default 1."""


class FeatureTarget(nn.Module):
    """A linear map from the visible tokens of a student to the features of its teacher, and the loss."""

    def __init__(self, width: int, teacher_width: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.projection = nn.Linear(width, teacher_width)
        xavier(self.projection)

    def forward(
        self, visible: Float[Tensor, "B V D"], keep: Int[Tensor, "B V"], features: Float[Tensor, "B N F"] | None
    ) -> Float[Tensor, ""]:
        """The mean of 1 - cosine over the visible patches, between 0 and 2.

        Args:
            visible: The tokens of the student.
            keep: The indices of their patches.
            features: The tokens of the teacher, of all patches.

        Raises:
            UnveilError: If the batch has none, because the model was loaded without its teacher.
        """
        if features is None:
            raise UnveilError("this model was trained with a teacher, which is not saved with it: train it with unveil.pretrain")
        wanted = gather(features, keep).float()  # (B, V, F)
        wanted = F.layer_norm(wanted, wanted.shape[-1:])
        return (1 - F.cosine_similarity(self.projection(visible).float(), wanted, dim=-1)).mean()


def feature_target(config: TeacherConfig, width: int) -> FeatureTarget | None:
    """The target for the options of a method, and the width of its encoder; None without a teacher.

    Raises:
        UnveilError: If the width of the teacher's features was not filled in by `unveil.runs.teacher`.
    """
    if config.teacher is None:
        return None
    if not config.teacher.startswith("{"):
        raise UnveilError(f"the teacher {config.teacher} is not open: train the model with unveil.pretrain, which opens it")
    found = parse_json(config.teacher, "the recorded teacher")
    return FeatureTarget(width, int(found["width"]), DEFAULT_WEIGHT if config.teacher_weight is None else config.teacher_weight)
