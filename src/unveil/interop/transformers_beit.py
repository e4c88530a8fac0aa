"""BEiT as `BeitForMaskedImageModeling` of transformers: a folder with config.json and model.safetensors.

Reading needs no transformers. The tokenizer has no place there: what is read comes without one, and what is written leaves it.
A key has no bias there. In ours it changes nothing: it adds the same to all scores of a query, which the softmax takes out again.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.files import Tensors, read_object, read_tensors, tell, write_tensors
from unveil.interop.mae_release import mlp_ratio
from unveil.interop.state_dict_map import Layout, TensorName, affine, fill, lay_out, stack
from unveil.interop.transformers_vit_mae import PARTS, pair, preprocessing, renamed
from unveil.learner import Learner
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.models.vit import ViTConfig
from unveil.train.checkpoint import write_whole

SHARED = "beit.encoder.relative_position_bias.relative_position_bias_table"
EXPECTED = {"hidden_act": "gelu", "use_mask_token": True, "use_mean_pooling": True}


def layout_of(vit: ViTConfig) -> Layout:
    """Where each tensor stands."""
    ours, theirs = "encoder.transformer.blocks", "beit.encoder.layer"
    layout: Layout = {
        "encoder.class_token": TensorName(("beit.embeddings.cls_token",), "token"),
        "mask_token": TensorName(("beit.embeddings.mask_token",), "token"),
        "encoder.embed.weight": TensorName(("beit.embeddings.patch_embeddings.projection.weight",), "convolution"),
        "encoder.embed.bias": TensorName(("beit.embeddings.patch_embeddings.projection.bias",)),
    }
    layout |= stack(ours, theirs, vit.depth, PARTS)
    for i in range(vit.depth):
        attention = f"{theirs}.{i}.attention.attention"
        layout[f"{ours}.{i}.attention.query_key_value.bias"] = TensorName(
            (f"{attention}.query.bias", "", f"{attention}.value.bias")
        )
        if vit.layer_scale is not None:
            layout |= {f"{ours}.{i}.branch{n}.scale": TensorName((f"{theirs}.{i}.lambda_{n}",)) for n in (1, 2)}
        if vit.relative_bias == "block":
            layout[f"encoder.relative.{i}.table"] = TensorName(
                (f"{attention}.relative_position_bias.relative_position_bias_table",)
            )
    if vit.relative_bias == "shared":
        layout["encoder.relative.0.table"] = TensorName((SHARED,))
    if vit.positions != "none":
        layout["encoder.positions"] = TensorName(("beit.embeddings.position_embeddings",), "table")
    return layout | affine("encoder.transformer.norm", "layernorm") | affine("head", "lm_head")


def load(folder: str | Path, *, say: Callable[[str], None] = tell) -> Learner:
    """The BEiT of a folder, in eval mode, without its tokenizer.

    Raises:
        UnveilError: When the config asks for what our model does not do, or a tensor is missing or left over.
    """
    folder = Path(folder)
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise UnveilError(f"{folder} has a config of transformers' BEiT, and no model.safetensors (one file, no shards)")
    vit, config = configs(read_object(folder / "config.json"), folder)
    learner = BEiT.build(vit, config, AugmentConfig())
    matched = fill(learner, layout_of(learner.encoder.config), renamed(read_tensors(files[0])), folder)
    say(f"{folder}: {matched} of {matched} tensors matched (transformers, BeitForMaskedImageModeling, no tokenizer)")
    return learner.eval()


def configs(facts: Mapping[str, Any], folder: Path) -> tuple[ViTConfig, BEiTConfig]:
    """Our configs from the config of transformers; what it leaves out is its BEiT-B/16. Raises `UnveilError`."""
    usual = {"hidden_act": "gelu", "use_mask_token": False, "use_mean_pooling": True}
    wrong = {name: facts.get(name, usual[name]) for name in EXPECTED if facts.get(name, usual[name]) != EXPECTED[name]}
    shared, each = facts.get("use_shared_relative_position_bias", False), facts.get("use_relative_position_bias", False)
    if wrong or (shared and each):
        found = ", ".join(f"{name} {value}" for name, value in wrong.items()) or "shared biases and those of each block"
        raise UnveilError(f"{folder} has {found}: expected a BeitForMaskedImageModeling, with gelu, mask token, one last norm")
    width, channels = facts.get("hidden_size", 768), facts.get("num_channels", 3)
    mean, std = preprocessing(folder) or ((0.5,) * channels, (0.5,) * channels)
    vit = ViTConfig(
        width=width,
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        image_size=pair(facts.get("image_size", 224)),
        patch_size=pair(facts.get("patch_size", 16)),
        channels=channels,
        mlp_ratio=mlp_ratio(facts.get("intermediate_size", 3072), width),
        eps=facts.get("layer_norm_eps", 1e-12),
        mean=mean,
        std=std,
    )
    config = BEiTConfig(
        tokenizer="absent",
        codebook=facts.get("vocab_size", 8192),
        relative_bias="shared" if shared else "block" if each else "none",
        positions="learned" if facts.get("use_absolute_position_embeddings", False) else "none",
        layer_scale=facts.get("layer_scale_init_value", 0.1) or None,
        drop_path=facts.get("drop_path_rate", 0.1),
    )
    return vit, config


def state_of(learner: BEiT) -> Tensors:
    """The tensors under the names of transformers; those of the tokenizer stay behind."""
    vit = learner.encoder.config
    if vit.image_size[0] != vit.image_size[1] or vit.patch_size[0] != vit.patch_size[1]:
        raise UnveilError(
            f"transformers' BEiT takes square images and patches only, and this model takes {vit.image_size} px in patches of "
            f"{vit.patch_size}: export as safetensors instead"
        )
    return lay_out(learner, layout_of(vit), vit.patch_size, leave="target.")


def describe(learner: BEiT) -> dict[str, Any]:
    """The `config.json` of transformers."""
    vit = learner.encoder.config
    return {
        "architectures": ["BeitForMaskedImageModeling"],
        "model_type": "beit",
        "vocab_size": learner.target.size,
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": int(vit.width * vit.mlp_ratio),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": vit.eps,
        "image_size": vit.image_size[0],
        "patch_size": vit.patch_size[0],
        "num_channels": vit.channels,
        "use_absolute_position_embeddings": vit.positions != "none",
        "drop_path_rate": vit.drop_path,
        "use_relative_position_bias": vit.relative_bias == "block",
        "use_shared_relative_position_bias": vit.relative_bias == "shared",
        "layer_scale_init_value": vit.layer_scale or 0.0,
        "dtype": "float32",
        **EXPECTED,
    }


def export(learner: BEiT, folder: str | Path) -> Path:
    """Writes `model.safetensors`, `config.json`, and `preprocessor_config.json` with how images are normalised."""
    folder, vit = Path(folder), learner.encoder.config
    write_tensors(folder / "model.safetensors", state_of(learner))
    preparation = {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": False,
        "do_reduce_labels": False,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": vit.image_size[0], "width": vit.image_size[1]},
        "image_mean": list(vit.mean),
        "image_std": list(vit.std),
    }
    write_whole(folder / "preprocessor_config.json", json.dumps(preparation, indent=2) + "\n")
    write_whole(folder / "config.json", json.dumps(describe(learner), indent=2) + "\n")
    return folder
