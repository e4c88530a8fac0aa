"""Files of tensors: the public MAE release, `{"model": tensors}`, with or without its decoder or a head, and models of timm.

The config follows from the shapes of the tensors, as far as they tell it. What they do not tell is assumed, and said.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.blocks.attention import decoder_heads
from unveil.blocks.patches import Size
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.config_from_tensors import config_from_tensors, required_tensor
from unveil.interop.configs import checked
from unveil.interop.encoder_only import EncoderOnly, has_common_vit, vit_of
from unveil.interop.files import read_tensors, write_tensors, write_torch
from unveil.interop.formats import Contents
from unveil.interop.heads import head_for, joined, left_out
from unveil.interop.layout_maps import decoder_map, encoder_map, layout_of_file, refuse_unplaced
from unveil.interop.layouts import RELEASE
from unveil.interop.mae_facts import labels_in, place_of, preprocessing_in, read_facts, state_with_head, write_facts
from unveil.interop.state_dict_map import (
    StateDictMap,
    TensorName,
    build_and_load,
    count_blocks,
    fits,
    to_state_dict,
    weight_and_bias,
)
from unveil.interop.timm_facts import TimmFacts, facts_of_architecture
from unveil.interop.timm_vit import load_state
from unveil.interop.verify_export import Verification, compare_reloaded
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr


def matches(contents: Contents) -> bool:
    """Whether contents are in this format: any file of tensors without our JSON in its header."""
    return contents.kind != "folder" and not contents.facts


def map_of(vit: ViTConfig, decoder_depth: int | None) -> StateDictMap:
    """The map of tensor names, without a decoder if its depth is None."""
    names = encoder_map(RELEASE, vit)
    if decoder_depth is None:
        return names
    names |= {"mask_token": TensorName(("mask_token",), "token"), "decoder_positions": TensorName(("decoder_pos_embed",), "table")}
    names |= weight_and_bias("decoder_embed", "decoder_embed") | decoder_map(RELEASE, "decoder_blocks", decoder_depth)
    return names | weight_and_bias("decoder.norm", "decoder_norm") | weight_and_bias("head", "decoder_pred")


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | Size | None = None,
    target: Literal["normalised", "pixel"] | None = None,
    architecture: str | None = None,
    say: Callable[[str], None] = print_to_stderr,
) -> Learner:
    """Loads a file of tensors in eval mode: an MAE with its decoder, or any encoder or classifier with the names of timm.

    Args:
        path: A torch.save or .safetensors file. No code in it is run.
        heads: Attention heads of the encoder; by default the standard number for its width.
        decoder_heads: Attention heads of the decoder; by default the standard number for its width.
        image_size: Side, or height and width; by default that of a square grid of patches.
        target: The target of the decoder, which the file does not record; normalised pixels by default.
        architecture: The name of the model in timm, such as "vit_base_patch16_clip_224.openai", from which everything follows that
            the file does not record.
        say: Receives log lines, such as how many tensors matched.

    Raises:
        UnveilError: If a tensor is missing or unexpected, or its shape does not fit the other tensors.
    """
    tensors = read_tensors(Path(path))
    state, facts = without_prefix(tensors), read_facts(Path(path), tensors)
    heads, image_size = heads or facts.get("heads"), image_size or facts.get("image_size")
    if not any(name.startswith("decoder_") for name in state):
        return load_encoder(state, str(path), heads, image_size, architecture, facts, say)
    if architecture is not None:
        raise UnveilError(f"{path} is an MAE with its decoder, which has no architecture of timm: do not pass it")
    vit = config_from_tensors(RELEASE, state, path, heads=heads, image_size=image_size)
    vit, target = checked(replace(vit, **preprocessing_in(facts))), target or facts.get("target")
    config = mae_config_from(state, path, vit, heads=decoder_heads or facts.get("decoder_heads"), target=target)
    names = map_of(vit, config.decoder_depth)
    learner, matched = build_and_load(lambda: MAE.build(vit, config, AugmentConfig()), lambda _: names, state, path)
    assumed = ", which is assumed, since the file does not record it" if target is None else ""
    decoder = f"; a decoder of width {config.decoder_width}, depth {config.decoder_depth} and {config.decoder_heads} heads"
    decoder += f', with the target "{config.target}"{assumed}'
    say(f"{path}: {matched} of {matched} tensors matched; {description_of(vit)}{decoder}")
    return learner


def load_encoder(
    state: Mapping[str, Tensor],
    source: str,
    heads: int | None,
    image_size: int | Size | None,
    architecture: str | None,
    recorded: Mapping[str, Any],
    say: Callable[[str], None],
) -> Learner:
    """An encoder or a classifier from a file without a decoder. Says what is assumed, as the file does not record it."""
    has_head = any(name.startswith("head.") for name in state)
    class_pool = has_head and "fc_norm.weight" not in state and "cls_token" in state
    class_pool = recorded["pool"] == "class" if "pool" in recorded else class_pool
    facts = TimmFacts(heads=heads, pool="class" if class_pool else "mean", options=preprocessing_in(recorded))
    if architecture is not None:
        refuse_unplaced(layout_of_file(state), state, source)
        facts = facts_of_architecture(architecture.partition(".")[0], {}, source, tag=architecture, plain=False)
        facts = replace(facts, image_size=None)  # fine-tuned models often have images of another size
    elif "norm_pre.weight" in state:  # CLIP
        facts = replace(facts, eps=1e-5)
    found = load_state(state, source, facts, labels_in(recorded), heads=heads, image_size=image_size)
    vit: ViTConfig = found.learner.encoder.config
    kind = "; no decoder" if found.learner.encoder is found.learner or not has_head else f"; {found.description}"
    say(f"{source}: {found.matched} of {found.matched} tensors matched; {description_of(vit)}{kind}")
    for note in found.notes:
        say(f"{source}: {note}")
    if architecture is None and not recorded:
        pooled = f", the {'class token' if class_pool else 'mean of the patch tokens'} as features" if has_head else ""
        activation = "SwiGLU" if vit.mlp == "swiglu" else vit.mlp
        images = f"mean {vit.mean} and crop_pct {vit.crop_pct:g} of images"
        say(
            f"{source} does not record everything: {activation}, an epsilon of {vit.eps:g}{pooled}, {images}: these are assumed. "
            f"If they are others, load it in Python with architecture=, a name in timm, and export it"
        )
    return found.learner


def description_of(vit: ViTConfig) -> str:
    """The shape of an encoder, and of its images."""
    size = f"images of {vit.image_size[0]} x {vit.image_size[1]} px in patches of {vit.patch_size[0]} x {vit.patch_size[1]}"
    return f"an encoder of width {vit.width}, depth {vit.depth} and {vit.heads} heads, {size}"


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix that DistributedDataParallel gives to all of them."""
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in state.items()}


