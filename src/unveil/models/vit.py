"""The Vision Transformer (Dosovitskiy et al., 2020): patches, positions, a Transformer. Any size, patch and channel count."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import PatchEmbed, Size, grid_size
from unveil.blocks.positions import RelativePositionBias, resize_biases, resize_positions, sincos_2d
from unveil.blocks.transformer import Block, Transformer, TransformerConfig, xavier
from unveil.errors import UnveilError

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
    """The shape of an encoder and of what it takes in."""

    width: int
    depth: int
    heads: int
    image_size: Size
    patch_size: Size
    channels: int = 3
    mlp_ratio: float = 4.0
    positions: Literal["sincos", "learned", "none"] = "sincos"
    relative_bias: Literal["none", "shared", "block"] = "none"
    """A learned bias of attention for each offset between patches (BEiT): one table for all blocks, or one for each."""
    drop_path: float = 0.0
    layer_scale: float | None = None
    eps: float = 1e-6
    recompute: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Each channel's mean, on a scale of 0 to 1, that images are normalised with."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return grid_size(self.image_size, self.patch_size)


class ViT(nn.Module):
    """An encoder of images: (B, C, H, W) to a class token and one token a patch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.embed = PatchEmbed(config.patch_size, config.channels, config.width)
        xavier(self.embed)
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.02)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(1 + rows * columns, config.width) * 0.02)  # (1 + N, D)
        elif config.positions == "sincos":
            places = torch.cat([torch.zeros(1, config.width), sincos_2d(config.grid, config.width)])
            self.positions = nn.Parameter(places, requires_grad=False)
        else:
            self.register_parameter("positions", None)
        tables = {"none": 0, "shared": 1, "block": config.depth}[config.relative_bias]
        self.relative = nn.ModuleList(RelativePositionBias(config.grid, config.heads) for _ in range(tables))
        self.transformer = Transformer(
            TransformerConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path,
                layer_scale=config.layer_scale,
                eps=config.eps,
                recompute=config.recompute,
            )
        )

    def tokens(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int[Tensor, "B V"] | None = None,
        *,
        hidden: Bool[Tensor, "B N"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        any_size: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """The class token and the embedded patches, with their positions.

        Args:
            images: Normalised images.
            keep: Positions of the patches to embed; the others are never touched.
            hidden: True where `mask_token` stands in for the patch (BEiT, SimMIM, and MAE's ablation 1c).
            mask_token: The stand-in.
            any_size: Takes images of another size too, with the positions interpolated (DINO's local crops).
        """
        size = (images.shape[2], images.shape[3])
        grid = grid_size(size, self.config.patch_size) if any_size else self.config.grid
        positions = None if self.positions is None else resize_positions(self.positions, self.config.grid, grid)
        if images.shape[1] != self.config.channels or not (any_size or size == self.config.image_size):
            wanted = (self.config.channels, *self.config.image_size)
            raise UnveilError(f"images are (channels, height, width) {tuple(images.shape[1:])}, the model takes {wanted}")
        patches = self.embed(images, keep)  # (B, V, D)
        if hidden is not None and mask_token is not None:
            patches = torch.where(hidden[:, :, None], mask_token.to(patches.dtype), patches)
        first: Tensor = self.class_token
        if positions is not None:
            places = positions[1:] if keep is None else positions[1:][keep]
            patches = patches + places.to(patches.dtype)  # under autocast, tokens stay in half precision
            first = first + positions[0]
        return torch.cat([first.to(patches.dtype).expand(images.shape[0], 1, -1), patches], dim=1)  # (B, 1 + V, D)

    def biases(self, keep: Int[Tensor, "B V"] | None = None) -> list[Tensor]:
        """What is added to the scores of attention: one for all blocks, or one a block, or none; of the patches `keep` alone."""
        tables = [table() for table in self.relative]  # (heads, 1 + N, 1 + N)
        if keep is None or not tables:
            return tables
        seen = torch.cat([torch.zeros_like(keep[:, :1]), 1 + keep], dim=1)
        return [table[:, seen[:, :, None], seen[:, None, :]].transpose(0, 1) for table in tables]  # (B, heads, 1 + V, 1 + V)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int[Tensor, "B V"] | None = None,
        *,
        hidden: Bool[Tensor, "B N"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        any_size: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """The tokens after the last norm, the class token first; arguments as in `tokens`."""
        tokens: Tensor = self.tokens(images, keep, hidden=hidden, mask_token=mask_token, any_size=any_size)
        tokens = self.transformer(tokens, biases=self.biases(keep))
        return tokens

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "B D"]:
        """One vector an image: the mean of the patch tokens, or the class token."""
        tokens: Tensor = self(images)
        exact = torch.promote_types(tokens.dtype, torch.float32)
        return tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(dim=1, dtype=exact)

    @torch.no_grad()
    def attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        """How much the class token looks at each patch in the last block, head by head."""
        biases: list[Tensor] | list[None] = self.biases() or [None]
        x = self.tokens(images)
        for i, block in enumerate(self.transformer.blocks[:-1]):
            x = block(x, bias=biases[i % len(biases)])
        last = self.transformer.blocks[-1]
        assert isinstance(last, Block)
        return last.attention.weights(last.norm1(x), biases[-1])[:, :, 0, 1:]

    def resized(self, image_size: Size) -> "ViT":
        """A copy for images of another size, with the positions interpolated."""
        other = ViT(replace(self.config, image_size=image_size))
        state, old, new = self.state_dict(), self.config.grid, other.config.grid
        resizes = {"positions": resize_positions, **{f"relative.{i}.table": resize_biases for i in range(len(self.relative))}}
        other.load_state_dict(state | {name: change(state[name], old, new) for name, change in resizes.items() if name in state})
        return other


def heads_of(width: int) -> int:
    """The usual number of heads of a width. Raises `UnveilError` for a width that has none."""
    usual = {width: heads for width, _, heads in MODELS.values()} | {512: 16}
    if width not in usual:
        raise UnveilError(f"width {width} has no usual number of heads: say how many (heads=, decoder_heads=)")
    return usual[width]
