"""MAE as `ViTMAEForPreTraining` or `ViTMAEModel` of transformers: a folder with config.json and model.safetensors.

Reading needs no transformers. Version 5 renamed the modules, and still writes most tensors under the names of version 4; both
are read, and those of version 4 are written, which every version loads.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.blocks.patches import Size
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.files import Tensors, read_object, read_tensors, tell, write_tensors
from unveil.interop.mae_release import mlp_ratio, moments
from unveil.interop.model_files import vit_of
from unveil.interop.state_dict_map import Layout, Parts, TensorName, affine, fill, lay_out, stack
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT, ViTConfig
from unveil.train.checkpoint import write_whole

PARTS: Parts = {
    "norm1": "layernorm_before",
    "attention.query_key_value": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attention.out": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}
RENAMED = (
    (r"^(vit\.|beit\.)?layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"\.(\d+)\.relative_position_bias\.", r".\1.attention.attention.relative_position_bias."),
    (r"^beit\.shared_position_bias\.", "beit.encoder.relative_position_bias."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
"""Names of version 5, and what version 4 says."""


def layout_of(depth: int, decoder_depth: int | None, start: str) -> Layout:
    """Where each tensor stands; no decoder where its depth is None; `start` stands before the encoder's names."""
    layout: Layout = {
        "encoder.class_token": TensorName((f"{start}embeddings.cls_token",), "token"),
        "encoder.positions": TensorName((f"{start}embeddings.position_embeddings",), "table"),
        "encoder.embed.weight": TensorName((f"{start}embeddings.patch_embeddings.projection.weight",), "convolution"),
        "encoder.embed.bias": TensorName((f"{start}embeddings.patch_embeddings.projection.bias",)),
    }
    layout |= stack("encoder.transformer.blocks", f"{start}encoder.layer", depth, PARTS)
    layout |= affine("encoder.transformer.norm", f"{start}layernorm")
    if decoder_depth is None:
        return layout
    layout["mask_token"] = TensorName(("decoder.mask_token",), "token")
    layout["decoder_positions"] = TensorName(("decoder.decoder_pos_embed",), "table")
    layout |= affine("decoder_embed", "decoder.decoder_embed")
    layout |= stack("decoder.blocks", "decoder.decoder_layers", decoder_depth, PARTS)
    return layout | affine("decoder.norm", "decoder.decoder_norm") | affine("head", "decoder.decoder_pred")


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors under the names of version 4."""
    result = {}
    for name, value in state.items():
        for pattern, by in RENAMED:
            name = re.sub(pattern, by, name)
        result[name] = value
    return result


def load(folder: str | Path, *, say: Callable[[str], None] = tell) -> Learner:
    """The MAE of a folder, or the encoder alone of a `ViTMAEModel`, in eval mode.

    Raises:
        UnveilError: When the config asks for what our model does not do, or a tensor is missing or left over.
    """
    folder = Path(folder)
    facts = read_object(folder / "config.json")
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise UnveilError(f"{folder} has a config of transformers' ViTMAE, and no model.safetensors (one file, no shards)")
    state = renamed(read_tensors(files[0]))
    vit, config = configs(facts, folder)
    start = "vit." if any(name.startswith("vit.") for name in state) else ""
    if any(name.startswith("decoder.") for name in state):
        learner: Learner = MAE.build(vit, config, AugmentConfig())
        layout = layout_of(vit.depth, config.decoder_depth, start)
    else:
        learner, layout = EncoderOnly(ViT(vit), str(folder)), layout_of(vit.depth, None, start)
    matched = fill(learner, layout, state, folder)
    kind = "ViTMAEForPreTraining" if isinstance(learner, MAE) else "ViTMAEModel, no decoder"
    say(f"{folder}: {matched} of {matched} tensors matched (transformers, {kind})")
    return learner.eval()


def configs(facts: Mapping[str, Any], folder: Path) -> tuple[ViTConfig, MAEConfig]:
    """Our configs from the config of transformers; what it leaves out is its ViT-B/16. Raises `UnveilError`."""
    if facts.get("model_type") != "vit_mae":
        raise UnveilError(f"{folder} is a {facts.get('model_type')!r} of transformers, expected 'vit_mae'")
    act, biases = facts.get("hidden_act", "gelu"), facts.get("qkv_bias", True)
    width, decoder_width = facts.get("hidden_size", 768), facts.get("decoder_hidden_size", 512)
    decoder_mlp = facts.get("decoder_intermediate_size", 2048)
    if act != "gelu" or decoder_mlp != 4 * decoder_width or not biases:
        raise UnveilError(
            f"{folder} has {act} and a decoder MLP of {decoder_mlp} values for a width of {decoder_width}, "
            f"{'with' if biases else 'without'} biases: expected gelu, {4 * decoder_width}, and biases"
        )
    channels = facts.get("num_channels", 3)
    mean, std = preprocessing(folder) or moments(channels)
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
    config = MAEConfig(
        mask_ratio=facts.get("mask_ratio", 0.75),
        target="normalised" if facts.get("norm_pix_loss", False) else "pixel",
        decoder_width=decoder_width,
        decoder_depth=facts.get("decoder_num_hidden_layers", 8),
        decoder_heads=facts.get("decoder_num_attention_heads", 16),
    )
    return vit, config


def pair(side: int | list[int]) -> Size:
    """A side as (height, width)."""
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def preprocessing(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and deviation of `preprocessor_config.json`, where it has them."""
    path = folder / "preprocessor_config.json"
    facts = read_object(path) if path.is_file() else {}
    if not (facts.get("image_mean") and facts.get("image_std")):
        return None
    return tuple(facts["image_mean"]), tuple(facts["image_std"])


