"""ViT, DINOv2, DINOv2 with registers and BEiT of transformers: folders with config.json and weights in one file or several.

`ViTMAE` and `BeitForMaskedImageModeling`, which have more than an encoder, are in modules of their own. Loading does not need
transformers. What `ViTMAE` does not have is exported as ViT (other GELUs) or as DINOv2 (LayerScale, registers, SwiGLU).
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UnveilError
from unveil.interop.classifiers import Labels, Pool, load_classifier
from unveil.interop.config_from_tensors import check_channels, is_gated, mlp_ratio
from unveil.interop.configs import checked
from unveil.interop.encoder_only import EncoderOnly, has_vit, vit_of
from unveil.interop.files import read_folder
from unveil.interop.formats import Contents
from unveil.interop.heads import dinov2_ratio, joined, left_out, problem_in
from unveil.interop.layout_maps import encoder_map, refuse_unplaced, without_dropped
from unveil.interop.layouts import TRANSFORMERS_LAYOUTS, Layout
from unveil.interop.silence import silenced
from unveil.interop.state_dict_map import to_state_dict
from unveil.interop.timm_vit import told
from unveil.interop.transformers_images import NOTE, images_of_transformers, is_ours, preprocessing, shape_json, write_folder
from unveil.interop.transformers_names import as_size, version4_names
from unveil.interop.verify_export import Verification, compare_reloaded, relative_difference
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.models.vit_config import Activation, ViTConfig
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""`hidden_act` in transformers, and our names."""


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    return contents.kind == "folder" and str(contents.facts.get("model_type")) in TRANSFORMERS_LAYOUTS


