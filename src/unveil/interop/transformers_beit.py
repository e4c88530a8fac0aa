"""BEiT as `BeitForMaskedImageModeling` of transformers: a folder with config.json and model.safetensors.

Loading does not need transformers. The format has no visual tokenizer, so a loaded BEiT has none, and exports do not contain it. In
transformers, keys have no bias. In our model the bias of keys has no effect: it adds the same value to all attention scores of a
query, which the softmax cancels.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.masks import as_bool
from unveil.blocks.patches import gather
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.config_from_tensors import check_channels, mlp_ratio
from unveil.interop.configs import checked
from unveil.interop.files import read_folder
from unveil.interop.formats import Contents
from unveil.interop.layout_maps import encoder_map
from unveil.interop.layouts import TRANSFORMERS_BEIT
from unveil.interop.silence import silenced
from unveil.interop.state_dict_map import StateDictMap, TensorName, build_and_load, fits, to_state_dict, weight_and_bias
from unveil.interop.transformers_images import NOTE, images_of_transformers, preprocessing, shape_json, write_folder
from unveil.interop.transformers_names import as_size, version4_names
from unveil.interop.verify_export import Verification, random_images, relative_difference
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr

TOKENIZER = "target."
"""Prefix of the visual tokenizer's tensors."""
REQUIRED_CONFIG = {"hidden_act": "gelu", "use_mask_token": True, "use_mean_pooling": True}


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    kinds = contents.facts.get("architectures") or ["BeitForMaskedImageModeling"]
    masked = isinstance(kinds, list) and "BeitForMaskedImageModeling" in kinds
    return contents.kind == "folder" and contents.facts.get("model_type") == "beit" and masked


def map_of(vit: ViTConfig) -> StateDictMap:
    """The map of tensor names. The final norm is outside of the encoder there."""
    norm = f"beit.{TRANSFORMERS_BEIT.norm}."
    names = {
        ours: entry._replace(names=tuple(name.removeprefix("beit.") if name.startswith(norm) else name for name in entry.names))
        for ours, entry in encoder_map(TRANSFORMERS_BEIT, vit, theirs="beit.").items()
    }
    names["mask_token"] = TensorName(("beit.embeddings.mask_token",), "token")
    return names | weight_and_bias("head", "lm_head")


def load(folder: str | Path, *, say: Callable[[str], None] = print_to_stderr) -> BEiT:
    """Loads the BEiT of a folder, in eval mode, without a visual tokenizer.

    Raises:
        UnveilError: If our model does not support the config, or a tensor is missing or unexpected.
    """
    folder = Path(folder)
    vit, config = configs_from(read_json(folder / "config.json"), folder, say)
    state = version4_names(read_folder(folder, "transformers' BEiT"))
    state = {name: value for name, value in state.items() if not name.endswith("relative_position_index")}
    build = partial(BEiT.build, vit, config, AugmentConfig())
    learner, matched = build_and_load(build, lambda built: map_of(built.encoder.config), state, folder)
    say(f"{folder}: {matched} of {matched} tensors matched (transformers, BeitForMaskedImageModeling, no tokenizer)")
    return learner


def configs_from(facts: Mapping[str, Any], folder: Path, say: Callable[[str], None]) -> tuple[ViTConfig, BEiTConfig]:
    """Converts the config of transformers, whose defaults are those of BEiT-B/16, to ours.

    Raises:
        UnveilError: If our model does not support the config.
    """
    defaults = {"hidden_act": "gelu", "use_mask_token": False, "use_mean_pooling": True}
    wrong = {
        name: facts.get(name, defaults[name])
        for name in REQUIRED_CONFIG
        if facts.get(name, defaults[name]) != REQUIRED_CONFIG[name]
    }
    shared, each = facts.get("use_shared_relative_position_bias", False), facts.get("use_relative_position_bias", False)
    if wrong or (shared and each):
        found = ", ".join(f"{name} {value}" for name, value in wrong.items()) or "both shared and per-block relative biases"
        raise UnveilError(f"{folder} has {found}: expected a BeitForMaskedImageModeling with gelu, a mask token and one final norm")
    width, channels = facts.get("hidden_size", 768), facts.get("num_channels", 3)
    check_channels(channels)
    half = (0.5,) * channels
    vit = ViTConfig(
        width=width,
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        image_size=as_size(facts.get("image_size", 224)),
        patch_size=as_size(facts.get("patch_size", 16)),
        channels=channels,
        mlp_ratio=mlp_ratio(facts.get("intermediate_size", 3072), width),
        eps=facts.get("layer_norm_eps", 1e-12),
        mean=half,
        std=half,
    )
    config = BEiTConfig(
        visual_tokenizer="absent",
        codebook_size=facts.get("vocab_size", 8192),
        relative_bias="shared" if shared else "block" if each else "none",
        positions="learned" if facts.get("use_absolute_position_embeddings", False) else "none",
        layer_scale=facts.get("layer_scale_init_value", 0.1) or None,
        drop_path=facts.get("drop_path_rate", 0.1),
    )
    vit = checked(vit)
    return checked(replace(vit, **preprocessing(folder, vit.image_size, say))), checked(config)


