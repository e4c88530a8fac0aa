"""Masked reconstruction beside another loss of the same encoder: the loss of MAE as a regulariser (SSAT, arXiv 2310.20704)."""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.masks import random_mask
from unveil.blocks.patches import Size
from unveil.blocks.predictor import Predictor
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.targets import NormalisedTarget

MASK_RATIO = 0.75


class MaskedReconstruction(nn.Module):
    """A decoder that predicts the pixels of masked patches, normalised in each patch, from the tokens of the visible ones.

    Args:
        grid: Rows and columns of patches, N in all.
        patch_size: Height and width of a patch.
        channels: Channels of the images.
        input_width: Width D of the encoder.
        width: Width of the decoder.
        depth: Blocks of the decoder.
        heads: Attention heads of the decoder.
    """

    def __init__(
        self, grid: Size, patch_size: Size, channels: int, input_width: int, *, width: int, depth: int, heads: int | None = None
    ) -> None:
        super().__init__()
        self.patches = grid[0] * grid[1]
        self.target = NormalisedTarget(patch_size, channels)
        self.predictor = Predictor(grid, input_width, width=width, depth=depth, heads=heads, output_width=self.target.size)

    def load(self, state: Mapping[str, Tensor]) -> bool:
        """Loads the weights of a `Predictor`, such as the decoder of an MAE. Returns False if their names or shapes differ."""
        own = self.predictor.state_dict()
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
            return False
        self.predictor.load_state_dict(state)
        return True

    def forward(self, encoder: nn.Module, images: Float[Tensor, "B C H W"], keys: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The mean squared error on the masked patches of normalised images; the keys of the samples draw the masks."""
        keep, hide = random_mask(uniform(keys, self.patches, Stream.MASK), MASK_RATIO)
        predicted = self.predictor(encoder(images, keep), keep, hide)
        return self.target.loss(predicted, self.target(images, hide))
