"""Encoders and classifiers as timm's `VisionTransformer`: a folder for `timm.create_model("local-dir:...", pretrained=True)`."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from unveil.atomic_files import write_text
from unveil.data.augment import AugmentConfig
from unveil.data.eval_transform import CROP_PCT
from unveil.errors import UnveilError
from unveil.interop.configs import checked
from unveil.interop.encoder_only import EncoderOnly, encoder_only, has_vit, vit_of
from unveil.interop.files import read_tensors, write_tensors
from unveil.interop.formats import Contents
from unveil.interop.mae_release import vit_config_from
from unveil.interop.silence import silenced
from unveil.interop.state_dict_map import (
    StateDictMap,
    TensorName,
    build_and_load,
    fits,
    timm_encoder_map,
    to_state_dict,
    weight_and_bias,
)
from unveil.interop.verify_export import Verification, image_pair, largest, outputs_for_images, relative_difference
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.methods.supervised import Supervised, SupervisedConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr

ARCHITECTURES: dict[int, tuple[str, tuple[int, ...]]] = {
    192: ("vit_tiny", (16,)),
    384: ("vit_small", (8, 16, 32)),
    768: ("vit_base", (8, 16, 32)),
    1024: ("vit_large", (14, 16, 32)),
    1280: ("vit_huge", (14,)),
}
"""The names of timm's models by width, and the patch sizes that they exist for."""


class TimmModel(NamedTuple):
    """The exported part of a learner."""

    state: Tensors
    """Tensors with timm's names."""
    classes: Sequence[str] = ()
    """Names of the classes; empty if there is no head."""
    norm_after_pooling: bool = False
    """Whether the norm follows the pooling of the tokens (timm's `fc_norm`)."""
    pool: str = "mean"
    """The features: the mean of the patch tokens, or the class token."""


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    return contents.kind == "folder" and ("pretrained_cfg" in contents.facts or "model_args" in contents.facts)


def map_of(vit: ViTConfig, *, prefix: str = "encoder.") -> StateDictMap:
    """The map of an encoder; `prefix` is the prefix of our names."""
    names = timm_encoder_map(vit.depth, prefix=prefix, norm=vit.final_norm)
    if vit.layer_scale is not None:
        for i in range(vit.depth):
            for branch in (1, 2):
                names[f"{prefix}transformer.blocks.{i}.branch{branch}.scale"] = TensorName((f"blocks.{i}.ls{branch}.gamma",))
    return names


def map_of_finetune(vit: ViTConfig) -> StateDictMap:
    """The map of a fine-tuned model, whose norm comes after the mean of the tokens."""
    return map_of(vit) | weight_and_bias("norm", "fc_norm") | weight_and_bias("head", "head")


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT. A fine-tuned model is exported with its head."""
    return has_vit(learner)


def encoder_model(learner: Learner) -> TimmModel:
    """Only the encoder of a learner."""
    encoder = vit_of(learner)
    state = to_state_dict(EncoderOnly(encoder), map_of(encoder.config), encoder.config.patch_size)
    return TimmModel(state, pool=learner.pool)


@singledispatch
def timm_model(learner: Learner) -> TimmModel:
    """The exported part of a learner: its encoder, and the head of learner classes that are registered below."""
    return encoder_model(learner)


@timm_model.register(Finetune)
@timm_model.register(PartialFinetune)
def _(learner: Finetune | PartialFinetune) -> TimmModel:
    vit: ViTConfig = learner.encoder.config
    names = map_of_finetune(vit)
    if not fits(learner, names):  # a subclass with more tensors
        return encoder_model(learner)
    return TimmModel(to_state_dict(learner, names, vit.patch_size), learner.classes, True, learner.pool)


@timm_model.register
def _(learner: Supervised) -> TimmModel:
    model = encoder_model(learner)
    head = {f"head.{name}": value.detach().cpu().clone() for name, value in learner.head.state_dict().items()}
    return model._replace(state=model.state | head, classes=learner.classes)


def architecture_of(vit: ViTConfig) -> str:
    """The name of timm's model that is most like an encoder. Differences from that model are written into `model_args`."""
    width = min(ARCHITECTURES, key=lambda each: abs(math.log(each / vit.width)))
    name, patches = ARCHITECTURES[width]
    return f"{name}_patch{min(patches, key=lambda each: abs(each - vit.patch_size[0]))}_224"


