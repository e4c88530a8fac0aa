"""Patch embeddings for other patch sizes and other numbers of channels than they were trained with."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.patches import Size


def resize_patches(kernel: Float[Tensor, "D C p q"], size: Size) -> Float[Tensor, "D C {size[0]} {size[1]}"]:
    """The weight of a patch embedding for patches of another size (FlexiViT, Beyer et al., 2022, section 3.4).

    With B the matrix that resizes a patch, the new weight w' minimises the difference between <x, w> and <B x, w'> over patches x.
    The solution is w' = pinv(B^T) w. When patches are enlarged, the embedding of an enlarged image is exactly that of the original.
    This is timm's `resample_patch_embed`, with the same antialiased bicubic filter.

    Args:
        kernel: The weight, in the layout of a convolution.
        size: Height and width of the new patches, in pixels.
    """
    old = (kernel.shape[2], kernel.shape[3])
    if old == tuple(size):
        return kernel
    down, across = (inverse_resize(before, after) for before, after in zip(old, size, strict=True))
    found: Tensor = torch.einsum("xp,yq,dcpq->dcxy", down, across, kernel.double()).to(kernel.dtype)
    return found


def inverse_resize(old: int, new: int) -> Float[Tensor, "{new} {old}"]:
    """The pseudo-inverse of the transposed matrix that resizes one axis. That of an image is the Kronecker product of two.

    Each of the two has full rank, which their product has not if one side grows and the other one shrinks.
    """
    # Each image has one bright column. torch 2.15 resizes images of one row or column wrongly, so it has several rows.
    basis = torch.eye(old, dtype=torch.float64)[:, None, None, :].expand(-1, 1, 4, -1)
    transposed = F.interpolate(basis, size=(4, new), mode="bicubic", align_corners=False, antialias=True)[:, 0, 0]
    inverse: Tensor = torch.linalg.pinv(transposed)
    return inverse


def change_channels(kernel: Float[Tensor, "D C p q"], channels: int) -> Float[Tensor, "D {channels} p q"]:
    """The weight of a patch embedding for another number of channels, by the rule of timm's `adapt_input_conv`.

    For one channel, the weights of all channels are summed: a grey image gives what its copy in every channel gave. For more
    channels, they are repeated in their order, and multiplied by the old number of channels over the new one, so that the sums keep
    their scale. timm's function has this rule for weights of 3 channels; here it holds for any number.
    """
    old = kernel.shape[1]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.float().sum(dim=1, keepdim=True).to(kernel.dtype)
    repeated = kernel.float().repeat(1, math.ceil(channels / old), 1, 1)[:, :channels]
    return (repeated * (old / channels)).to(kernel.dtype)