@singledispatch
def writes(learner: Learner) -> bool:
    """Whether a learner is a BEiT. Encoders of other learners are exported in another format of transformers."""
    return False


@writes.register
def _(learner: BEiT) -> bool:
    vit = learner.encoder.config
    return vit.mlp == "gelu" and fits(learner, map_of(vit), skip=TOKENIZER)  # not a subclass with more tensors


def state_of(learner: BEiT) -> Tensors:
    """The tensors with the names of transformers, without the visual tokenizer."""
    vit = learner.encoder.config
    if vit.image_size[0] != vit.image_size[1] or vit.patch_size[0] != vit.patch_size[1]:
        raise UnveilError(
            f"transformers' BEiT takes only square images and patches, but this model takes {vit.image_size} px in patches of "
            f"{vit.patch_size}: export as safetensors instead"
        )
    return to_state_dict(learner, map_of(vit), vit.patch_size, skip=TOKENIZER)


def config_json(learner: BEiT) -> dict[str, Any]:
    vit = learner.encoder.config
    return {
        "architectures": ["BeitForMaskedImageModeling"],
        "model_type": "beit",
        **shape_json(vit),
        "vocab_size": learner.target.size,
        "intermediate_size": int(vit.width * vit.mlp_ratio),
        "use_absolute_position_embeddings": vit.positions != "none",
        "drop_path_rate": vit.drop_path,
        "use_relative_position_bias": vit.relative_bias == "block",
        "use_shared_relative_position_bias": vit.relative_bias == "shared",
        "layer_scale_init_value": vit.layer_scale or 0.0,
        **REQUIRED_CONFIG,
    }


def export(learner: BEiT, folder: str | Path) -> Path:
    """Writes a folder: see `write_folder`."""
    return write_folder(folder, state_of(learner), config_json(learner), learner.encoder.config)


@torch.no_grad()
def verify(learner: BEiT, folder: Path) -> Verification:
    """Compares the logits of the visual tokens with those of transformers, or of our reloaded model without transformers."""
    vit = learner.encoder.config
    if importlib.util.find_spec("transformers") is None:
        images = random_images(vit)
        _, hide = learner.mask(torch.arange(len(images)))
        again = load(folder, say=lambda text: None)
        difference = relative_difference(*(each.predict_visual_tokens(images, hide) for each in (again, learner)))
        return Verification(difference, "the reloaded file", "token logits of random images")
    pair = images_of_transformers(folder, vit)
    _, hide = learner.mask(torch.arange(len(pair.ours)))
    wanted = learner.predict_visual_tokens(pair.ours, hide)
    found = gather(logits_of_transformers(folder, pair.theirs, as_bool(hide, vit.grid[0] * vit.grid[1])), hide)
    return Verification(relative_difference(found, wanted), "transformers", f"token logits of {pair.source}", NOTE)


def logits_of_transformers(folder: Path, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B N K"]:
    """The logits of the visual token of each patch, computed by transformers."""
    from transformers import BeitForMaskedImageModeling

    with silenced():
        model: Any = BeitForMaskedImageModeling.from_pretrained(folder)
    logits: Tensor = model.eval()(images, bool_masked_pos=hidden).logits
    return logits