def mae_config_from(
    state: Mapping[str, Tensor],
    source: str | Path,
    vit: ViTConfig,
    *,
    heads: int | None = None,
    target: Literal["normalised", "pixel"] | None = None,
) -> MAEConfig:
    """The options of an MAE with the decoder of a checkpoint; arguments as in `load`."""
    width = required_tensor(state, "decoder_embed.weight", 2, source).shape[0]
    predicted = required_tensor(state, "decoder_pred.weight", 2, source).shape[0]
    values = vit.channels * vit.patch_size[0] * vit.patch_size[1]
    if predicted != values:
        raise UnveilError(f"{source}: decoder_pred predicts {predicted} values per patch, expected its {values} pixel values")
    config = MAEConfig(
        target=target or "normalised",
        decoder_width=width,
        decoder_depth=count_blocks(state, "decoder_blocks."),
        decoder_heads=heads or decoder_heads(width),
    )
    return checked(config)


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT without windows. An MAE is exported with its decoder."""
    return has_common_vit(learner)


@singledispatch
def state_of(learner: Learner) -> Tensors:
    """The tensors of an MAE, or of the encoder of another learner. Raises `UnveilError` if the layout cannot represent them."""
    return encoder_state(learner)


@state_of.register
def _(learner: MAE) -> Tensors:
    refuse_ablations(learner)
    vit = learner.encoder.config
    refuse_other_activations(vit)
    names = map_of(vit, len(learner.decoder.blocks))
    if not fits(learner, names):  # a subclass with more tensors, or an encoder that this layout cannot represent
        return encoder_state(learner)
    return to_state_dict(learner, names, vit.patch_size)


def encoder_state(learner: Learner) -> Tensors:
    """The tensors of the encoder, and of its head if the layout has a place for it."""
    encoder, head = vit_of(learner), head_for(learner, "mae")
    refuse_other_activations(encoder.config)
    if head is not None:
        return state_with_head(learner, head)
    refuse_without_final_norm(learner)
    return to_state_dict(EncoderOnly(encoder), map_of(encoder.config, None), encoder.config.patch_size)


def refuse_ablations(learner: MAE) -> None:
    """Raises `UnveilError` for ablations that the public code does not have."""
    if learner.config.mask_tokens_in_encoder or learner.config.target in ("pca", "token"):
        raise UnveilError(
            "this format has no mask tokens in the encoder, no PCA target and no visual tokens: export as safetensors instead"
        )


def refuse_other_activations(vit: ViTConfig) -> None:
    """Raises `UnveilError` for what no tensor shows: another activation than GELU, or that there is no class token."""
    if not vit.class_token:
        raise UnveilError("this format cannot represent an encoder without a class token: export for timm, or as onnx instead")
    if vit.mlp != "gelu":
        raise UnveilError(f"this format cannot represent an MLP with {vit.mlp}: export for timm, or as safetensors or onnx instead")


def refuse_without_final_norm(learner: Learner) -> None:
    """Raises `UnveilError` for an encoder without a final norm, whose head has a norm after the pooling."""
    if not vit_of(learner).config.final_norm or vit_of(learner).config.norm_after_pooling:
        raise UnveilError(
            f"the encoder of a {type(learner).__name__} has no final norm, which this format requires: "
            f"export it for timm, as onnx or as safetensors instead"
        )


def export(learner: Learner, out: str | Path) -> Path:
    """Writes a checkpoint, as safetensors if `out` ends in .safetensors, else with torch.save; and a JSON beside it."""
    out = Path(out)
    state = state_of(learner)
    if out.suffix == ".safetensors":
        write_tensors(out, state)
    else:
        write_torch(out, {"model": state})
    write_facts(learner, out, state)
    return out


@torch.no_grad()
def verify(learner: Learner, out: Path) -> Verification:
    """Reloads the file with the JSON beside it, and compares features and outputs for image files."""
    found = compare_reloaded(learner, load(out, say=lambda text: None), "mae")
    has = "what its head predicts and how images are prepared are" if head_for(learner, "mae") else "how images are prepared is"
    note = f"{has} in {place_of(out).name}"
    return found._replace(note=joined(left_out(learner, "mae"), note))
