"""What only timm knows of its models: heads, activation, epsilon, pooling and preprocessing of an architecture; and public weights.

An architecture is built with one block on torch's meta device, which takes no memory, and its modules are read. So every model that
timm knows is recognised for what it is, and a config.json cannot ask for more memory than a file has.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unveil.blocks.patches import Size
from unveil.errors import UnveilError
from unveil.interop.silence import silenced
from unveil.models.vit_config import Activation
from unveil.models.weights import one_line
from unveil.paths import TIMM_PREFIX

CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "Beit")
ARGUMENTS = frozenset(
    "img_size patch_size in_chans num_classes global_pool embed_dim num_heads mlp_ratio qkv_bias qk_norm scale_attn_norm "
    "scale_mlp_norm proj_bias init_values class_token pos_embed no_embed_class reg_tokens pre_norm final_norm fc_norm "
    "pool_include_prefix dynamic_img_size dynamic_img_pad drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate "
    "drop_path_rate weight_init fix_init embed_norm_layer norm_layer act_layer attn_layer swiglu_mlp scale_mlp use_abs_pos_emb "
    "use_rel_pos_bias use_shared_rel_pos_bias use_fc_norm head_init_scale depth".split()
)
"""The entries of `model_args` that are passed to timm."""
PLAIN = re.compile(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+")
PLAIN_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
PLAIN_ARGUMENTS = frozenset(
    "img_size patch_size in_chans embed_dim depth num_heads mlp_ratio qkv_bias class_token global_pool fc_norm final_norm "
    "init_values reg_tokens no_embed_class pre_norm num_classes act_layer".split()
)
"""Arguments whose meaning is known without timm, for models that are plain without them."""
ACTIVATIONS: dict[str, Activation] = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}
NAMES_OF_ACTIVATIONS: dict[Activation, str] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class TimmFacts:
    """What the tensors of a model do not tell."""

    heads: int | None = None
    eps: float = 1e-6
    activation: Activation = "gelu"
    pool: Literal["mean", "class"] = "mean"
    keep_head: bool = True
    """Whether a classifier takes these features."""
    image_size: Size | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """timm's `pretrained_cfg`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of our `ViTConfig` that are recorded elsewhere."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The tensors of the model, with one block, if it was built."""
    note: str = ""
    """What is different here, for the user."""


def facts_of(model: nn.Module, name: str) -> TimmFacts:
    """Reads a model. Raises `UnveilError` if it computes what our encoder does not."""
    timm_model: Any = model
    kind, first = type(model).__name__, getattr(timm_model, "blocks", [None])[0]
    if kind not in CLASSES or type(first).__name__ != "Block":
        raise UnveilError(
            f"timm's {name!r} is a {kind} with blocks of the class {type(first).__name__}, which cannot be expressed: "
            f"expected a {', '.join(CLASSES[:-1])} or {CLASSES[-1]} with plain blocks"
        )
    pool: Any = getattr(timm_model, "global_pool", "token")
    odd = pool not in ("token", "avg") or bool(getattr(timm_model, "pool_include_prefix", False))
    note = f"its pooling {pool!r} is not one of unveil, which takes the mean of the patch tokens" if pool and odd else ""
    size: Any = timm_model.patch_embed.img_size
    shapes = {each: tuple(value.shape) for each, value in model.state_dict().items()}
    return TimmFacts(
        heads=first.attn.num_heads,
        eps=float(first.norm1.eps),
        activation=activation_of(first.mlp, name),
        pool="class" if pool == "token" else "mean",
        keep_head=not odd,
        image_size=(int(size[0]), int(size[1])),
        preprocessing=dict(getattr(timm_model, "pretrained_cfg", {})),
        shapes=shapes,
        note=note,
    )


def activation_of(mlp: nn.Module, name: str) -> Activation:
    """The activation of an MLP. Raises `UnveilError` for one that our encoder does not have."""
    kind, act = type(mlp).__name__, getattr(mlp, "act", None)
    found = type(act).__name__
    if kind == "SwiGLU" or (kind == "GluMlp" and not getattr(mlp, "gate_last", True)):
        if found == "SiLU":
            return "swiglu"
    elif kind == "Mlp" and isinstance(act, nn.GELU):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    elif kind == "Mlp" and found in ACTIVATIONS:
        return ACTIVATIONS[found]
    raise UnveilError(f"timm's {name!r} has {kind} with {found} in its blocks, expected GELU, QuickGELU or SwiGLU")


