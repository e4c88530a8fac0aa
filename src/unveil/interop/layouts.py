"""What other libraries call the tensors of a Vision Transformer: one row of `LAYOUTS` for each way.

From a row and a config follows the map of all names (`encoder_map`), for loading and for exporting. From a row and the tensors of a
file follows the config (`config_from_tensors`), as far as shapes tell it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from unveil.blocks.attention import heads_of
from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD
from unveil.data.eval_transform import usual_crop_pct
from unveil.errors import UnveilError
from unveil.interop.configs import checked
from unveil.interop.state_dict_map import StateDictMap, TensorName, abbreviated, count_blocks, weight_and_bias
from unveil.models.vit_config import Activation, ViTConfig

MOST_CHANNELS = 10_000
"""Hyperspectral images have hundreds of channels."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of an encoder's tensors. An empty name means that the layout has no place for such a tensor."""

    title: str
    """For messages."""
    embed: str = "patch_embed.proj"
    class_token: str = "cls_token"
    distillation_token: str = ""
    registers: str = ""
    positions: str = "pos_embed"
    bare_tokens: bool = False
    """Whether the table of positions may have no rows for the leading tokens, or only one for the class token."""
    pre_norm: str = ""
    blocks: str = "blocks"
    """The prefix of block i is `blocks.i.`; the names below, up to `block_table`, follow it."""
    norm1: str = "norm1"
    query_key_value: tuple[str, ...] = ("attn.qkv",)
    """One layer, or three."""
    biases: tuple[str, ...] = ("attn.qkv.bias",)
    """Their biases. An empty name means zeros that are not stored, such as those of BEiT's keys, whose bias has no effect."""
    out: str = "attn.proj"
    norm2: str = "norm2"
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
    swiglu: tuple[str, ...] = ()
    """The layers of gate and values, as one or two, and the layer after them."""
    scales: tuple[str, str] | tuple[()] = ()
    """LayerScale after the attention and after the MLP."""
    block_table: str = ""
    """The table of relative position biases of a block."""
    shared_table: str = ""
    norm: str = "norm"
    pooled_norm: str = ""
    heads: tuple[str, ...] = ()
    """Classifiers. Files without one have an encoder only."""
    dropped: tuple[str, ...] = ()
    """The beginnings of names of what is left out, as the features do not depend on it."""