def state_of(learner: Learner) -> Tensors:
    """The tensors of an MAE or of an `EncoderOnly`, under the names of transformers."""
    refuse(learner)
    vit = vit_of(learner).config
    depth = len(learner.decoder.blocks) if isinstance(learner, MAE) else None
    return lay_out(learner, layout_of(vit.depth, depth, "vit." if isinstance(learner, MAE) else ""), vit.patch_size)


def refuse(learner: Learner) -> None:
    """Raises `UnveilError` for what transformers' ViTMAE cannot express."""
    if not isinstance(learner, MAE | EncoderOnly):
        kind = type(learner).__name__
        raise UnveilError(f"a {kind} is no masked autoencoder: export as safetensors or for timm instead")
    vit = vit_of(learner).config
    if vit.image_size[0] != vit.image_size[1] or vit.patch_size[0] != vit.patch_size[1]:
        raise UnveilError(
            f"transformers' ViTMAE takes square images and patches only, and this model takes {vit.image_size} px in "
            f"patches of {vit.patch_size}: export for timm or as safetensors instead"
        )
    if isinstance(learner, MAE) and (learner.config.mask_tokens_in_encoder or learner.config.target in ("pca", "token")):
        raise UnveilError(
            "transformers' ViTMAE has no mask tokens in the encoder, no PCA target, no visual tokens: export as safetensors instead"
        )


def describe(learner: Learner) -> dict[str, Any]:
    """The `config.json` of transformers."""
    encoder = vit_of(learner)
    vit = encoder.config
    facts: dict[str, Any] = {
        "architectures": ["ViTMAEForPreTraining" if isinstance(learner, MAE) else "ViTMAEModel"],
        "model_type": "vit_mae",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": int(vit.width * vit.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": vit.eps,
        "image_size": vit.image_size[0],
        "patch_size": vit.patch_size[0],
        "num_channels": vit.channels,
        "qkv_bias": True,
        "dtype": "float32",
    }
    if isinstance(learner, MAE):
        decoder = learner.decoder.config
        facts |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": int(decoder.width * decoder.mlp_ratio),
            "mask_ratio": learner.config.mask_ratio,
            "norm_pix_loss": learner.config.target == "normalised",
        }
    return facts


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes `model.safetensors`, `config.json`, and `preprocessor_config.json` with how images are normalised."""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", state_of(learner))
    vit = vit_of(learner).config
    preparation = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": vit.image_size[0], "width": vit.image_size[1]},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(vit.mean),
        "image_std": list(vit.std),
    }
    write_whole(folder / "preprocessor_config.json", json.dumps(preparation, indent=2) + "\n")
    write_whole(folder / "config.json", json.dumps(describe(learner), indent=2) + "\n")
    return folder
