"""Encoders and classifiers as timm's `VisionTransformer`: a folder for `timm.create_model("local-dir:...", pretrained=True)`."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unveil.atomic_files import write_text
from unveil.data.augment import AugmentConfig
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
from unveil.interop.verify_export import Verification, outputs_for_images, random_images, relative_difference
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.methods.supervised import Supervised, SupervisedConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr

ARCHITECTURES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
"""timm's model name by width. Differences from that model are written into `model_args`."""


class TimmModel(NamedTuple):
    """The exported part of a learner."""

    state: Tensors
    """Tensors with timm's names."""
    classes: Sequence[str] = ()
    """Names of the classes; empty if there is no head."""
    norm_after_pooling: bool = False
    """Whether the norm follows the mean over the tokens (timm's `fc_norm`)."""


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
    return TimmModel(to_state_dict(EncoderOnly(encoder), map_of(encoder.config), encoder.config.patch_size))


@singledispatch
def timm_model(learner: Learner) -> TimmModel:
    """The exported part of a learner: its encoder, and the head of learner classes that are registered below."""
    return encoder_model(learner)


@timm_model.register
def _(learner: Finetune) -> TimmModel:
    vit: ViTConfig = learner.encoder.config
    names = map_of_finetune(vit)
    if not fits(learner, names):  # a subclass with more tensors
        return encoder_model(learner)
    return TimmModel(to_state_dict(learner, names, vit.patch_size), learner.classes, norm_after_pooling=True)


@timm_model.register
def _(learner: Supervised) -> TimmModel:
    model = encoder_model(learner)
    head = {f"head.{name}": value.detach().cpu().clone() for name, value in learner.head.state_dict().items()}
    return TimmModel(model.state | head, learner.classes)


def config_json(vit: ViTConfig, model: TimmModel) -> dict[str, Any]:
    """The `config.json` of timm's hub format. It does not record the eps of the norms: timm's default of 1e-6 is also ours."""
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
        "global_pool": "avg",
        "fc_norm": model.norm_after_pooling,
    }
    if not model.norm_after_pooling:
        arguments["final_norm"] = vit.final_norm
    if vit.layer_scale is not None:
        arguments["init_values"] = vit.layer_scale
    facts: dict[str, Any] = {
        "architecture": ARCHITECTURES.get(vit.width, "vit_base_patch16_224"),
        "num_classes": len(model.classes),
        "num_features": vit.width,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "unveil",
            "custom_load": False,
            "num_classes": len(model.classes),
            "pool_size": None,
            "input_size": [vit.channels, *vit.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
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
    """Compares the class scores, or the tokens, of timm's model with those of the learner."""
    import timm

    images = random_images(vit_of(learner).config)
    with silenced():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if model.num_classes:
        wanted, compared = outputs_for_images(learner, images)
        return Verification(relative_difference(model(images), wanted), "timm", compared)
    found, wanted = model.forward_features(images), vit_of(learner)(images)
    return Verification(relative_difference(found, wanted), "timm", "tokens of random images")


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
    scale = arguments.get("init_values") if "blocks.0.ls1.gamma" in state else None
    vit = checked(replace(vit, **normalisation, positions="learned", layer_scale=scale, final_norm="norm.weight" in state))
    for name, found in (("depth", vit.depth), ("embed_dim", vit.width), ("in_chans", vit.channels)):
        if arguments.get(name, found) != found:
            raise UnveilError(f"{folder} has {name} {arguments[name]!r} in its config.json, but {found} in its weights")
    count = len(state["head.bias"]) if "head.bias" in state else 0
    classes = [str(x) for x in config.get("label_names") or range(count)]
    has_norm_after_pooling = "fc_norm.weight" in state

    def build() -> Learner:
        if has_norm_after_pooling:
            return Finetune.build(ViT(vit), FinetuneConfig(), AugmentConfig(), classes)
        if not count:
            return encoder_only(ViT(vit), str(folder))
        supervised = Supervised.build(vit, SupervisedConfig(average=0.0), AugmentConfig())
        supervised.set_classes(classes)
        return supervised

    names = map_of_finetune(vit) if has_norm_after_pooling else map_of(vit)
    if count and not has_norm_after_pooling:
        names |= weight_and_bias("head", "head")
    learner, matched = build_and_load(build, lambda _: names, state, folder)
    say(f"{folder}: {matched} of {matched} tensors matched (timm, {'a model with its head' if count else 'an encoder'})")
    return learner
