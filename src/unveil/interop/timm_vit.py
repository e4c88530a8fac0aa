"""Encoders as timm's `VisionTransformer`: a folder for `timm.create_model("local-dir:...", pretrained=True)`."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.files import Tensors, read_object, read_tensors, tell, write_tensors
from unveil.interop.mae_release import shape_of
from unveil.interop.state_dict_map import Layout, TensorName, affine, fill, lay_out, timm_encoder
from unveil.learner import Learner
from unveil.methods.supervised import Supervised, SupervisedConfig
from unveil.models.vit import ViT, ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.train.checkpoint import write_whole

ARCHITECTURES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
"""timm's name by the width; what else differs is in `model_args`."""


def layout_of(vit: ViTConfig, *, ours: str = "", norm: bool = True) -> Layout:
    """Where each tensor of an encoder stands; `ours` stands before our names."""
    layout = timm_encoder(vit.depth, ours=ours, norm=norm)
    if vit.layer_scale is not None:
        for i in range(vit.depth):
            for branch in (1, 2):
                layout[f"{ours}transformer.blocks.{i}.branch{branch}.scale"] = TensorName((f"blocks.{i}.ls{branch}.gamma",))
    return layout


def layout_of_finetune(vit: ViTConfig) -> Layout:
    """Where each tensor of a fine-tuned model stands: its norm comes after the mean of the tokens."""
    return layout_of(vit, ours="encoder.", norm=False) | affine("norm", "fc_norm") | affine("head", "head")


def state_of(model: nn.Module) -> Tensors:
    """The timm state dict of an encoder, of a learner's encoder, or of a `Finetune` or a `Supervised` with its head."""
    if isinstance(model, Finetune):
        vit: ViTConfig = model.encoder.config
        return lay_out(model, layout_of_finetune(vit), vit.patch_size)
    encoder = vit_of(model)
    norm = isinstance(encoder.transformer.norm, nn.LayerNorm)
    state = lay_out(encoder, layout_of(encoder.config, norm=norm), encoder.config.patch_size)
    if isinstance(model, Supervised):
        state |= {f"head.{name}": value.clone() for name, value in model.head.state_dict().items()}
    return state


def vit_of(model: nn.Module) -> ViT:
    """A ViT, or the encoder of a learner. Raises `UnveilError` for anything else."""
    encoder = model if isinstance(model, ViT) else getattr(model, "encoder", None)
    if not isinstance(encoder, ViT):
        raise UnveilError(f"a {type(model).__name__} has no ViT that timm could take")
    return encoder


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """The arguments that make timm's `VisionTransformer` the same model."""
    encoder = vit_of(model)
    vit = encoder.config
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
        "fc_norm": isinstance(model, Finetune),
    }
    if not isinstance(model, Finetune):
        arguments["final_norm"] = isinstance(encoder.transformer.norm, nn.LayerNorm)
    return arguments if vit.layer_scale is None else arguments | {"init_values": vit.layer_scale}


def describe(model: nn.Module, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """The `config.json` of timm's hub format. timm's LayerNorm has eps 1e-6, as ours, so it needs no word."""
    encoder = vit_of(model)
    vit = encoder.config
    count = model.head.out_features if isinstance(model, Finetune | Supervised) else 0
    facts: dict[str, Any] = {
        "architecture": ARCHITECTURES.get(vit.width, "vit_base_patch16_224"),
        "num_classes": count,
        "num_features": vit.width,
        "global_pool": "avg",
        "model_args": arguments_of(model),
        "pretrained_cfg": {
            "tag": "unveil",
            "custom_load": False,
            "num_classes": count,
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
    return facts | ({"label_names": list(classes)} if classes and count else {})


def export(model: nn.Module, folder: str | Path, *, classes: Sequence[str] | None = None) -> Path:
    """Writes `model.safetensors` and `config.json`.

    Args:
        model: An encoder, a learner whose encoder is taken, or a `Finetune` or a `Supervised`, which come with their head.
        folder: Is made where it is not there.
        classes: The names of the classes of these.
    """
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", state_of(model))
    write_whole(folder / "config.json", json.dumps(describe(model, classes), indent=2) + "\n")
    return folder


def encoder_from(
    state: nn.Module | dict[str, Tensor], *, heads: int | None = None, image_size: int | tuple[int, int] | None = None
) -> ViT:
    """Our ViT with the weights of a timm `VisionTransformer`, or of its state dict; a head for classes is left aside.

    Args:
        state: The model or its state dict: with a class token, learned or sine-cosine positions, and one last norm.
        heads: By the width where not given; a model tells it itself.
        image_size: A square grid of patches is assumed where not given; a model tells it itself.

    Raises:
        UnveilError: When a tensor is missing or left over.
    """
    if isinstance(state, nn.Module):
        heads = heads or state.blocks[0].attn.num_heads  # type: ignore[index, union-attr]
        image_size = image_size or state.patch_embed.img_size  # type: ignore[union-attr, assignment]
        state = state.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("head.")}
    vit = shape_of(kept, "the timm model", heads=heads, image_size=image_size)
    scaled = "blocks.0.ls1.gamma" in kept
    vit = ViTConfig(**{**vars(vit), "positions": "learned", "layer_scale": 0.1 if scaled else None})
    encoder = ViT(vit)
    norm = "norm.weight" in kept
    if not norm:
        encoder.transformer.norm = nn.Identity()
    fill(encoder, layout_of(vit, norm=norm), kept, "the timm model")
    return encoder.eval()


def load(folder: str | Path, *, say: Callable[[str], None] = tell) -> Learner:
    """A folder that `export` wrote, or timm's own `save_for_hf` of a plain ViT; in eval mode."""
    folder = Path(folder)
    name = str(read_object(folder / "config.json").get("architecture"))
    if not re.fullmatch(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+", name):
        raise UnveilError(f"{folder} is timm's {name!r}, expected a plain Vision Transformer such as 'vit_base_patch16_224'")
    config, state = read_object(folder / "config.json"), read_tensors(folder / "model.safetensors")
    arguments, known = config.get("model_args", {}), config.get("pretrained_cfg", {})
    size = arguments.get("img_size") or known.get("input_size", [None, None, None])[1:]
    size = size if isinstance(size, int) else tuple(size)
    vit = shape_of(state, folder, heads=arguments.get("num_heads"), image_size=size)
    moments = {name: tuple(known[name]) for name in ("mean", "std") if len(known.get(name, ())) == vit.channels}
    scale = arguments.get("init_values") if "blocks.0.ls1.gamma" in state else None
    vit = ViTConfig(**{**vars(vit), **moments, "positions": "learned", "layer_scale": scale})
    tuned, count = "fc_norm.weight" in state, len(state["head.bias"]) if "head.bias" in state else 0
    if tuned:
        learner: Learner = Finetune(ViT(vit), count, FinetuneConfig(), AugmentConfig())
        layout = layout_of_finetune(vit)
    elif count:
        method = Supervised.build(vit, SupervisedConfig(average=0.0), AugmentConfig())
        method.set_classes(config.get("label_names") or [str(i) for i in range(count)])
        learner, layout = method, layout_of(vit, ours="encoder.") | affine("head", "head")
    else:
        encoder = ViT(vit)
        norm = "norm.weight" in state
        if not norm:
            encoder.transformer.norm = nn.Identity()
        learner, layout = EncoderOnly(encoder, str(folder)), layout_of(vit, ours="encoder.", norm=norm)
    matched = fill(learner, layout, state, folder)
    say(f"{folder}: {matched} of {matched} tensors matched (timm, {'a model with its head' if count else 'an encoder'})")
    return learner.eval()
