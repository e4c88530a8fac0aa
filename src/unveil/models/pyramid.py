"""A plain ViT as a pyramid of feature maps with strides 4, 8, 16 and 32, for patches of 16 pixels: the body of dense tasks.

    "last", ViTDet's simple pyramid (Li et al., 2022, section 3)       "depths", as MAE and BEiT for UperNet

    images -> ViT -> last block    (B, D, h, w)                         images -> ViT -> four blocks    4 x (B, D, h, w)
      deconv D/2, norm, GELU, deconv D/4    (4 h, 4 w)                    first: deconv, norm, GELU, deconv    (4 h, 4 w)
      deconv D/2                            (2 h, 2 w)                    second: deconv                       (2 h, 2 w)
      as it is                              (h, w)                        third: as it is                      (h, w)
      max-pool                              (h/2, w/2)                    fourth: max-pool                     (h/2, w/2)
    and each: 1 x 1 conv, norm, 3 x 3 conv, norm    (B, 256, ...)       (B, D, ...)

"patches" gives the same four blocks as they are, for a light head. No map goes through the final norm of the encoder.

Letters: B images, C channels, H W pixels, h w rows and columns of patches, D width.
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.map_norms import MapNorm, map_norm
from unveil.errors import UnveilError
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig

FACTORS = (4.0, 2.0, 1.0, 0.5)
"""The resolution of each level, as a multiple of that of the patches."""


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """How a ViT becomes a pyramid."""

    levels: Literal["last", "depths", "patches"] = "last"
    """Maps from the last block only (ViTDet), from four depths (MAE, BEiT), or from four depths without a change of resolution."""
    channels: int = 256
    """Channels of each map of "last". Others have the width of the encoder."""
    norm: MapNorm = "layer"
    """Norm of the convolutions: see `unveil.blocks.map_norms`."""
    drop_path: float = 0.0
    """Probability that a sample skips a block, in the last block; it grows linearly with depth."""
    window: int | None = None
    """Side of the windows within which patches attend, in patches; 0 for global attention. ViTDet has 14 at 1024 pixels. By default
    that of the encoder."""
    relative_positions: bool = False
    """Whether to learn decomposed relative positions, from zero. Relative biases that the encoder has are kept instead."""


class Pyramid(nn.Module):
    """Four feature maps of an image of any size that patches tile, the finest first.

    Attributes:
        encoder: The ViT.
        channels: Channels of each map.
        strides: Pixels between two values of each map.
    """

    def __init__(self, encoder: ViT, config: PyramidConfig) -> None:
        super().__init__()
        vit = encoder.config
        if vit.patch_size[0] != vit.patch_size[1]:
            raise UnveilError(f"the patches are {vit.patch_size[0]} x {vit.patch_size[1]} pixels: a pyramid needs square ones")
        self.config, self.encoder = config, encoder
        last = config.levels == "last"
        self.layers = (vit.depth - 1,) * 4 if last else depths(vit.depth)
        factors = (1.0,) * 4 if config.levels == "patches" else FACTORS
        self.strides = [vit.patch_size[0] / factor for factor in factors]
        widths = [vit.width] * 4
        if config.levels == "patches":
            self.resize = nn.ModuleList(nn.Identity() for _ in widths)
        else:
            if last:
                widths = [vit.width // 4, vit.width // 2, vit.width, vit.width]
            self.resize = nn.ModuleList(resizers(vit.width, widths, vit.width // 2 if last else vit.width, config.norm))
        self.project = nn.ModuleList(projection(width, config.channels, config.norm) if last else nn.Identity() for width in widths)
        self.channels = [config.channels] * 4 if last else widths

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised images. Positions are interpolated as in the public code of MAE, BEiT and ViTDet.

        Of an odd number of rows or columns of patches, the coarsest map has one value for the last one alone.
        """
        taps = self.encoder.forward_features(images, self.layers, antialias=False)
        return [
            project(resize(tap)) for tap, resize, project in zip(taps, self.resize, self.project, strict=True)
        ]  # 4 x (B, channels, ...)

    def layer_of(self, name: str) -> int:
        """The depth of a parameter: that in the encoder, and above its blocks for all that follows."""
        owner, _, rest = name.partition(".")
        return self.encoder.layer_of(rest) if owner == "encoder" else self.encoder.config.depth + 1

    def no_weight_decay(self) -> set[str]:
        """Names of matrices without weight decay: those of the encoder."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


def resizers(width: int, widths: list[int], inner: int, norm: MapNorm) -> list[nn.Module]:
    """What brings a map of the patches to each of the resolutions of `FACTORS`.

    Args:
        width: D.
        widths: Channels of each result.
        inner: Channels between the two deconvolutions of the first.
        norm: The norm between them.
    """
    finest = nn.Sequential(
        nn.ConvTranspose2d(width, inner, 2, stride=2),
        map_norm(norm, inner),
        nn.GELU(),
        nn.ConvTranspose2d(inner, widths[0], 2, stride=2),
    )
    # Rounding up keeps the last row of an odd number. An even number of rows is halved as by others, which round down.
    return [finest, nn.ConvTranspose2d(width, widths[1], 2, stride=2), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)]


def projection(width: int, channels: int, norm: MapNorm) -> nn.Sequential:
    """A map with another number of channels."""
    return nn.Sequential(
        nn.Conv2d(width, channels, 1, bias=False),
        map_norm(norm, channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        map_norm(norm, channels),
    )


def depths(depth: int) -> tuple[int, int, int, int]:
    """The blocks after which maps are taken: the published 3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L, in proportion."""
    third, half, two_thirds = (max(round(depth * share) - 1, 0) for share in (1 / 3, 1 / 2, 2 / 3))
    return third, half, two_thirds, depth - 1


def global_blocks(depth: int) -> tuple[int, ...]:
    """The blocks without windows: the last of each quarter (ViTDet: 2, 5, 8, 11 of ViT-B), or of fewer, longer parts.

    A part has at least three blocks. With quarters, no block of a ViT with four blocks would have windows.
    """
    parts = max(1, min(4, depth // 3))
    return tuple(depth * (i + 1) // parts - 1 for i in range(parts))


def build_pyramid(encoder: ViT, config: PyramidConfig) -> Pyramid:
    """A pyramid on a copy of a trained encoder, in which positions are trained.

    Windows, and decomposed relative positions, are for patches only. As in ViTDet, tokens before the patches, such as a class token
    or registers, are then removed: a window has no place for them, and in no window would they see the whole image. Otherwise they
    stay, as in MAE's and BEiT's segmentation, and patches go on attending to them.

    Args:
        encoder: A trained encoder for images of the size that it will mostly see. It does not change.
        config: The options.

    Raises:
        UnveilError: If the patches are not square, or the encoder has windows or relative positions of other sizes.
    """
    built = ViT(body_config(encoder.config, config))
    built.load_state_dict(body_state(encoder, built))
    return Pyramid(built, config)


def body_config(vit: ViTConfig, config: PyramidConfig) -> ViTConfig:
    """The shape of the encoder in a pyramid. It has no norm at the end, since no gradient would reach it."""
    relative, window = vit.relative_bias, vit.window if config.window is None else config.window
    if relative == "none" and config.relative_positions:
        relative = "decomposed"
    on_grid = window > 0 or relative == "decomposed"
    return replace(
        vit,
        final_norm=False,
        norm_after_pooling=False,
        drop_path=config.drop_path,
        positions="none" if vit.positions == "none" else "learned",
        relative_bias=relative,
        window=window,
        global_blocks=vit.global_blocks if window == vit.window else global_blocks(vit.depth) if window else (),
        class_token=vit.class_token and not on_grid,
        distillation_token=vit.distillation_token and not on_grid,
        registers=0 if on_grid else vit.registers,
    )


def body_state(encoder: ViT, built: ViT) -> dict[str, Tensor]:
    """The tensors of a trained encoder in the shape of `built`. Relative positions that it lacks start at zero.

    Raises:
        UnveilError: If the encoder has windows or relative positions of other sizes.
    """
    old, new = encoder.config, built.config
    state, wanted = dict(encoder.state_dict()), built.state_dict()
    dropped = old.prefix_tokens - new.prefix_tokens
    if dropped:
        if "positions" in state:
            state["positions"] = state["positions"][dropped:]
        for i in range(len(encoder.relative)):  # without the three rows of the class token
            state[f"relative.{i}.table"] = state[f"relative.{i}.table"][:-3]
    for name, value in wanted.items():
        fresh = name.endswith((".attention.rows", ".attention.columns")) and name not in state
        if fresh:
            state[name] = value
        elif state[name].shape != value.shape:
            raise UnveilError(
                f"the encoder was trained with windows of {old.window} patches (0: none) and has relative positions for them, but "
                f"windows of {new.window} are asked for: give no window, or {old.window}"
            )
    return {name: state[name] for name in wanted}


def without_encoder(pyramid: Pyramid) -> Pyramid:
    """The same pyramid, of whose modules the encoder is none, so that its tensors have one name: a task owns it."""
    encoder = pyramid.encoder
    del pyramid.encoder
    object.__setattr__(pyramid, "encoder", encoder)
    return pyramid
