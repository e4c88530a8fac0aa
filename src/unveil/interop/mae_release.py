"""Checkpoints laid out as the public MAE release: `{"model": tensors}`, with or without the decoder.

Everything but the number of heads and the target follows from the tensors' shapes.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.files import Tensors, read_tensors, tell, write_tensors, write_torch
from unveil.interop.state_dict_map import Layout, TensorName, affine, blocks_in, fill, lay_out, stack, timm_encoder
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT, ViTConfig, heads_of

MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight")
"""What a state must hold to be taken for one of this layout."""


def layout_of(depth: int, decoder_depth: int | None) -> Layout:
    """Where each tensor stands; without the decoder where its depth is None."""
    layout = timm_encoder(depth, ours="encoder.")
    if decoder_depth is None:
        return layout
    layout |= {"mask_token": TensorName(("mask_token",), "token"), "decoder_positions": TensorName(("decoder_pos_embed",), "table")}
    layout |= affine("decoder_embed", "decoder_embed") | stack("decoder.blocks", "decoder_blocks", decoder_depth)
    return layout | affine("decoder.norm", "decoder_norm") | affine("head", "decoder_pred")


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | Size | None = None,
    target: Literal["normalised", "pixel"] | None = None,
    say: Callable[[str], None] = tell,
) -> Learner:
    """The MAE of a checkpoint, or its encoder alone where the file has no decoder; in eval mode.

    Args:
        path: A file of torch.save or safetensors. Nothing in it is run.
        heads: Of the encoder; by its width.
        decoder_heads: Of the decoder; by its width.
        image_size: Side, or height and width; a square grid of patches is assumed otherwise.
        target: What the decoder predicts, which the file does not tell; normalised pixels by default.
        say: Tells the user how many tensors were matched.

    Raises:
        UnveilError: When a tensor is missing, left over, or of a shape that does not fit the others.
    """
    state = read_tensors(Path(path))
    learner, matched = build(state, path, heads=heads, decoder_heads=decoder_heads, image_size=image_size, target=target)
    c = learner.encoder.config
    text = f"{path}: {matched} of {matched} tensors matched; an encoder {c.width} wide, {c.depth} deep, {c.heads} heads"
    text += f", images {c.image_size[0]} x {c.image_size[1]} in patches of {c.patch_size[0]} x {c.patch_size[1]}"
    if isinstance(learner, MAE):
        config = learner.config
        text += f"; a decoder {config.decoder_width} wide, {config.decoder_depth} deep, {config.decoder_heads} heads"
        text += f' of target "{config.target}"' + (", as nothing in the file tells otherwise" if target is None else "")
    say(text if isinstance(learner, MAE) else f"{text}; no decoder")
    return learner


def build(
    state: Mapping[str, Tensor],
    source: str | Path = "the state",
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | Size | None = None,
    target: Literal["normalised", "pixel"] | None = None,
) -> tuple[MAE | EncoderOnly, int]:
    """A learner from tensors of this layout, and how many there were; arguments as in `load`."""
    vit = shape_of(state, source, heads=heads, image_size=image_size)
    if not any(name.startswith("decoder_") or name == "mask_token" for name in state):
        only = EncoderOnly(ViT(vit), str(source))
        return only.eval(), fill(only, layout_of(vit.depth, None), state, source)
    width = part(state, "decoder_embed.weight", 2, source).shape[0]
    depth = blocks_in(state, "decoder_blocks.")
    predicted = part(state, "decoder_pred.weight", 2, source).shape[0]
    values = vit.channels * vit.patch_size[0] * vit.patch_size[1]
    if predicted != values:
        raise UnveilError(f"{source}: decoder_pred says {predicted} numbers a patch, expected its {values} pixels")
    config = MAEConfig(
        target=target or "normalised", decoder_width=width, decoder_depth=depth, decoder_heads=decoder_heads or heads_of(width)
    )
    learner = MAE.build(vit, config, AugmentConfig())
    return learner.eval(), fill(learner, layout_of(vit.depth, depth), state, source)


def shape_of(
    state: Mapping[str, Tensor], source: str | Path, *, heads: int | None = None, image_size: int | Size | None = None
) -> ViTConfig:
    """The shape of an encoder that is laid out as in timm and the public MAE release."""
    width, channels, *patch = part(state, "patch_embed.proj.weight", 4, source).shape
    patches = part(state, "pos_embed", 3, source).shape[1] - 1
    part(state, "cls_token", 3, source)
    hidden = state["blocks.0.mlp.fc1.bias"].numel() if "blocks.0.mlp.fc1.bias" in state else 4 * width
    side = math.isqrt(max(patches, 0))
    if image_size is None:
        if side * side != patches:
            raise UnveilError(f"{source} has positions of {patches} patches, which are no square: say image_size=(height, width)")
        image_size = (side * patch[0], side * patch[1])
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    mean, std = moments(channels)
    config = ViTConfig(
        width=width,
        depth=blocks_in(state, "blocks."),
        heads=heads or heads_of(width),
        image_size=size,
        patch_size=(patch[0], patch[1]),
        channels=channels,
        mlp_ratio=mlp_ratio(hidden, width),
        mean=mean,
        std=std,
    )
    rows, columns = config.grid
    if rows * columns != patches:
        raise UnveilError(
            f"{source} has positions of {patches} patches, and {size[0]} x {size[1]} px hold {rows * columns}: "
            f"load it at its own size, then use encoder.resized({size})"
        )
    return config


def part(state: Mapping[str, Tensor], name: str, dimensions: int, source: str | Path) -> Tensor:
    """A tensor that the shape is read from. Raises `UnveilError` where it is missing or has other dimensions."""
    if name not in state:
        raise UnveilError(f"{source} is not laid out as the public MAE release: {name} is missing")
    if state[name].ndim != dimensions:
        raise UnveilError(f"{source}: {name} is {tuple(state[name].shape)}, expected {dimensions} dimensions")
    return state[name]


def mlp_ratio(hidden: int, width: int) -> float:
    """How much wider than the tokens an MLP is, such that int(width * ratio) is exact."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def moments(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of so many channels, where a file does not tell: what `normalise` takes by default."""
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,) * channels, (0.226,) * channels)


def state_of(learner: Learner) -> Tensors:
    """The tensors of an MAE, or of an encoder alone, in this layout. Raises `UnveilError` for what has no place."""
    if isinstance(learner, MAE):
        if learner.config.mask_tokens_in_encoder or learner.config.target in ("pca", "token"):
            raise UnveilError(
                "the MAE release has no mask tokens in the encoder, no PCA target, no visual tokens: export as safetensors instead"
            )
        depth: int | None = len(learner.decoder.blocks)
    elif isinstance(learner, EncoderOnly):
        depth = None
    else:
        kind = type(learner).__name__
        raise UnveilError(f"a {kind} is no masked autoencoder: export as safetensors or for timm instead")
    vit = learner.encoder.config
    return lay_out(learner, layout_of(vit.depth, depth), vit.patch_size)


def export(learner: Learner, out: str | Path) -> Path:
    """Writes a checkpoint of this layout: by torch.save, or as .safetensors where `out` ends so."""
    out = Path(out)
    state = state_of(learner)
    if out.suffix == ".safetensors":
        write_tensors(out, state)
    else:
        write_torch(out, {"model": state})
    return out
