"""MAE as `ViTMAEForPreTraining` or `ViTMAEModel` of transformers: a folder with config.json and model.safetensors.

Loading does not need transformers. For the names of tensors see `transformers_names`.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.masks import split
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import mae_release
from unveil.interop.config_from_tensors import default_mean_and_std, mlp_ratio
from unveil.interop.configs import checked
from unveil.interop.encoder_only import EncoderOnly, encoder_only, has_common_vit, vit_of
from unveil.interop.files import read_folder
from unveil.interop.formats import Contents
from unveil.interop.heads import joined, left_out
from unveil.interop.layout_maps import decoder_map, encoder_map
from unveil.interop.layouts import TRANSFORMERS_MAE
from unveil.interop.silence import silenced
from unveil.interop.state_dict_map import StateDictMap, TensorName, build_and_load, fits, to_state_dict, weight_and_bias
from unveil.interop.transformers_images import NOTE, images_of_transformers, preprocessing, shape_json, write_folder
from unveil.interop.transformers_names import as_size, version4_names
from unveil.interop.verify_export import ImagePair, Verification, compare_reloaded, largest, relative_difference
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr


class TransformersModel(NamedTuple):
    """The exported part of a learner."""

    architecture: str
    state: Tensors
    config: dict[str, Any]
    """The entries of `config.json` about the decoder."""


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    return contents.kind == "folder" and contents.facts.get("model_type") == "vit_mae"


def map_of(vit: ViTConfig, decoder_depth: int | None, prefix: str) -> StateDictMap:
    """The map of tensor names, without a decoder if its depth is None. `prefix` is the prefix of their names in the encoder."""
    names = encoder_map(TRANSFORMERS_MAE, vit, theirs=prefix)
    if decoder_depth is None:
        return names
    names["mask_token"] = TensorName(("decoder.mask_token",), "token")
    names["decoder_positions"] = TensorName(("decoder.decoder_pos_embed",), "table")
    names |= weight_and_bias("decoder_embed", "decoder.decoder_embed")
    names |= decoder_map(TRANSFORMERS_MAE, "decoder.decoder_layers", decoder_depth)
    return names | weight_and_bias("decoder.norm", "decoder.decoder_norm") | weight_and_bias("head", "decoder.decoder_pred")


def load(folder: str | Path, *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads the MAE of a folder, or only the encoder of a `ViTMAEModel`, in eval mode.

    Raises:
        UnveilError: If our model does not support the config, or a tensor is missing or unexpected.
    """
    folder = Path(folder)
    facts = read_json(folder / "config.json")
    state = version4_names(read_folder(folder, "transformers' ViTMAE"))
    vit, config = configs_from(facts, folder, say)
    prefix = "vit." if any(name.startswith("vit.") for name in state) else ""
    has_decoder = any(name.startswith("decoder.") for name in state)

    def build() -> Learner:
        if has_decoder:
            return MAE.build(vit, config, AugmentConfig())
        return encoder_only(ViT(vit), str(folder), "class" if facts.get("pool") == "class" else "mean")

    def names(learner: Learner) -> StateDictMap:
        return map_of(vit, config.decoder_depth if has_decoder else None, prefix)

    learner, matched = build_and_load(build, names, state, folder)
    kind = "ViTMAEForPreTraining" if has_decoder else "ViTMAEModel, no decoder"
    say(f"{folder}: {matched} of {matched} tensors matched (transformers, {kind})")
    return learner


