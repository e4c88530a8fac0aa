"""The Vision Transformer (Dosovitskiy et al., 2020), for any image size, patch size and number of channels.

Letters: B images, C channels, H W pixels, h w rows and columns of patches, N = h x w patches, V visible, D width,
    L leading tokens (one class token, unless the config says otherwise), T = L + V tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.attention import OnGrid
from unveil.blocks.init import xavier
from unveil.blocks.layer_norm import LayerNorm
from unveil.blocks.patches import PatchEmbed, Size, grid_size
from unveil.blocks.positions import RelativePositionBias, resize_biases, resize_positions, sincos_2d
from unveil.blocks.transformer import Block, Transformer, TransformerConfig
from unveil.blocks.windows import GridAttention, resize_offsets
from unveil.errors import UnveilError
from unveil.models.vit_config import ViTConfig

OF_TRANSFORMER = (
    *("width", "depth", "heads", "mlp_ratio", "final_norm", "drop_path", "layer_scale", "eps", "grad_checkpointing"),
    *("window", "global_blocks"),
)
"""The fields of a `ViTConfig` that its `TransformerConfig` has as well."""


class ViT(nn.Module):
    """An image encoder: (B, C, H, W) to a class token and one token per patch, (B, 1 + N, D).

    Encoders of other sources may have registers, or no class token: (B, L + N, D), with L = `config.prefix_tokens`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.embed = PatchEmbed(config.patch_size, config.channels, config.width)
        xavier(self.embed)
        leading = config.prefix_tokens  # L
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.02) if config.class_token else None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(leading + rows * columns, config.width) * 0.02)  # (L + N, D)
        elif config.positions == "sincos":
            table = torch.cat([torch.zeros(leading, config.width), sincos_2d(config.grid, config.width)])
            self.positions = nn.Parameter(table, requires_grad=False)
        else:
            self.register_parameter("positions", None)
        self.distillation_token = nn.Parameter(torch.randn(config.width) * 0.02) if config.distillation_token else None
        self.registers = nn.Parameter(torch.randn(config.registers, config.width) * 0.02) if config.registers else None
        self.pre_norm = LayerNorm(config.width, eps=config.eps) if config.pre_norm else nn.Identity()
        tables = {"none": 0, "shared": 1, "block": config.depth, "decomposed": 0}[config.relative_bias]
        self.relative = nn.ModuleList(RelativePositionBias(config.grid, config.heads, config.class_token) for _ in range(tables))
        values = {name: getattr(config, name) for name in OF_TRANSFORMER}
        relative_grid = config.grid if config.relative_bias == "decomposed" else None
        self.transformer = Transformer(TransformerConfig(**values, activation=config.mlp, relative_grid=relative_grid))
        self.pooled_norm = LayerNorm(config.width, eps=config.eps) if config.norm_after_pooling else nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Learned positions and registers have no weight decay. Tables of relative biases have, as in BEiT's public code."""
        return {"positions"} if self.registers is None else {"positions", "registers"}

    def layer_of(self, name: str) -> int:
        """The depth of a parameter, for layer-wise learning rates: 0 for the embedding, 1 + i for block i."""
        return 1 + int(name.split(".")[2]) if name.startswith("transformer.blocks.") else 0

    def grid_of(self, images: Float[Tensor, "B C H W"], any_size: bool = False) -> Size:
        """Rows and columns of patches. Raises `UnveilError` if images have the wrong size or channels."""
        size = (images.shape[2], images.shape[3])
        if images.shape[1] != self.config.channels or not (any_size or size == self.config.image_size):
            expected = (self.config.channels, *self.config.image_size)
            raise UnveilError(f"images are (channels, height, width) {tuple(images.shape[1:])}, but the model takes {expected}")
        return grid_size(size, self.config.patch_size)

    def tokens(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int[Tensor, "B V"] | None = None,
        *,
        hidden: Bool[Tensor, "B N"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        any_size: bool = False,
        antialias: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """The leading tokens and the embedded patches, with their positions, after the norm before the blocks if there is one.

        Args:
            images: Normalised images.
            keep: Indices of the patches to embed; by default all. Other patches are never read.
            hidden: True where `mask_token` replaces the patch (BEiT, SimMIM, and MAE's table 1c).
            mask_token: The token that replaces masked patches.
            any_size: Whether images may have another size, with interpolated positions (DINO's local crops).
            antialias: How to interpolate them; see `resize_positions`.
        """
        grid = self.grid_of(images, any_size)
        patches = self.embed(images, keep)  # (B, V, D)
        if hidden is not None and mask_token is not None:
            patches = torch.where(hidden[:, :, None], mask_token.to(patches.dtype), patches)
        leading, first = self.config.prefix_tokens, self.leading_tokens()
        if self.positions is not None:
            positions = resize_positions(self.positions, self.config.grid, grid, antialias)
            of_patches = positions[leading:] if keep is None else positions[leading:][keep]
            patches = patches + of_patches.to(patches.dtype)  # keeps half precision under autocast
            first = None if first is None else first + positions[:leading]
        if first is not None:
            patches = torch.cat([first.to(patches.dtype).expand(images.shape[0], -1, -1), patches], dim=1)
        tokens: Tensor = self.pre_norm(patches)  # (B, L + V, D)
        return tokens

    def leading_tokens(self) -> Float[Tensor, "L D"] | None:
        """The class token, the distillation token and the registers, without positions; None if there are none."""
        single = [token[None] for token in (self.class_token, self.distillation_token) if token is not None]
        every = [*single, *([] if self.registers is None else [self.registers])]
        return torch.cat(every) if len(every) > 1 else (every[0] if every else None)

    def biases(self, grid: Size, keep: Int[Tensor, "B V"] | None = None) -> Sequence[Tensor | OnGrid | None]:
        """Relative attention biases, for the patches `keep`: one for all blocks, one per block, or none.

        With windows or decomposed relative positions, there is one per block, which also says the grid. Raises `UnveilError` if
        `keep` is then given.
        """
        if self.config.on_grid:
            if keep is not None:
                raise UnveilError("an encoder with windows or decomposed relative positions takes all patches, not some (keep)")
            return self.places(grid)
        tables = [table(grid) for table in self.relative]  # (heads, 1 + N, 1 + N), of a class token and patches
        if keep is None or not tables:
            return tables
        kept = torch.cat([torch.zeros_like(keep[:, :1]), 1 + keep], dim=1)
        return [table[:, kept[:, :, None], kept[:, None, :]].transpose(0, 1) for table in tables]  # (B, heads, 1 + V, 1 + V)

    def places(self, grid: Size) -> list[OnGrid | Tensor | None]:
        """What the attention of each block needs to know of a grid of patches."""
        found: dict[tuple[int, int], Tensor] = {}  # blocks with the same table and windows share a bias
        places: list[OnGrid | Tensor | None] = []
        for i, block in enumerate(self.transformer.blocks):
            window, bias = self.transformer.config.window_of(i), None
            if self.relative:
                table = i % len(self.relative)
                if (table, window) not in found:
                    owner = self.relative[table]
                    assert isinstance(owner, RelativePositionBias)
                    found[table, window] = owner.within(window) if window else owner(grid)
                bias = found[table, window]
            assert isinstance(block, Block)
            places.append(OnGrid(grid, bias) if isinstance(block.attention, GridAttention) else bias)
        return places

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int[Tensor, "B V"] | None = None,
        *,
        hidden: Bool[Tensor, "B N"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        any_size: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """The tokens after the final norm. Leading tokens, such as the class token, come first. Arguments as in `tokens`."""
        tokens = self.tokens(images, keep, hidden=hidden, mask_token=mask_token, any_size=any_size)
        out: Tensor = self.transformer(tokens, biases=self.biases(self.grid_of(images, any_size), keep))
        return out

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean", "class", "both"] = "mean") -> Float[Tensor, "B F"]:
        """One vector for each image: the mean of the patch tokens, the class token, or both side by side, F = D or 2 D.

        With a distillation token, its mean with the class token stands for the class token. With `norm_after_pooling`, each vector
        is normalised. Raises `UnveilError` if a class token is asked of an encoder without one.
        """
        return self.pooled(self(images), pool)

    def pooled(self, tokens: Float[Tensor, "B T D"], pool: Literal["mean", "class", "both"]) -> Float[Tensor, "B F"]:
        """The features of the tokens that `forward` returns: see `features`."""
        if pool != "mean":
            self.config.require_class_token(f"pool {pool}")
            first: Tensor = tokens[:, :2].mean(dim=1) if self.config.distillation_token else tokens[:, 0]
            first = self.pooled_norm(first)
            if pool == "class":
                return first
        patches = tokens[:, self.config.prefix_tokens :]
        mean: Tensor = self.pooled_norm(patches.mean(dim=1, dtype=torch.promote_types(tokens.dtype, torch.float32)))
        return mean if pool == "mean" else torch.cat([mean, first.to(mean.dtype)], dim=1)

    def forward_features(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int], *, antialias: bool = True
    ) -> list[Float[Tensor, "B D h w"]]:
        """Feature maps after some blocks, for dense tasks. These are the patch tokens without the final norm.

        This is timm's `forward_intermediates(images, layers, intermediates_only=True)`. Images may have any size that patches tile;
        positions and relative biases are interpolated.

        Args:
            images: Normalised images.
            layers: Indices of blocks, for example (3, 5, 7, 11); a negative index counts from the last block.
            antialias: How to interpolate positions, by default as in timm; see `resize_positions`.
        """
        grid = self.grid_of(images, any_size=True)
        outputs = self.transformer.intermediates(self.tokens(images, any_size=True, antialias=antialias), self.biases(grid))
        return [outputs[layer][:, self.config.prefix_tokens :].transpose(1, 2).unflatten(2, grid) for layer in layers]

    @torch.no_grad()
    def attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        """The attention of the class token to each patch in the last block, for each head.

        Raises `UnveilError` if there is no class token.
        """
        self.config.require_class_token("a map of attention")
        tokens, biases = self.tokens(images), self.biases(self.config.grid)
        before = [tokens, *self.transformer.intermediates(tokens, biases)][-2]
        last = self.transformer.blocks[-1]
        assert isinstance(last, Block)
        bias = biases[-1] if biases else None
        assert not isinstance(bias, OnGrid)  # there is no class token on a grid
        return last.attention.weights(last.norm1(before), bias)[:, :, 0, self.config.prefix_tokens :]

    def resized(self, image_size: Size | int, antialias: bool = False) -> "ViT":
        """A copy for images of another size, with interpolated positions.

        Args:
            image_size: Height and width, or the side of square images, in pixels.
            antialias: How to interpolate positions; see `resize_positions`.

        Raises:
            UnveilError: If it is no such size, or the patches do not tile it.
        """
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise UnveilError(f"image_size is {image_size!r}: give one side, or height and width, in whole pixels")
        other = ViT(replace(self.config, image_size=sides))
        state, old, new = self.state_dict(), self.config.grid, other.config.grid
        resizes = {f"relative.{i}.table": resize_biases for i in range(len(self.relative))}
        resizes["positions"] = partial(resize_positions, antialias=antialias)
        resizes |= offset_resizes(self.config)
        other.load_state_dict(state | {name: change(state[name], old, new) for name, change in resizes.items() if name in state})
        return other


def offset_resizes(config: ViTConfig) -> dict[str, Callable[[Tensor, Size, Size], Tensor]]:
    """The tensors of decomposed relative positions that depend on the size of images, and how they change with the grid."""
    if config.relative_bias != "decomposed":
        return {}
    whole = [i for i in range(config.depth) if not config.window or i in config.global_blocks]
    rows = {f"transformer.blocks.{i}.attention.rows": lambda table, old, new: resize_offsets(table, new[0]) for i in whole}
    columns = {f"transformer.blocks.{i}.attention.columns": lambda table, old, new: resize_offsets(table, new[1]) for i in whole}
    return rows | columns
