"""Norms of feature maps (B, C, H, W), for the convolutions of detectors and segmenters.

The literature has batch norm in UperNet, and a layer norm over the channels in ViTDet. Here the layer norm is the default
everywhere: it computes the same for any batch size, in training and evaluation, on one process or many, for a whole image as for
its tiles. Batch norm needs large batches: with 2 images instead of 16, BEiT-L loses 4.7 points of mIoU (microsoft/unilm issue 443),
and it fails for one image, of which the coarsest pooling of UperNet leaves a single pixel.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.distributed import at_least_two, moments_of_all_rows, world_size
from unveil.blocks.layer_norm import LayerNorm

MapNorm = Literal["layer", "batch"]
"""A layer norm over the channels of each pixel, or batch norm over all processes."""


class MapLayerNorm(LayerNorm):
    """Layer norm over the channels of each pixel (ViTDet, appendix A.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MapBatchNorm(nn.BatchNorm2d):
    """Batch norm over the pixels of all images on all processes, each of which must have maps of the same shape.

    Raises `UnveilError` in training if there is a single pixel.
    """

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if self.training:
            at_least_two(pixels)
        if not self.training or world_size() == 1:
            return super().forward(x)
        mean, variance = moments_of_all_rows(x.movedim(1, -1).flatten(0, 2).float())
        pixels *= world_size()
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * pixels / (pixels - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * variance.add(self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def map_norm(kind: MapNorm, channels: int) -> nn.Module:
    """A norm of maps with so many channels."""
    return MapLayerNorm(channels) if kind == "layer" else MapBatchNorm(channels)
