"""Images that a model paints, put beside those that it was given."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.patches import Size, unpatchify


class Reconstruction(NamedTuple):
    """What a model makes of images; all in the range of the images it was given."""

    pixels: Float[Tensor, "B C H W"]
    """Predicted pixels, at every patch."""
    hidden: Bool[Tensor, "B N"]
    """True where a patch was hidden."""
    masked: Float[Tensor, "B C H W"]
    """The image with the hidden patches at 0, the mean of normalised pixels."""
    pasted: Float[Tensor, "B C H W"]
    """The predicted pixels with the visible patches pasted in."""


def reconstruction(
    images: Float[Tensor, "B C H W"], painted: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], patch_size: Size
) -> Reconstruction:
    """The images of painted patches, beside those that were given."""
    size = (images.shape[2], images.shape[3])
    pixels = unpatchify(painted, size, patch_size)
    gone = unpatchify(hidden[:, :, None].expand_as(painted), size, patch_size)
    return Reconstruction(pixels, hidden, images.masked_fill(gone, 0.0), torch.where(gone, pixels, images))
