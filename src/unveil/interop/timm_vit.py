"""Encoders and classifiers of timm: `VisionTransformer`, with a distillation token or not, and `Beit`.

They are read from a folder of `save_for_hf`, from a file of tensors, or by a name; and are written as a folder for
`timm.create_model("local-dir:...", pretrained=True)`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.atomic_files import write_text
from unveil.blocks.positions import sincos_2d
from unveil.errors import UnveilError
from unveil.interop.classifiers import Found, Labels, Pool, load_classifier
from unveil.interop.config_from_tensors import config_from_tensors
from unveil.interop.configs import checked
from unveil.interop.encoder_only import has_common_vit, vit_of
from unveil.interop.files import read_folder, write_tensors
from unveil.interop.formats import Contents
from unveil.interop.heads import exported_features, facts_of_head, joined, left_out, problem_in
from unveil.interop.image_files import sizes_to_try, transform_of
from unveil.interop.layout_maps import layout_of_file, refuse_unplaced, without_dropped
from unveil.interop.layouts import TIMM
from unveil.interop.silence import silenced
from unveil.interop.state_dict_map import check_names
from unveil.interop.timm_facts import NAMES_OF_ACTIVATIONS, TimmFacts, download, facts_of_architecture, preprocessing_of
from unveil.interop.timm_model import DISTILLED, WITH_EPS_1E5, WITH_SWIGLU, TimmModel, architecture_of, timm_model
from unveil.interop.verify_export import Verification, difference_of_outputs, image_pair, largest, relative_difference
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.train.terminal import print_to_stderr


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    return contents.kind == "folder" and ("pretrained_cfg" in contents.facts or "model_args" in contents.facts)


def load(folder: str | Path, *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads a folder written by `export` or by timm's `save_for_hf`. The model is in eval mode.

    Raises:
        UnveilError: If the model cannot be expressed, or a tensor is missing or unexpected.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    name, arguments = str(config.get("architecture")), config.get("model_args", {})
    pretrained, state = config.get("pretrained_cfg", {}), read_folder(folder, "timm model")
    if not isinstance(arguments, dict) or not isinstance(pretrained, dict):
        raise UnveilError(f"{folder} has a damaged config.json: model_args and pretrained_cfg are {arguments!r} and {pretrained!r}")
    refuse_unplaced(layout_of_file(state.keys()), state, folder)
    for key, own in (("depth", depth_of(state)), ("embed_dim", width_of(state)), ("in_chans", channels_of(state))):
        if arguments.get(key, own) != own and own is not None:
            raise UnveilError(f"{folder} has {key} {arguments[key]!r} in its config.json, but {own} in its weights")
    if "global_pool" not in arguments and config.get("global_pool") in ("avg", "token"):
        arguments = arguments | {"global_pool": config["global_pool"]}
    facts = facts_of_architecture(name, arguments, str(folder))
    if facts.image_size is None:
        size = pretrained.get("input_size", [None, None, None])[1:]
        facts = replace(facts, image_size=None if None in size else (size[0], size[1]))
    facts = replace(facts, preprocessing={**facts.preprocessing, **pretrained})
    labels = Labels(names_of_classes(config, pretrained), problem_in(config))
    found = load_state(state, str(folder), facts, labels, heads=None, image_size=None)
    return told(found, str(folder), "timm", say)


def load_name(name: str, *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads public weights by their name in timm, such as "timm:vit_base_patch16_224.mae", which are downloaded once."""
    state, facts, _, classes = download(name)
    return told(load_state(state, name, facts, Labels(classes), heads=None, image_size=None), name, "timm", say)


def load_state(
    state: Mapping[str, Tensor],
    source: str,
    facts: TimmFacts,
    labels: Labels,
    *,
    heads: int | None,
    image_size: int | tuple[int, int] | None,
) -> Found:
    """The learner of tensors with timm's names.

    Args:
        state: The tensors.
        source: Where they are from, for messages.
        facts: What the tensors do not tell.
        labels: What is known of a head.
        heads: Attention heads, if the facts do not tell.
        image_size: Side, or height and width, if the facts do not tell.
    """
    layout = layout_of_file(state.keys())
    state, _ = without_dropped(layout, state)
    refuse_unplaced(layout, state, source)
    vit = config_from_tensors(
        layout,
        state,
        source,
        heads=heads or facts.heads,
        image_size=image_size or facts.image_size,
        activation=facts.activation,
        eps=facts.eps,
    )
    missing = {name for name in facts.shapes if not name.startswith(("head", "fc_norm.", "norm."))} - state.keys()
    check_names(missing, set(), len(facts.shapes), source)
    options, notes = preprocessing_of(facts.preprocessing, vit.channels, source) if facts.preprocessing else ({}, [])
    pool: Pool = facts.pool if vit.class_token else "mean"
    if vit.positions == "learned" and is_sincos(state[layout.positions], vit):
        vit = replace(vit, positions="sincos")
    vit = checked(replace(vit, **options | dict(facts.options)))
    found = load_classifier(layout, vit, state, source, pool=pool, labels=labels, keep_head=facts.keep_head)
    return found._replace(notes=(*found.notes, *([facts.note] if facts.note else []), *notes))


def told(found: Found, source: str, library: str, say: Callable[[str], None]) -> Learner:
    """The learner, after saying how many tensors matched, and what was dropped or assumed."""
    say(f"{source}: {found.matched} of {found.matched} tensors matched ({library}, {found.description})")
    for note in found.notes:
        say(f"{source}: {note}" if source not in note else note)
    return found.learner


