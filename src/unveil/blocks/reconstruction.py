"""Reconstructed images."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.patches import Size, unpatchify


class Reconstruction(NamedTuple):
    """A reconstruction of images. All images are normalised like the originals."""

    pixels: Float[Tensor, "B C H W"]
    """Predicted pixels of every patch."""
    hidden: Bool[Tensor, "B N"]
    """True where a patch was masked."""
    masked: Float[Tensor, "B C H W"]
    """The image with masked patches set to 0, the mean of normalised pixels."""
    pasted: Float[Tensor, "B C H W"]
    """The predicted pixels with the visible patches pasted in."""


def reconstruction(
    images: Float[Tensor, "B C H W"], predicted: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], patch_size: Size
) -> Reconstruction:
    """Assembles predicted patches into images."""
    size = (images.shape[2], images.shape[3])
    pixels = unpatchify(predicted, size, patch_size)
    inside = unpatchify(hidden[:, :, None].expand_as(predicted), size, patch_size)  # (B, C, H, W), True in masked patches
    return Reconstruction(pixels, hidden, images.masked_fill(inside, 0.0), torch.where(inside, pixels, images))