def facts_of_architecture(
    name: str, arguments: Mapping[str, Any], source: str, *, tag: str | None = None, plain: bool = True
) -> TimmFacts:
    """The facts of an architecture with some arguments, such as `model_args` of a config.json.

    Args:
        name: The name in timm, without the weights.
        arguments: What differs from it.
        source: The file or folder, for messages.
        tag: The name with the weights, whose preprocessing is taken; by default that of the first ones.
        plain: Whether a plain Vision Transformer is known without importing timm. Its preprocessing is not.

    Raises:
        UnveilError: If timm has no such architecture, or it computes what our encoder does not.
    """
    known = PLAIN.fullmatch(name) if plain and arguments.keys() <= PLAIN_ARGUMENTS else None
    if known:
        return facts_of_plain(PLAIN_HEADS[known.group(1)], arguments, source)
    unknown = sorted(arguments.keys() - ARGUMENTS)
    if unknown:
        raise UnveilError(f"{source} has model_args that cannot be expressed: {', '.join(unknown)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()} | {"depth": 1}
    return facts_of(built_by_timm(name, given, source, tag), name)


def facts_of_plain(heads: int, arguments: Mapping[str, Any], source: str) -> TimmFacts:
    """The facts of a plain Vision Transformer, without importing timm."""
    size, activation = arguments.get("img_size"), arguments.get("act_layer", "gelu")
    if activation not in NAMES_OF_ACTIVATIONS.values():
        raise UnveilError(f"{source} has the activation {activation!r}, expected {', '.join(NAMES_OF_ACTIVATIONS.values())}")
    pool = arguments.get("global_pool", "token")
    if pool not in ("avg", "token"):
        raise UnveilError(f"{source} has the pooling {pool!r}, expected 'avg' or 'token'")
    return TimmFacts(
        heads=arguments.get("num_heads", heads),
        activation=activation,
        pool="class" if pool == "token" else "mean",
        image_size=None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1]),
    )


def built_by_timm(name: str, arguments: Mapping[str, Any], source: str, tag: str | None = None) -> nn.Module:
    """A model of timm without weights and without memory for them. Raises `UnveilError` if timm cannot build it."""
    import timm

    if not timm.is_model(name):
        raise UnveilError(f"{source}: timm {timm.__version__} does not have the model {name!r}{guesses(name)}")
    try:
        with silenced(), torch.device("meta"):
            model: nn.Module = timm.create_model(tag or name, pretrained=False, **arguments)
    except Exception as error:  # whatever odd values raise in another library
        raise UnveilError(f"{source} has model_args with which timm cannot build {name!r}: {one_line(error)}") from None
    return model


def guesses(name: str) -> str:
    """A question after names that are similar; empty if there are none."""
    import timm

    near = difflib.get_close_matches(name, timm.list_models(pretrained="." in name), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def download(name: str) -> tuple[dict[str, Tensor], TimmFacts, str, tuple[str, ...]]:
    """Public weights of timm, from its cache or by its own code from the hub: tensors, facts, architecture, names of classes.

    Args:
        name: A name such as "timm:vit_base_patch16_224.mae".

    Raises:
        UnveilError: If timm has no such weights, they cannot be downloaded, or the model cannot be expressed.
    """
    import timm

    plain = name.removeprefix(TIMM_PREFIX)
    architecture = plain.partition(".")[0]
    if not re.fullmatch(r"[\w.\-]+", plain) or not timm.is_model(architecture):
        raise UnveilError(f"{name}: timm {timm.__version__} has no model {plain!r}{guesses(plain)}")
    facts_of(built_by_timm(architecture, {}, name), architecture)  # refuses other models before the download
    try:
        with silenced():
            model = timm.create_model(plain, pretrained=True).eval()
    except Exception as error:  # the hub's client has many kinds of errors
        raise UnveilError(
            f"{name} could not be downloaded by timm: {one_line(error)}. Check the network, or load weights in a file by its path"
        ) from None
    return model.state_dict(), facts_of(model, architecture), architecture, imagenet_names(model)


def imagenet_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the classes of public weights that classify a known part of ImageNet; empty for others."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if not subset:
        return ()
    info: Any = ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))


def preprocessing_of(facts: Mapping[str, Any], channels: int, source: str) -> tuple[dict[str, Any], list[str]]:
    """The options of a `ViTConfig` in timm's `pretrained_cfg`, and sentences about what differs here."""
    options: dict[str, Any] = {
        key: tuple(facts[key]) for key in ("mean", "std") if isinstance(facts.get(key), Sequence) and len(facts[key]) == channels
    }
    crop = facts.get("crop_pct") or 0.875  # timm's default
    options["crop_pct"] = crop if not isinstance(crop, float) or math.isfinite(crop) else 0.875
    notes = []
    for ours, theirs, known in (
        ("crop_mode", facts.get("crop_mode") or "center", ("center", "squash")),
        ("interpolation", facts.get("interpolation") or "bicubic", ("bicubic", "bilinear")),
    ):
        if theirs in known:
            options[ours] = theirs
        else:
            notes.append(f"{source} was made for {ours.replace('_', ' ')} {theirs!r}; unveil uses {known[0]!r}")
    return options, notes
