"""The shape of a Vision Transformer, and the standard sizes by name."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from unveil.blocks.patches import Size, grid_size
from unveil.errors import UnveilError
from unveil.ranges import Depth, Positive, Range, Share, ShareBelowOne, Side, Width

MODELS: dict[str, tuple[int, int, int]] = {  # width, depth, heads
    "vit-nano": (96, 4, 3),
    "vit-tiny": (192, 12, 3),
    "vit-small": (384, 12, 6),
    "vit-base": (768, 12, 12),
    "vit-large": (1024, 24, 16),
    "vit-huge": (1280, 32, 16),
}
Channels = Annotated[int, Range(1, 10_000)]
"""Hyperspectral images have hundreds of channels."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of an encoder and of its images."""

    width: Width
    depth: Depth
    heads: Width
    image_size: tuple[Side, Side]
    patch_size: tuple[Side, Side]
    channels: Channels = 3
    mlp_ratio: Positive = 4.0
    positions: Literal["sincos", "learned", "none"] = "sincos"
    relative_bias: Literal["none", "shared", "block"] = "none"
    """Learned attention biases for each offset between patches (BEiT): one table for all blocks, or one per block."""
    drop_path: ShareBelowOne = 0.0
    layer_scale: float | None = None
    eps: Share = 1e-6
    final_norm: bool = True
    """Whether a norm follows the last block. If not, a head may have its own norm."""
    grad_checkpointing: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, on a scale of 0 to 1, to normalise images."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, on the same scale."""
    crop_pct: Annotated[float, Range(0.1, 1)] = 1.0
    """The share of an image's short side that the centre crop of evaluations keeps: see `unveil.data.eval_transform`."""
    bit_depth: Literal[8, 16] = 8
    """Bits of a pixel value in the images that the model was trained on. White is 255 or 65535."""

    def __post_init__(self) -> None:
        """Raises `UnveilError` for a normalisation that would make every image NaN."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise UnveilError(f"the {name} to normalise images is {values}, expected a finite number for each channel")
        if min(self.std, default=1.0) <= 0:
            raise UnveilError(f"the std to normalise images is {self.std}, expected numbers above 0, as images are divided by them")

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return grid_size(self.image_size, self.patch_size)
