"""Checkpoints in the layout of the public MAE release: `{"model": tensors}`, with or without the decoder.

The whole config, except for the number of heads and the target, follows from the shapes of the tensors.
"""

import math
from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unveil.blocks.attention import decoder_heads, heads_of
from unveil.blocks.masks import split
from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from unveil.data.eval_transform import usual_crop_pct
from unveil.errors import UnveilError
from unveil.interop.configs import checked
from unveil.interop.encoder_only import EncoderOnly, encoder_only, has_vit, vit_of
from unveil.interop.files import read_tensors, write_tensors, write_torch
from unveil.interop.formats import Contents
from unveil.interop.state_dict_map import (
    StateDictMap,
    TensorName,
    block_map,
    build_and_load,
    count_blocks,
    fits,
    timm_encoder_map,
    to_state_dict,
    weight_and_bias,
)
from unveil.interop.verify_export import Verification, every_other_patch, random_images, relative_difference
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr

MOST_CHANNELS = 10_000
"""Hyperspectral images have hundreds of channels."""


def matches(contents: Contents) -> bool:
    """Whether contents are in this format: any file of tensors without our JSON in its header."""
    return contents.kind != "folder" and not contents.facts


def map_of(depth: int, decoder_depth: int | None) -> StateDictMap:
    """The map of tensor names, without a decoder if its depth is None."""
    names = timm_encoder_map(depth, prefix="encoder.")
    if decoder_depth is None:
        return names
    names |= {"mask_token": TensorName(("mask_token",), "token"), "decoder_positions": TensorName(("decoder_pos_embed",), "table")}
    names |= weight_and_bias("decoder_embed", "decoder_embed") | block_map("decoder.blocks", "decoder_blocks", decoder_depth)
    return names | weight_and_bias("decoder.norm", "decoder_norm") | weight_and_bias("head", "decoder_pred")


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | Size | None = None,
    target: Literal["normalised", "pixel"] | None = None,
    say: Callable[[str], None] = print_to_stderr,
) -> Learner:
    """Loads the MAE of a checkpoint, or only its encoder if the file has no decoder, in eval mode.

    Args:
        path: A torch.save or .safetensors file. No code in it is run.
        heads: Attention heads of the encoder; by default the standard number for its width.
        decoder_heads: Attention heads of the decoder; by default the standard number for its width.
        image_size: Side, or height and width; by default that of a square grid of patches.
        target: The target of the decoder, which the file does not record; normalised pixels by default.
        say: Receives log lines, such as how many tensors matched.

    Raises:
        UnveilError: If a tensor is missing or unexpected, or its shape does not fit the other tensors.
    """
    state = read_tensors(Path(path))
    vit = vit_config_from(state, path, heads=heads, image_size=image_size)
    has_decoder = any(name.startswith("decoder_") or name == "mask_token" for name in state)
    config = mae_config_from(state, path, vit, heads=decoder_heads, target=target) if has_decoder else None

    def build() -> Learner:
        return MAE.build(vit, config, AugmentConfig()) if config else encoder_only(ViT(vit), str(path))

    names = map_of(vit.depth, config.decoder_depth if config else None)
    learner, matched = build_and_load(build, lambda _: names, state, path)
    decoder = "; no decoder"
    if config:
        assumed = ", which is assumed, since the file does not record it" if target is None else ""
        decoder = f"; a decoder of width {config.decoder_width}, depth {config.decoder_depth} and {config.decoder_heads} heads"
        decoder += f', with the target "{config.target}"{assumed}'
    encoder = f"an encoder of width {vit.width}, depth {vit.depth} and {vit.heads} heads"
    size = f"images of {vit.image_size[0]} x {vit.image_size[1]} px in patches of {vit.patch_size[0]} x {vit.patch_size[1]}"
    say(f"{path}: {matched} of {matched} tensors matched; {encoder}, {size}{decoder}")
    return learner


def vit_config_from(
    state: Mapping[str, Tensor], source: str | Path, *, heads: int | None = None, image_size: int | Size | None = None
) -> ViTConfig:
    """The config of an encoder in the layout of timm and the public MAE release; arguments as in `load`."""
    width, channels, *patch = required_tensor(state, "patch_embed.proj.weight", 4, source).shape
    patches = required_tensor(state, "pos_embed", 3, source).shape[1] - 1
    required_tensor(state, "cls_token", 3, source)
    hidden = state["blocks.0.mlp.fc1.bias"].numel() if "blocks.0.mlp.fc1.bias" in state else 4 * width
    side = math.isqrt(max(patches, 0))
    if image_size is None:
        if side * side != patches:
            raise UnveilError(
                f"{source} has positions of {patches} patches, which is not a square grid: pass image_size=(height, width)"
            )
        image_size = (side * patch[0], side * patch[1])
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    mean, std = default_mean_and_std(channels)
    config = ViTConfig(
        width=width,
        depth=count_blocks(state, "blocks."),
        heads=heads or heads_of(width),
        image_size=size,
        patch_size=(patch[0], patch[1]),
        channels=channels,
        mlp_ratio=mlp_ratio(hidden, width),
        mean=mean,
        std=std,
        crop_pct=usual_crop_pct(size),
    )
    rows, columns = checked(config).grid
    if rows * columns != patches:
        raise UnveilError(
            f"{source} has positions of {patches} patches, but images of {size[0]} x {size[1]} px have {rows * columns}: "
            f"load it at its own size, then use encoder.resized({size})"
        )
    return config


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


