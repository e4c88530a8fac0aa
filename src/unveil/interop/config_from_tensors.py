"""The config of a Vision Transformer that follows from a layout and the tensors of a file, as far as shapes tell it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from unveil.blocks.attention import heads_of
from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD
from unveil.data.eval_transform import usual_crop_pct
from unveil.errors import UnveilError
from unveil.interop.configs import checked
from unveil.interop.layouts import RELEASE, Layout
from unveil.interop.state_dict_map import count_blocks
from unveil.models.vit_config import Activation, ViTConfig

MOST_CHANNELS = 10_000
"""Hyperspectral images have hundreds of channels."""


def config_from_tensors(
    layout: Layout,
    state: Mapping[str, Tensor],
    source: str | Path,
    *,
    heads: int | None = None,
    image_size: int | Size | None = None,
    activation: Activation = "gelu",
    eps: float = 1e-6,
) -> ViTConfig:
    """The config of an encoder, from the shapes of its tensors.

    Args:
        layout: Their names.
        state: The tensors.
        source: The file, for error messages.
        heads: Attention heads; by default the standard number for the width.
        image_size: Side, or height and width; by default that of a square grid of patches.
        activation: That of the MLP. A SwiGLU is recognised.
        eps: That of the norms.

    Raises:
        UnveilError: If a tensor is missing, or the shapes do not fit each other.
    """
    width, channels, *patch = required_tensor(state, f"{layout.embed}.weight", 4, source).shape
    has_positions, has_class = layout.positions in state, layout.class_token in state
    tables = layout.shared_table in state, f"{layout.blocks}.0.{layout.block_table}" in state
    if not has_positions and not any(tables):
        required_tensor(state, layout.positions, 3, source)
    registers = required_tensor(state, layout.registers, 3, source).shape[1] if layout.registers in state else 0
    leading = has_class + registers + (layout.distillation_token in state)
    if has_positions:
        rows = required_tensor(state, layout.positions, 3, source).shape[1]
        if not has_class and math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
            required_tensor(state, layout.class_token, 3, source)
        counts = dict.fromkeys((rows - leading, rows - has_class, rows) if layout.bare_tokens else (rows - leading,))  # of patches
    else:
        table = state[layout.shared_table if tables[0] else f"{layout.blocks}.0.{layout.block_table}"]
        side = (math.isqrt(max(len(table) - 3, 0)) + 1) // 2
        counts = {side * side: None}
    size = size_of_images(list(counts), (patch[0], patch[1]), image_size, source)
    widen, narrow = f"{layout.blocks}.0.{layout.mlp[0]}.weight", f"{layout.blocks}.0.{layout.mlp[1]}.weight"
    gated = is_gated(layout, state)
    hidden = state[f"{layout.blocks}.0.{layout.swiglu[-1]}.weight"].shape[1] if gated else 4 * width
    if not gated and widen in state and narrow in state:
        hidden = state[widen].shape[0]
    scale = f"{layout.blocks}.0.{layout.scales[0]}" if layout.scales else ""
    mean, std = default_mean_and_std(channels)
    config = ViTConfig(
        width=width,
        depth=count_blocks(state, f"{layout.blocks}."),
        heads=heads or heads_of(width),
        image_size=size,
        patch_size=(patch[0], patch[1]),
        channels=channels,
        mlp_ratio=mlp_ratio(hidden, width),
        mlp="swiglu" if gated else activation,
        class_token=has_class,
        distillation_token=layout.distillation_token in state,
        registers=registers,
        positions=("sincos" if layout is RELEASE else "learned") if has_positions else "none",
        relative_bias="shared" if tables[0] else "block" if tables[1] else "none",
        layer_scale=1e-5 if scale in state else None,
        eps=eps,
        pre_norm=f"{layout.pre_norm}.weight" in state,
        final_norm=f"{layout.norm}.weight" in state,
        norm_after_pooling=f"{layout.pooled_norm}.weight" in state,
        mean=mean,
        std=std,
        crop_pct=usual_crop_pct(size),
    )
    rows, columns = checked(config).grid
    if rows * columns not in counts:
        raise UnveilError(
            f"{source} has positions of {next(iter(counts))} patches, but images of {size[0]} x {size[1]} px have "
            f"{rows * columns}: load it at its own size, then use encoder.resized({size})"
        )
    return config


def is_gated(layout: Layout, state: Mapping[str, Tensor]) -> bool:
    """Whether the first layers of an MLP are twice as wide as the last one takes, or are two."""
    names = [f"{layout.blocks}.0.{name}.weight" for name in layout.swiglu]
    if not names or not all(name in state for name in names):
        return False
    return sum(len(state[name]) for name in names[:-1]) == 2 * state[names[-1]].shape[-1]


def size_of_images(counts: Sequence[int], patch: Size, image_size: int | Size | None, source: str | Path) -> Size:
    """The size of images, for the possible numbers of their patches.

    Raises:
        UnveilError: If no number, or more than one, is a square, and the size is not given.
    """
    if image_size is not None:
        return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    squares = [count for count in counts if count > 0 and math.isqrt(count) ** 2 == count]
    if len(squares) != 1:
        which = "which is not a square grid" if not squares else f"or {squares[1]}, as registers may have positions or not"
        raise UnveilError(f"{source} has positions of {counts[0]} patches, {which}: pass image_size=(height, width)")
    side = math.isqrt(squares[0])
    return side * patch[0], side * patch[1]


def required_tensor(state: Mapping[str, Tensor], name: str, dimensions: int, source: str | Path) -> Tensor:
    """A tensor of a state dict. Raises `UnveilError` if it is missing or has another number of dimensions."""
    if name not in state:
        raise UnveilError(f"{source} is not in the layout of the public MAE release, of timm or of transformers: {name} is missing")
    if state[name].ndim != dimensions:
        raise UnveilError(f"{source}: {name} has shape {tuple(state[name].shape)}, expected {dimensions} dimensions")
    return state[name]


def mlp_ratio(hidden: int, width: int) -> float:
    """The width of an MLP as a multiple of the token width, chosen so that int(width * ratio) is exact."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def default_mean_and_std(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalisation of images for files that do not record it: the default of `normalise`."""
    check_channels(channels)
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,) * channels, (0.226,) * channels)


def check_channels(channels: int) -> None:
    """Raises `UnveilError` for a number of channels that no image has, before a mean for each of them is allocated."""
    if not (isinstance(channels, int) and 1 <= channels <= MOST_CHANNELS):
        raise UnveilError(f"the config has images of {channels!r} channels, expected 1 to {MOST_CHANNELS:,}")