def is_sincos(table: Tensor, vit: ViTConfig) -> bool:
    """Whether positions are those of MAE, which are not trained."""
    if vit.width % 4 or table.ndim != 3 or table.shape[1] != vit.prefix_tokens + math.prod(vit.grid):
        return False
    return torch.allclose(table[0, vit.prefix_tokens :].float(), sincos_2d(vit.grid, vit.width), atol=1e-6)


def depth_of(state: Mapping[str, Tensor]) -> int | None:
    """The number of blocks; None if there is none."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")}) or None


def width_of(state: Mapping[str, Tensor]) -> int | None:
    """The width of a token; None if there is no patch embedding."""
    weight = state.get(f"{TIMM.embed}.weight")
    return None if weight is None or weight.ndim != 4 else weight.shape[0]


def channels_of(state: Mapping[str, Tensor]) -> int | None:
    """The channels of an image; None if there is no patch embedding."""
    weight = state.get(f"{TIMM.embed}.weight")
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


def names_of_classes(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in a config.json of timm; empty if it has none."""
    names = config.get("label_names") or pretrained.get("label_names") or config.get("labels") or ()
    if isinstance(names, Mapping):  # from index to name
        names = [names.get(str(i), str(i)) for i in range(len(names))]
    return tuple(str(name) for name in names)


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT without windows. A head is exported with it if timm has a place for it."""
    return has_common_vit(learner)


def config_json(vit: ViTConfig, model: TimmModel) -> dict[str, Any]:
    """The `config.json` of timm's hub format. It does not record the eps of the norms: timm has 1e-6 and, for CLIP, 1e-5."""
    pool, gated = "token" if model.pool == "class" else "avg", vit.mlp == "swiglu"
    arguments: dict[str, Any] = {
        "img_size": list(vit.image_size),
        "patch_size": list(vit.patch_size),
        "in_chans": vit.channels,
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "mlp_ratio": 2 * vit.mlp_ratio if gated else vit.mlp_ratio,  # timm counts gate and values
        "qkv_bias": True,
        "class_token": vit.class_token,
        "global_pool": pool,
        "fc_norm": model.norm_after_pooling,
    }
    if not model.norm_after_pooling:
        arguments["final_norm"] = vit.final_norm
    special = architecture_of(vit) in (WITH_SWIGLU, WITH_EPS_1E5, DISTILLED)
    if vit.layer_scale is not None or special:
        arguments["init_values"] = vit.layer_scale
    if vit.registers or special:
        arguments |= {"reg_tokens": vit.registers, "no_embed_class": False}
    if vit.pre_norm or special:
        arguments["pre_norm"] = vit.pre_norm
    if vit.mlp in NAMES_OF_ACTIVATIONS and vit.mlp != "gelu":
        arguments["act_layer"] = NAMES_OF_ACTIVATIONS[vit.mlp]
    facts: dict[str, Any] = {
        "architecture": architecture_of(vit),
        "num_classes": len(model.classes),
        "num_features": vit.width,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "unveil",
            "custom_load": False,
            "num_classes": len(model.classes),
            "pool_size": None,
            "input_size": [vit.channels, *vit.image_size],
            "fixed_input_size": True,
            "interpolation": vit.interpolation,
            "crop_pct": vit.crop_pct,
            "crop_mode": "squash" if vit.crop_mode == "squash" else "center",
            "mean": list(vit.mean),
            "std": list(vit.std),
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if vit.distillation_token else "head",
        },
    }
    return facts | (facts_of_head(model.classes, model.problem) if model.classes else {})


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes `model.safetensors` and `config.json` into a folder, which is created if it does not exist."""
    folder, model = Path(folder), timm_model(learner)
    facts = config_json(vit_of(learner).config, model)
    write_tensors(folder / "model.safetensors", model.state)
    write_text(folder / "config.json", json.dumps(facts, indent=2) + "\n")
    return folder


def same_crop(vit: ViTConfig, size: tuple[int, int]) -> bool:
    """Whether timm crops an image of this size where we do, also if the model comes from transformers."""
    resized = transform_of(vit).resized(*size)
    return vit.crop_mode != "center_floor" or all(
        (side - crop) % 4 != 3 for side, crop in zip(resized, vit.image_size, strict=True)
    )


@torch.no_grad()
def verify(learner: Learner, folder: Path) -> Verification:
    """Compares what timm makes of image files with what the learner does: features, and class scores or tokens."""
    import timm
    from timm.data import create_transform, resolve_data_config

    config = vit_of(learner).config
    with silenced():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        prepare = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model))
    sizes = [size for size in sizes_to_try(config) if same_crop(config, size)]
    pair, note = image_pair(config, prepare if config.bit_depth == 8 else None, sizes), ""
    if config.crop_mode == "center_floor":
        note = "for some images that are not square, timm's crop begins one pixel later than that of transformers"
    if config.bit_depth == 16:
        note = "timm's transform is for 8-bit images: divide 16-bit ones by 65535 and normalise them yourself"
    if model.num_classes:
        difference, compared = difference_of_outputs(learner, model(pair.theirs), pair.ours)
        model.reset_classifier(0)  # as `create_model(..., num_classes=0)`
    else:
        compared = "tokens"
        difference = relative_difference(model.forward_features(pair.theirs), vit_of(learner)(pair.ours))
    features = relative_difference(model(pair.theirs), exported_features(learner, "timm", pair.ours))
    note = joined(left_out(learner, "timm"), note)
    return Verification(largest(features, difference), "timm", f"features and {compared} of {pair.source}", note)