def load(folder: str | Path, *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads the encoder or the classifier of a folder, in eval mode.

    Raises:
        UnveilError: If our model does not support the config, or a tensor is missing or unexpected.
    """
    folder = Path(folder)
    facts = read_json(folder / "config.json")
    kind = str(facts["model_type"])
    layout, state = TRANSFORMERS_LAYOUTS[kind], read_folder(folder, f"transformers' {kind}")
    state = {name.removeprefix(f"{kind}."): value for name, value in version4_names(state, kind).items()}
    layout = with_split_swiglu(layout, state)
    state, dropped = without_dropped(layout, state)
    refuse_unplaced(layout, state, folder)
    vit = config_from(facts, layout, state, folder)
    vit = checked(replace(vit, **preprocessing(folder, vit.image_size, say, kind)))
    classes = facts.get("id2label")
    names = [str(classes.get(str(i), i)) for i in range(len(classes))] if isinstance(classes, Mapping) else []
    if names == [f"LABEL_{i}" for i in range(len(names))] and not is_ours(folder):
        names = []  # transformers' names for classes without names
    pool: Pool = "mean" if kind == "beit" and facts.get("use_mean_pooling", True) else "class"
    if kind.startswith("dinov2"):
        state, pool = with_one_half(state, vit.width)
    found = load_classifier(layout, vit, state, str(folder), pool=pool, labels=Labels(names, problem_in(facts)))
    if dropped:
        note = f"{', '.join(sorted(dropped)[:4])} {'was' if len(dropped) == 1 else 'were'} dropped: features do not depend on it"
        found = found._replace(notes=(*found.notes, note))
    return told(found, str(folder), f"transformers, {kind}", say)


def with_one_half(state: dict[str, Tensor], width: int) -> tuple[dict[str, Tensor], Pool]:
    """The tensors of a DINOv2 with the head of one half of its features, if the weights of the other half are 0; and that half.

    Its head takes the class token, and then the mean of the patch tokens.
    """
    weight = state.get("classifier.weight")
    if weight is not None and weight.ndim == 2 and weight.shape[1] == 2 * width:
        of_class, of_mean = weight[:, :width].contiguous(), weight[:, width:].contiguous()
        if not of_mean.any():
            return state | {"classifier.weight": of_class}, "class"
        if not of_class.any():
            return state | {"classifier.weight": of_mean}, "mean"
    return state, "class"


def with_split_swiglu(layout: Layout, state: Mapping[str, Tensor]) -> Layout:
    """The layout with the names that transformers 5 has in memory for the gate and the values of a SwiGLU, if a file has them."""
    if any(".mlp.gate_proj." in name for name in state):
        return replace(layout, swiglu=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
    return layout


def config_from(facts: Mapping[str, Any], layout: Layout, state: Mapping[str, Tensor], folder: Path) -> ViTConfig:
    """Converts the config of transformers, with its defaults, to ours.

    Raises:
        UnveilError: If our model does not support the config.
    """
    kind, act = facts["model_type"], facts.get("hidden_act", "gelu")
    dinov2, beit = kind.startswith("dinov2"), kind == "beit"
    shared, each = facts.get("use_shared_relative_position_bias", False), facts.get("use_relative_position_bias", False)
    if act not in ACTIVATIONS or (shared and each):
        found = f"the activation {act!r}" if act not in ACTIVATIONS else "both shared and per-block relative biases"
        raise UnveilError(f"{folder} has {found}: expected one of {', '.join(ACTIVATIONS)}, and one kind of biases")
    width, channels = facts.get("hidden_size", 768), facts.get("num_channels", 3)
    check_channels(channels)
    hidden = int(width * facts.get("mlp_ratio", 4)) if dinov2 else facts.get("intermediate_size", 3072)
    gated = bool(dinov2 and facts.get("use_swiglu_ffn", False))
    if gated:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    if gated != is_gated(layout, state):
        raise UnveilError(f"{folder} has use_swiglu_ffn {gated} in its config.json, but its weights are of the other kind")
    has_scale = dinov2 or (beit and bool(facts.get("layer_scale_init_value", 0.1)))
    half = (0.5,) * channels
    learned = not beit or facts.get("use_absolute_position_embeddings", False)
    vit = ViTConfig(
        width=width,
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        image_size=as_size(facts.get("image_size", 224)),
        patch_size=as_size(facts.get("patch_size", 14 if dinov2 else 16)),
        channels=channels,
        mlp_ratio=mlp_ratio(hidden, width),
        mlp="swiglu" if gated else ACTIVATIONS[act],
        registers=facts.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0,
        positions="learned" if learned else "none",
        relative_bias="shared" if shared else "block" if each else "none",
        layer_scale=float(facts.get("layerscale_value" if dinov2 else "layer_scale_init_value", 0.1)) if has_scale else None,
        eps=facts.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12),
        final_norm=f"{layout.norm}.weight" in state,
        norm_after_pooling=bool(layout.pooled_norm) and f"{layout.pooled_norm}.weight" in state,
        mean=half,
        std=half,
    )
    return checked(vit)


def kind_of(vit: ViTConfig) -> str | None:
    """The `model_type` that represents an encoder which ViTMAE cannot; None if there is none, or ViTMAE can."""
    common = vit.class_token and not vit.distillation_token and not vit.pre_norm
    if not common or vit.relative_bias != "none" or vit.positions == "none":
        return None
    if vit.layer_scale is not None or vit.registers or vit.mlp == "swiglu":
        known = vit.mlp in ("gelu", "swiglu")
        return ("dinov2_with_registers" if vit.registers else "dinov2") if known else None
    return None if vit.mlp == "gelu" else "vit"


def writes(learner: Learner) -> bool:
    """Whether a learner has such an encoder, which is exported without a head or a decoder."""
    if not has_vit(learner):
        return False
    vit = vit_of(learner).config
    return kind_of(vit) is not None and vit.final_norm and not vit.norm_after_pooling


def state_of(learner: Learner) -> Tensors:
    """The tensors with the names of transformers. Positions of registers are added to them, and a missing LayerScale is 1."""
    encoder = vit_of(learner)
    vit, kind = encoder.config, str(kind_of(encoder.config))
    layout, name = TRANSFORMERS_LAYOUTS[kind], TRANSFORMERS_LAYOUTS[kind].title
    if vit.image_size[0] != vit.image_size[1] or vit.patch_size[0] != vit.patch_size[1]:
        raise UnveilError(
            f"{name} takes only square images and patches, but this model takes {vit.image_size} px in patches of "
            f"{vit.patch_size}: export for timm or as safetensors instead"
        )
    if kind != "vit" and dinov2_ratio(vit) is None:
        raise UnveilError(
            f"{name} has no MLP of {int(vit.width * vit.mlp_ratio)} values for tokens of {vit.width}, since its mlp_ratio is a "
            f"whole number: export for timm or as safetensors instead"
        )
    state = to_state_dict(EncoderOnly(encoder), encoder_map(layout, vit), vit.patch_size)
    return with_registers_and_scales(state, layout, vit, "") if kind != "vit" else state


def with_registers_and_scales(state: Tensors, layout: Layout, vit: ViTConfig, prefix: str) -> Tensors:
    """The tensors of a DINOv2: positions of registers are added to them, a missing LayerScale is 1, and a mask token is 0."""
    state = dict(state)
    if vit.registers:
        table, registers = state[f"{prefix}{layout.positions}"], f"{prefix}{layout.registers}"  # table (1, L + N, D)
        state[registers] = state[registers] + table[:, 1 : vit.prefix_tokens]
        state[f"{prefix}{layout.positions}"] = torch.cat([table[:, :1], table[:, vit.prefix_tokens :]], dim=1)
    if vit.layer_scale is None:
        places = [f"{prefix}{layout.blocks}.{i}.{scale}" for i in range(vit.depth) for scale in layout.scales]
        state |= {place: torch.ones(vit.width) for place in places}
    return state | {f"{prefix}embeddings.mask_token": torch.zeros(1, vit.width)}


def config_json(vit: ViTConfig) -> dict[str, Any]:
    kind = str(kind_of(vit))
    facts = {
        "architectures": [{"vit": "ViTModel", "dinov2": "Dinov2Model"}.get(kind, "Dinov2WithRegistersModel")],
        "model_type": kind,
        **shape_json(vit),
        "hidden_act": "gelu" if vit.mlp == "swiglu" else next(theirs for theirs, ours in ACTIVATIONS.items() if ours == vit.mlp),
        "qkv_bias": True,
    }
    if kind == "vit":
        return facts | {"intermediate_size": int(vit.width * vit.mlp_ratio)}
    more = {"mlp_ratio": dinov2_ratio(vit), "use_swiglu_ffn": vit.mlp == "swiglu", "drop_path_rate": 0.0, "layerscale_value": 1.0}
    return facts | more | ({"num_register_tokens": vit.registers} if vit.registers else {})


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes a folder: see `write_folder`."""
    vit = vit_of(learner).config
    return write_folder(folder, state_of(learner), config_json(vit), vit)


@torch.no_grad()
def verify(learner: Learner, folder: Path) -> Verification:
    """Compares the tokens of an encoder with those of transformers, or of our reloaded model without transformers."""
    encoder = vit_of(learner)
    if importlib.util.find_spec("transformers") is None:
        return compare_reloaded(learner, load(folder, say=lambda text: None), "transformers")
    from transformers import AutoModel

    pair = images_of_transformers(folder, encoder.config)
    with silenced():
        model: Any = AutoModel.from_pretrained(folder)
    found = model.eval()(pair.theirs).last_hidden_state
    note = joined(left_out(learner, "transformers"), NOTE)
    return Verification(relative_difference(found, encoder(pair.ours)), "transformers", f"tokens of {pair.source}", note)
