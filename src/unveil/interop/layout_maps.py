"""The maps of tensor names that follow from a layout and a config, for loading and for exporting, and what has no place in them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from unveil.errors import UnveilError
from unveil.interop.config_from_tensors import required_tensor
from unveil.interop.layouts import FILE_LAYOUTS, Layout
from unveil.interop.state_dict_map import StateDictMap, TensorName, abbreviated, weight_and_bias
from unveil.models.vit_config import ViTConfig


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