def config_json(vit: ViTConfig, model: TimmModel) -> dict[str, Any]:
    """The `config.json` of timm's hub format. It does not record the eps of the norms: timm's default of 1e-6 is also ours."""
    pool = "token" if model.pool == "class" else "avg"
    arguments: dict[str, Any] = {
        "img_size": list(vit.image_size),
        "patch_size": list(vit.patch_size),
        "in_chans": vit.channels,
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "mlp_ratio": vit.mlp_ratio,
        "qkv_bias": True,
        "class_token": True,
        "global_pool": pool,
        "fc_norm": model.norm_after_pooling,
    }
    if not model.norm_after_pooling:
        arguments["final_norm"] = vit.final_norm
    if vit.layer_scale is not None:
        arguments["init_values"] = vit.layer_scale
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
            "interpolation": "bicubic",
            "crop_pct": vit.crop_pct,
            "crop_mode": "center",
            "mean": list(vit.mean),
            "std": list(vit.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    return facts | ({"label_names": list(model.classes)} if model.classes else {})


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes `model.safetensors` and `config.json` into a folder, which is created if it does not exist."""
    folder, model = Path(folder), timm_model(learner)
    write_tensors(folder / "model.safetensors", model.state)
    write_text(folder / "config.json", json.dumps(config_json(vit_of(learner).config, model), indent=2) + "\n")
    return folder


@torch.no_grad()
def verify(learner: Learner, folder: Path) -> Verification:
    """Compares what timm makes of image files with what the learner does: features, and class scores or tokens."""
    import timm
    from timm.data import create_transform, resolve_data_config

    config = vit_of(learner).config
    with silenced():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        prepare = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model))
    pair, note = image_pair(config, prepare if config.bit_depth == 8 else None), ""
    if config.bit_depth == 16:
        note = "timm's transform is for 8-bit images: divide 16-bit ones by 65535 and normalise them yourself"
    if model.num_classes:
        wanted, compared = outputs_for_images(learner, pair.ours)
        found = model(pair.theirs)
        model.reset_classifier(0)  # as `create_model(..., num_classes=0)`
    else:
        wanted, compared, found = vit_of(learner)(pair.ours), "tokens", model.forward_features(pair.theirs)
    features = relative_difference(model(pair.theirs), learner.features(pair.ours))
    difference = largest(features, relative_difference(found, wanted))
    return Verification(difference, "timm", f"features and {compared} of {pair.source}", note)


def load(folder: str | Path, *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads a folder written by `export` or by timm's `save_for_hf`. The model is in eval mode.

    Raises:
        UnveilError: If it is not a plain Vision Transformer, or a tensor is missing or unexpected.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    name = str(config.get("architecture"))
    if not re.fullmatch(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+", name):
        raise UnveilError(f"{folder} holds timm's {name!r}, expected a plain Vision Transformer such as 'vit_base_patch16_224'")
    state = read_tensors(folder / "model.safetensors")
    arguments, pretrained = config.get("model_args", {}), config.get("pretrained_cfg", {})
    size = arguments.get("img_size") or pretrained.get("input_size", [None, None, None])[1:]
    size = size if isinstance(size, int) else tuple(size)
    vit = vit_config_from(state, folder, heads=arguments.get("num_heads"), image_size=size)
    normalisation: dict[str, Any] = {
        key: tuple(pretrained[key]) for key in ("mean", "std") if len(pretrained.get(key, ())) == vit.channels
    }
    normalisation["crop_pct"] = pretrained.get("crop_pct") or CROP_PCT  # timm's default too
    pool: Literal["mean", "class"] = "class" if arguments.get("global_pool", config.get("global_pool")) == "token" else "mean"
    scale = arguments.get("init_values") if "blocks.0.ls1.gamma" in state else None
    vit = checked(replace(vit, **normalisation, positions="learned", layer_scale=scale, final_norm="norm.weight" in state))
    for name, found in (("depth", vit.depth), ("embed_dim", vit.width), ("in_chans", vit.channels)):
        if arguments.get(name, found) != found:
            raise UnveilError(f"{folder} has {name} {arguments[name]!r} in its config.json, but {found} in its weights")
    count = len(state["head.bias"]) if "head.bias" in state else 0
    classes = [str(x) for x in config.get("label_names") or range(count)]
    has_norm_after_pooling = "fc_norm.weight" in state

    def build() -> Learner:
        if has_norm_after_pooling and pool == "class":
            return PartialFinetune.build(ViT(vit), PartialConfig(blocks=vit.depth, pool=pool), AugmentConfig(), classes)
        if has_norm_after_pooling:
            return Finetune.build(ViT(vit), FinetuneConfig(), AugmentConfig(), classes)
        if not count:
            return encoder_only(ViT(vit), str(folder), pool)
        supervised = Supervised.build(vit, SupervisedConfig(average=0.0), AugmentConfig())
        supervised.set_classes(classes)
        return supervised

    names = map_of_finetune(vit) if has_norm_after_pooling else map_of(vit)
    if count and not has_norm_after_pooling:
        names |= weight_and_bias("head", "head")
    learner, matched = build_and_load(build, lambda _: names, state, folder)
    usual = {"crop_mode": "center", "interpolation": "bicubic"}
    unusual = [f"{key} {pretrained[key]}" for key, value in usual.items() if pretrained.get(key, value) != value]
    if unusual:
        say(f"{folder} was made for {' and '.join(unusual)}; unveil resizes by a bicubic filter and crops the centre")
    say(f"{folder}: {matched} of {matched} tensors matched (timm, {'a model with its head' if count else 'an encoder'})")
    return learner
