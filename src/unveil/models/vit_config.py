"""The shape of a Vision Transformer, and the standard sizes by name."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from unveil.blocks.patches import Size, grid_size
from unveil.errors import UnveilError
from unveil.ranges import Depth, Positive, Range, Share, ShareBelowOne, Side, Width

Activation = Literal["gelu", "quick_gelu", "gelu_tanh", "swiglu"]
"""What stands between the two layers of an MLP."""
Interpolation = Literal["bicubic", "bilinear"]
CropMode = Literal["center", "center_floor", "squash"]

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
    """Width of the MLP as a multiple of the width of a token; of a SwiGLU, after its gate."""
    mlp: Activation = "gelu"
    """The activation of the MLP: exact GELU, CLIP's x * sigmoid(1.702 x), GELU by tanh, or the gated SwiGLU (DINOv2's ViT-g)."""
    class_token: bool = True
    """Whether a class token comes before the patches."""
    distillation_token: bool = False
    """Whether a second class token follows the first, as in DeiT's distilled models: class features are the mean of both."""
    registers: Annotated[int, Range(0, 1_000)] = 0
    """Number of further tokens between the class token and the patches, whose outputs are not used (Darcet et al., 2023)."""
    positions: Literal["sincos", "learned", "none"] = "sincos"
    relative_bias: Literal["none", "shared", "block", "decomposed"] = "none"
    """Learned attention biases for each offset between patches: one table for all blocks, or one per block (BEiT), or in each block
    the product of the query with a vector for the offset of the rows and one for that of the columns (ViTDet)."""
    window: Annotated[int, Range(0, 10_000)] = 0
    """Side of the windows within which patches attend, in patches; 0 for global attention (ViTDet, for large images)."""
    global_blocks: tuple[int, ...] = ()
    """Indices of the blocks in which patches attend to all patches nevertheless."""
    drop_path: ShareBelowOne = 0.0
    layer_scale: float | None = None
    eps: Share = 1e-6
    pre_norm: bool = False
    """Whether a norm comes before the first block, as in CLIP."""
    final_norm: bool = True
    """Whether a norm follows the last block. If not, a head may have its own norm."""
    norm_after_pooling: bool = False
    """Whether features are normalised after the pooling (timm's `fc_norm`), usually instead of by the final norm."""
    grad_checkpointing: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, on a scale of 0 to 1, to normalise images."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, on the same scale."""
    crop_pct: Annotated[float, Range(0.1, 1)] = 1.0
    """The share of an image's short side that the centre crop of evaluations keeps: see `unveil.data.eval_transform`."""
    crop_mode: CropMode = "center"
    """Whether evaluations keep the aspect ratio of an image and crop its centre, or first squash it to the shape of the crop. With
    "center_floor", half a pixel is rounded down, as in transformers."""
    interpolation: Interpolation = "bicubic"
    """The filter by which evaluations resize images."""
    bit_depth: Literal[8, 16] = 8
    """Bits of a pixel value in the images that the model was trained on. White is 255 or 65535."""

    def __post_init__(self) -> None:
        """Raises `UnveilError` for a normalisation that would make every image NaN."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise UnveilError(f"the {name} to normalise images is {values}, expected a finite number for each channel")
        if min(self.std, default=1.0) <= 0:
            raise UnveilError(f"the std to normalise images is {self.std}, expected numbers above 0, as images are divided by them")
        if self.on_grid:
            self.check_grid()
        elif self.relative_bias != "none" and (self.prefix_tokens != 1 or not self.class_token):
            raise UnveilError(
                f"relative biases are known for patches and one class token, but this encoder has {self.prefix_tokens} tokens "
                f"before its patches: use positions instead"
            )

    def check_grid(self) -> None:
        """Raises `UnveilError` for windows, or relative positions of patches only, that contradict other fields."""
        what = f"windows of {self.window} x {self.window} patches" if self.window else "decomposed relative positions"
        if self.prefix_tokens:
            raise UnveilError(
                f"{what} are for patches only, but this encoder has {self.prefix_tokens} tokens before its patches: remove them"
            )
        wrong = [block for block in self.global_blocks if not 0 <= block < self.depth]
        if wrong:
            raise UnveilError(f"global_blocks has {wrong[0]}, but the blocks of this encoder are 0 to {self.depth - 1}")

    @property
    def on_grid(self) -> bool:
        """Whether attention needs the rows and columns of the patches, so that it takes all patches and no other tokens."""
        return self.window > 0 or self.relative_bias == "decomposed"

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return grid_size(self.image_size, self.patch_size)

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches: a class token, a distillation token, registers."""
        return int(self.class_token) + int(self.distillation_token) + self.registers

    def require_class_token(self, user: str) -> None:
        """Raises `UnveilError` without a class token; `user` is what needs one, such as "DINO"."""
        if not self.class_token:
            raise UnveilError(f"{user} needs a class token, but this encoder has none: use the mean of the patches (pool mean)")
