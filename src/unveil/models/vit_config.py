"""The shape of a Vision Transformer, and the standard sizes by name."""

from dataclasses import dataclass
from typing import Literal

from unveil.blocks.patches import Size, grid_size

MODELS: dict[str, tuple[int, int, int]] = {  # width, depth, heads
    "vit-nano": (96, 4, 3),
    "vit-tiny": (192, 12, 3),
    "vit-small": (384, 12, 6),
    "vit-base": (768, 12, 12),
    "vit-large": (1024, 24, 16),
    "vit-huge": (1280, 32, 16),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of an encoder and of its images."""

    width: int
    depth: int
    heads: int
    image_size: Size
    patch_size: Size
    channels: int = 3
    mlp_ratio: float = 4.0
    positions: Literal["sincos", "learned", "none"] = "sincos"
    relative_bias: Literal["none", "shared", "block"] = "none"
    """Learned attention biases for each offset between patches (BEiT): one table for all blocks, or one per block."""
    drop_path: float = 0.0
    layer_scale: float | None = None
    eps: float = 1e-6
    final_norm: bool = True
    """Whether a norm follows the last block. If not, a head may have its own norm."""
    grad_checkpointing: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, on a scale of 0 to 1, to normalise images."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, on the same scale."""

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return grid_size(self.image_size, self.patch_size)