TIMM = Layout(
    title="timm's VisionTransformer",
    distillation_token="dist_token",
    registers="reg_token",
    bare_tokens=True,
    pre_norm="norm_pre",
    swiglu=("mlp.fc1", "mlp.fc2"),
    scales=("ls1.gamma", "ls2.gamma"),
    pooled_norm="fc_norm",
    heads=("head", "head_dist"),
)
TIMM_BEIT = replace(
    TIMM,
    title="timm's Beit",
    distillation_token="",
    registers="",
    pre_norm="",
    biases=("attn.q_bias", "", "attn.v_bias"),
    swiglu=("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"),
    scales=("gamma_1", "gamma_2"),
    block_table="attn.relative_position_bias_table",
    shared_table="rel_pos_bias.relative_position_bias_table",
    heads=("head",),
    dropped=("mask_token",),
)
RELEASE = Layout(title="the public MAE release")
DINOV2_RELEASE = replace(
    TIMM, title="the DINOv2 release", registers="register_tokens", swiglu=("mlp.w12", "mlp.w3"), heads=(), dropped=("mask_token",)
)
TRANSFORMERS_MAE = Layout(
    title="transformers' ViTMAE",
    embed="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    blocks="encoder.layer",
    norm1="layernorm_before",
    query_key_value=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    biases=("attention.attention.query.bias", "attention.attention.key.bias", "attention.attention.value.bias"),
    out="attention.output.dense",
    norm2="layernorm_after",
    mlp=("intermediate.dense", "output.dense"),
    norm="layernorm",
)
TRANSFORMERS_VIT = replace(
    TRANSFORMERS_MAE, title="transformers' ViT", heads=("classifier",), dropped=("pooler.", "decoder.", "embeddings.mask_token")
)
TRANSFORMERS_BEIT = replace(
    TRANSFORMERS_MAE,
    title="transformers' BEiT",
    biases=("attention.attention.query.bias", "", "attention.attention.value.bias"),
    scales=("lambda_1", "lambda_2"),
    block_table="attention.attention.relative_position_bias.relative_position_bias_table",
    shared_table="encoder.relative_position_bias.relative_position_bias_table",
    pooled_norm="pooler.layernorm",
    heads=("classifier",),
    dropped=("embeddings.mask_token", "lm_head."),
)
TRANSFORMERS_DINOV2 = replace(
    TRANSFORMERS_MAE,
    title="transformers' DINOv2",
    norm1="norm1",
    norm2="norm2",
    mlp=("mlp.fc1", "mlp.fc2"),
    swiglu=("mlp.weights_in", "mlp.weights_out"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    heads=("classifier",),
    dropped=("embeddings.mask_token",),
)
TRANSFORMERS_DINOV2_REGISTERS = replace(
    TRANSFORMERS_DINOV2, title="transformers' DINOv2 with registers", registers="embeddings.register_tokens", bare_tokens=True
)
FILE_LAYOUTS = (
    TIMM,
    replace(TIMM, title="timm's VisionTransformer with a split SwiGLU", swiglu=("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")),
    TIMM_BEIT,
    replace(TIMM, title="the DeiT III release", scales=("gamma_1", "gamma_2")),
    DINOV2_RELEASE,
)
"""The layouts of files that say nothing about themselves, with the names of timm; the first that has most of the names is taken."""
TRANSFORMERS_LAYOUTS = {
    "vit": TRANSFORMERS_VIT,
    "beit": TRANSFORMERS_BEIT,
    "dinov2": TRANSFORMERS_DINOV2,
    "dinov2_with_registers": TRANSFORMERS_DINOV2_REGISTERS,
}
"""The layouts of folders of transformers, by the `model_type` of their config.json."""


def encoder_map(
    layout: Layout, vit: ViTConfig, *, ours: str = "encoder.", theirs: str = "", state: Collection[str] | None = None
) -> StateDictMap:
    """The map of the tensors of an encoder.

    What the layout has no name for has no entry, so that `to_state_dict` refuses it.

    Args:
        layout: The names.
        vit: What the encoder has.
        ours: The prefix of our names.
        theirs: The prefix of their names.
        state: The names in a file. A bias that it has nowhere, of the patch embedding or of queries, keys and values, is 0.
    """
    names: StateDictMap = {f"{ours}embed.weight": TensorName((f"{theirs}{layout.embed}.weight",), "convolution")}
    names[f"{ours}embed.bias"] = TensorName(stored([f"{theirs}{layout.embed}.bias"], state, only_if=vit.pre_norm))
    for name, there, has in (
        ("class_token", layout.class_token, vit.class_token),
        ("distillation_token", layout.distillation_token, vit.distillation_token),
    ):
        if has and there:
            names[f"{ours}{name}"] = TensorName((f"{theirs}{there}",), "token")
    if vit.registers and layout.registers:
        names[f"{ours}registers"] = TensorName((f"{theirs}{layout.registers}",), "table")
    if vit.positions != "none" and layout.positions:
        patches = vit.grid[0] * vit.grid[1] if layout.bare_tokens else None
        names[f"{ours}positions"] = TensorName((f"{theirs}{layout.positions}",), "table", patches)
    every_bias = {f"{theirs}{layout.blocks}.{i}.{name}" for i in range(vit.depth) for name in layout.biases if name}
    has_biases = state is None or not every_bias.isdisjoint(state)
    for i in range(vit.depth):
        block, there = f"{ours}transformer.blocks.{i}.", f"{theirs}{layout.blocks}.{i}."
        names |= layer_map(layout, block, there, gated=vit.mlp == "swiglu", has_biases=has_biases)
        if vit.layer_scale is not None:
            names |= {f"{block}branch{k}.scale": TensorName((f"{there}{name}",)) for k, name in enumerate(layout.scales, start=1)}
        if vit.relative_bias == "block" and layout.block_table:
            names[f"{ours}relative.{i}.table"] = TensorName((f"{there}{layout.block_table}",))
    if vit.relative_bias == "shared" and layout.shared_table:
        names[f"{ours}relative.0.table"] = TensorName((f"{theirs}{layout.shared_table}",))
    for name, there, has in (
        ("pre_norm", layout.pre_norm, vit.pre_norm),
        ("transformer.norm", layout.norm, vit.final_norm),
        ("pooled_norm", layout.pooled_norm, vit.norm_after_pooling),
    ):
        if has and there:
            names |= weight_and_bias(f"{ours}{name}", f"{theirs}{there}")
    return names


def decoder_map(layout: Layout, theirs: str, depth: int) -> StateDictMap:
    """The map of the blocks of an MAE's decoder; `theirs` is their name in the other library."""
    names: StateDictMap = {}
    for i in range(depth):
        names |= layer_map(layout, f"decoder.blocks.{i}.", f"{theirs}.{i}.")
    return names


def layer_map(layout: Layout, ours: str, theirs: str, *, gated: bool = False, has_biases: bool = True) -> StateDictMap:
    """The map of the layers of one block; `ours` and `theirs` are the prefixes of its names."""
    names: StateDictMap = {}
    for name, there in (("norm1", layout.norm1), ("attention.out", layout.out), ("norm2", layout.norm2)):
        names |= weight_and_bias(f"{ours}{name}", f"{theirs}{there}")
    projection = f"{ours}attention.query_key_value"
    names[f"{projection}.weight"] = TensorName(tuple(f"{theirs}{name}.weight" for name in layout.query_key_value))
    biases = tuple(f"{theirs}{name}" if name and has_biases else "" for name in layout.biases)
    names[f"{projection}.bias"] = TensorName(biases)
    layers = layout.swiglu if gated else layout.mlp
    if layers:
        names |= weight_and_bias(f"{ours}mlp.0", tuple(f"{theirs}{name}" for name in layers[:-1]))
        names |= weight_and_bias(f"{ours}mlp.2", f"{theirs}{layers[-1]}")
    return names


def stored(names: Sequence[str], state: Collection[str] | None, only_if: bool) -> tuple[str, ...]:
    """The names, or empty ones for zeros, if a file has none of them and may do without."""
    return tuple("" if only_if and state is not None and name not in state else name for name in names)


def layout_of_file(names: Collection[str]) -> Layout:
    """The layout of a file with the names of timm: the one that has most of the names in the first block, and of the tokens."""

    def matched(layout: Layout) -> int:
        single = {layout.registers, layout.distillation_token, layout.shared_table} - {""}
        first = [f"blocks.0.{name}" for name in (*layout.scales, *layout.biases, layout.block_table) if name]
        first += [f"blocks.0.{name}.weight" for name in layout.swiglu]
        return sum(name in names for name in (*single, *first))

    return max(FILE_LAYOUTS, key=matched)


def without_dropped(layout: Layout, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that a layout keeps, and the names of those that it drops. Indices of relative positions are computed anew."""
    dropped = [name for name in state if name.startswith(layout.dropped)] if layout.dropped else []
    kept = {k: v for k, v in state.items() if k not in dropped and not k.endswith("relative_position_index")}
    return kept, dropped


REASONS = {
    "rope": "rotary positions",
    "attn_pool": "attention pooling",
    "q_norm": "norms of queries and keys",
    "k_norm": "norms of queries and keys",
    "q_proj": "separate projections of timm's Eva, with rotary positions",
    "attn.norm": "a norm in the attention",
    "mlp.norm": "a norm in the MLP",
    "patch_embed.backbone": "a convolutional network before the patches",
    "patch_embed.norm": "a norm of the patches",
    "stem": "a convolutional stem",
    "attns": "parallel branches",
    "mlp_hidden": "attention and MLP side by side",
    "in_proj": "attention and MLP side by side",
    "layers.": "stages of several resolutions",
    "stages.": "stages of several resolutions",
}
"""What a tensor without a place belongs to, by a part of its name."""


def refuse_unplaced(layout: Layout, state: Collection[str], source: str | Path) -> None:
    """Raises `UnveilError` that names the first tensor which our encoder has no place for; heads are not looked at."""
    layers = [layout.norm1, layout.norm2, layout.out, *layout.query_key_value, *layout.mlp, *layout.swiglu]
    inside = {f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias")} | {*layout.biases, *layout.scales}
    inside |= {layout.block_table} - {""}
    single = {layout.class_token, layout.distillation_token, layout.registers, layout.positions, layout.shared_table}
    around = [name for name in (layout.embed, layout.pre_norm, layout.norm, layout.pooled_norm) if name]
    single |= {f"{name}.{leaf}" for name in around for leaf in ("weight", "bias")}

    def has_place(name: str) -> bool:
        if name in single or name.partition(".")[0] in layout.heads or name.startswith(layout.dropped or "\0"):
            return True
        start, _, rest = name.removeprefix(f"{layout.blocks}.").partition(".")
        return name.startswith(f"{layout.blocks}.") and start.isdecimal() and rest in inside

    if f"{layout.embed}.weight" not in state:
        required_tensor({}, f"{layout.embed}.weight", 4, source)
    left = [name for name in state if not has_place(name)]
    if left:
        hint = next((f" ({reason})" for part, reason in REASONS.items() if part in left[0]), "")
        raise UnveilError(
            f"{source} cannot be expressed as one of unveil's Vision Transformers: {left[0]} has no place{hint}; "
            f"{len(left)} left over ({abbreviated(set(left))})"
        )
    tables = [name for name in (layout.shared_table, f"{layout.blocks}.0.{layout.block_table}") if name in state]
    if not tables and layout.positions not in state:
        raise UnveilError(
            f"{source} is not in the layout of the public MAE release or of timm's VisionTransformer: {layout.positions} is "
            f"missing (models with rotary positions, such as DINOv3, cannot be expressed)"
        )
    if not tables and f"{layout.blocks}.0.attn.q_bias" in state:
        raise UnveilError(
            f"{source} cannot be expressed as one of unveil's Vision Transformers: {layout.blocks}.0.attn.q_bias without a table "
            f"of relative positions belongs to a model with rotary positions, such as EVA-02"
        )


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