def required_tensor(state: Mapping[str, Tensor], name: str, dimensions: int, source: str | Path) -> Tensor:
    """A tensor of a state dict. Raises `UnveilError` if it is missing or has another number of dimensions."""
    if name not in state:
        raise UnveilError(f"{source} is not in the layout of the public MAE release: {name} is missing")
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


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT. An MAE is exported with its decoder."""
    return has_vit(learner)


@singledispatch
def state_of(learner: Learner) -> Tensors:
    """The tensors of an MAE, or of the encoder of another learner. Raises `UnveilError` if the layout cannot represent them."""
    return encoder_state(learner)


@state_of.register
def _(learner: MAE) -> Tensors:
    refuse_ablations(learner)
    vit = learner.encoder.config
    names = map_of(vit.depth, len(learner.decoder.blocks))
    if not fits(learner, names):  # a subclass with more tensors, or an encoder that this layout cannot represent
        return encoder_state(learner)
    return to_state_dict(learner, names, vit.patch_size)


def encoder_state(learner: Learner) -> Tensors:
    """The tensors of the encoder only."""
    encoder = vit_of(learner)
    refuse_without_final_norm(learner)
    return to_state_dict(EncoderOnly(encoder), map_of(encoder.config.depth, None), encoder.config.patch_size)


def refuse_ablations(learner: MAE) -> None:
    """Raises `UnveilError` for ablations that the public code does not have."""
    if learner.config.mask_tokens_in_encoder or learner.config.target in ("pca", "token"):
        raise UnveilError(
            "this format has no mask tokens in the encoder, no PCA target and no visual tokens: export as safetensors instead"
        )


def refuse_without_final_norm(learner: Learner) -> None:
    """Raises `UnveilError` for an encoder without a final norm, whose head has a norm after the pooling."""
    if not vit_of(learner).config.final_norm:
        raise UnveilError(
            f"the encoder of a {type(learner).__name__} has no final norm, which this format requires: "
            f"export it for timm, as onnx or as safetensors instead"
        )


def export(learner: Learner, out: str | Path) -> Path:
    """Writes a checkpoint: as safetensors if `out` ends in .safetensors, else with torch.save."""
    out = Path(out)
    state = state_of(learner)
    if out.suffix == ".safetensors":
        write_tensors(out, state)
    else:
        write_torch(out, {"model": state})
    return out


@singledispatch
def load_like(learner: Learner, path: Path) -> Learner:
    """Reloads the export of a learner, with the facts that the file does not record."""
    vit = vit_of(learner).config
    return load(path, heads=vit.heads, image_size=vit.image_size, say=lambda text: None)


@load_like.register
def _(learner: MAE, path: Path) -> Learner:
    vit, heads = learner.encoder.config, learner.decoder.config.heads
    target: Literal["normalised", "pixel"] = "pixel" if learner.config.target == "pixel" else "normalised"
    return load(path, heads=vit.heads, decoder_heads=heads, image_size=vit.image_size, target=target, say=lambda text: None)


@singledispatch
def verification_of(again: Learner, learner: Learner) -> Verification:
    """Compares the encoder of a learner with a reloaded encoder."""
    images = random_images(vit_of(learner).config)
    found, wanted = again.encoder(images), learner.encoder(images)
    return reloaded("tokens", relative_difference(found, wanted), learner)


@verification_of.register
def _(again: MAE, learner: MAE) -> Verification:
    images, hidden = random_images(learner.encoder.config), every_other_patch(learner.encoder.config)
    found, wanted = (each.predict_patches(images, *split(hidden)) for each in (again, learner))
    return reloaded("reconstructions", relative_difference(found, wanted), learner)


def reloaded(compared: str, difference: float, learner: Learner) -> Verification:
    """The result of a comparison on normalised images, and how images are prepared, which the file does not record."""
    vit = vit_of(learner).config
    note = f"the file does not record how images are prepared: crop_pct {vit.crop_pct:g}, mean {vit.mean}, std {vit.std}"
    return Verification(difference, "the reloaded file", f"{compared} of random images", note)


@torch.no_grad()
def verify(learner: Learner, out: Path) -> Verification:
    """Reloads the file, and compares the outputs."""
    return verification_of(load_like(learner, out), learner)