def configs_from(facts: Mapping[str, Any], folder: Path, say: Callable[[str], None]) -> tuple[ViTConfig, MAEConfig]:
    """Converts the config of transformers, whose defaults are those of its ViT-B/16, to ours.

    Raises:
        UnveilError: If our model does not support the config.
    """
    act, biases = facts.get("hidden_act", "gelu"), facts.get("qkv_bias", True)
    width, decoder_width = facts.get("hidden_size", 768), facts.get("decoder_hidden_size", 512)
    decoder_mlp = facts.get("decoder_intermediate_size", 2048)
    if act != "gelu" or decoder_mlp != 4 * decoder_width or not biases:
        raise UnveilError(
            f"{folder} has {act}, a decoder MLP of {decoder_mlp} values at a decoder width of {decoder_width}, and "
            f"{'biases' if biases else 'no biases'} in its attention: expected gelu, {4 * decoder_width}, and biases"
        )
    channels = facts.get("num_channels", 3)
    mean, std = default_mean_and_std(channels)
    vit = ViTConfig(
        width=width,
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        image_size=as_size(facts.get("image_size", 224)),
        patch_size=as_size(facts.get("patch_size", 16)),
        channels=channels,
        mlp_ratio=mlp_ratio(facts.get("intermediate_size", 3072), width),
        eps=facts.get("layer_norm_eps", 1e-12),
        mean=mean,
        std=std,
    )
    config = MAEConfig(
        mask_ratio=facts.get("mask_ratio", 0.75),
        target="normalised" if facts.get("norm_pix_loss", False) else "pixel",
        decoder_width=decoder_width,
        decoder_depth=facts.get("decoder_num_hidden_layers", 8),
        decoder_heads=facts.get("decoder_num_attention_heads", 16),
    )
    vit = checked(vit)
    return checked(replace(vit, **preprocessing(folder, vit.image_size, say))), checked(config)


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT without windows. An MAE is exported with its decoder."""
    return has_common_vit(learner)


def encoder_model(learner: Learner) -> TransformersModel:
    """Only the encoder of a learner."""
    refuse_rectangles(learner)
    mae_release.refuse_without_final_norm(learner)
    encoder = vit_of(learner)
    mae_release.refuse_other_activations(encoder.config)
    state = to_state_dict(EncoderOnly(encoder), map_of(encoder.config, None, ""), encoder.config.patch_size)
    return TransformersModel("ViTMAEModel", state, {"mask_ratio": 0.0, "pool": learner.pool})


@singledispatch
def transformers_model(learner: Learner) -> TransformersModel:
    """The exported part of a learner: its encoder, and the decoder of an MAE."""
    return encoder_model(learner)


@transformers_model.register
def _(learner: MAE) -> TransformersModel:
    refuse_rectangles(learner)
    mae_release.refuse_ablations(learner)
    vit, decoder = learner.encoder.config, learner.decoder.config
    mae_release.refuse_other_activations(vit)
    names = map_of(vit, decoder.depth, "vit.")
    if not fits(learner, names):  # a subclass with more tensors, or an encoder that this format cannot represent
        return encoder_model(learner)
    config = {
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": int(decoder.width * decoder.mlp_ratio),
        "mask_ratio": learner.config.mask_ratio,
        "norm_pix_loss": learner.config.target == "normalised",
    }
    return TransformersModel("ViTMAEForPreTraining", to_state_dict(learner, names, vit.patch_size), config)


def refuse_rectangles(learner: Learner) -> None:
    """Raises `UnveilError` for images or patches that are not square."""
    vit = vit_of(learner).config
    if vit.image_size[0] != vit.image_size[1] or vit.patch_size[0] != vit.patch_size[1]:
        raise UnveilError(
            f"transformers' ViTMAE takes only square images and patches, but this model takes {vit.image_size} px in "
            f"patches of {vit.patch_size}: export for timm or as safetensors instead"
        )


def config_json(vit: ViTConfig, model: TransformersModel) -> dict[str, Any]:
    return {
        "architectures": [model.architecture],
        "model_type": "vit_mae",
        **shape_json(vit),
        "intermediate_size": int(vit.width * vit.mlp_ratio),
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "qkv_bias": True,
        **model.config,
    }


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes a folder: see `write_folder`."""
    model, vit = transformers_model(learner), vit_of(learner).config
    return write_folder(folder, model.state, config_json(vit, model), vit)


@torch.no_grad()
def verify(learner: Learner, folder: Path) -> Verification:
    """Compares the outputs of the learner with those of transformers, or of our reloaded model without transformers."""
    again = load(folder, say=lambda text: None)
    if importlib.util.find_spec("transformers") is None:
        return compare_reloaded(learner, again, "transformers")
    return verification_of(again, learner, images_of_transformers(folder, vit_of(learner).config), folder)


@singledispatch
def verification_of(again: Learner, learner: Learner, pair: ImagePair, folder: Path) -> Verification:
    """Compares the tokens of an encoder. Dispatches on the reloaded model, which has a decoder only if one was exported."""
    difference = relative_difference(tokens_of_transformers(folder, pair.theirs), vit_of(learner)(pair.ours))
    return Verification(difference, "transformers", f"tokens of {pair.source}", joined(left_out(learner, "transformers"), NOTE))


@verification_of.register
def _(again: MAE, learner: MAE, pair: ImagePair, folder: Path) -> Verification:
    vit = learner.encoder.config
    noise = torch.rand(len(pair.ours), vit.grid[0] * vit.grid[1], generator=torch.Generator().manual_seed(0))
    found, hidden = predictions_of_transformers(folder, pair.theirs, noise)
    wanted = learner.predict_patches(pair.ours, *split(hidden))
    tokens = relative_difference(tokens_of_transformers(folder, pair.theirs), learner.encoder(pair.ours))
    difference = largest(tokens, relative_difference(found, wanted))
    return Verification(difference, "transformers", f"tokens and reconstructions of {pair.source}", NOTE)


def predictions_of_transformers(
    folder: Path, images: Float[Tensor, "B C H W"], noise: Float[Tensor, "B N"]
) -> tuple[Float[Tensor, "B N Q"], Bool[Tensor, "B N"]]:
    """The predictions of transformers for all patches, and the patches that it masked, which are those with the largest noise."""
    from transformers import ViTMAEForPreTraining

    with silenced():
        model: Any = ViTMAEForPreTraining.from_pretrained(folder)
    output = model.eval()(images, noise=noise)
    return output.logits, output.mask.bool()


def tokens_of_transformers(folder: Path, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
    """The tokens of transformers, with all patches visible and in order."""
    from transformers import ViTMAEModel

    with silenced():
        model: Any = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0)
    order = torch.arange(float(model.embeddings.patch_embeddings.num_patches))
    tokens: Tensor = model.eval()(images, noise=order.expand(len(images), -1)).last_hidden_state
    return tokens
