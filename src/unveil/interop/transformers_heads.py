"""Heads as `ViTForImageClassification`, `BeitForImageClassification` or `Dinov2ForImageClassification` of transformers.

Which of them computes a head follows from where its norm is and what it pools: see `transformers_kind`. BEiT's keys have no bias. A
bias of keys adds the same value to all attention scores of a query, which the softmax cancels, so nothing is lost without it.
`unveil.interop.transformers_vit` loads such folders.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.interop.encoder_only import has_vit, vit_of
from unveil.interop.heads import Head, classifier_state, dinov2_ratio, head_for, plain_config, transformers_kind
from unveil.interop.layout_maps import encoder_map
from unveil.interop.layouts import TRANSFORMERS_LAYOUTS
from unveil.interop.silence import silenced
from unveil.interop.transformers_images import NOTE, images_of_transformers, shape_json, write_folder
from unveil.interop.transformers_vit import ACTIVATIONS, load, with_registers_and_scales
from unveil.interop.verify_export import Verification, compare_reloaded, difference_of_outputs, largest, relative_difference
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Tensors

CLASSES = {
    "vit": "ViTForImageClassification",
    "beit": "BeitForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
}
"""The class of transformers for each `model_type`."""


def writes(learner: Learner) -> bool:
    """Whether a learner has a head that transformers has a place for."""
    return has_vit(learner) and head_for(learner, "transformers") is not None


def parts(learner: Learner) -> tuple[Head, ViTConfig, str]:
    """The head of a learner, the config of its encoder without the norm of the head, and the `model_type`."""
    head, vit = head_for(learner, "transformers"), vit_of(learner).config
    kind = transformers_kind(vit, head) if head else None
    assert head is not None
    assert kind is not None
    return head, plain_config(vit), kind


def state_of(learner: Learner) -> Tensors:
    """The tensors with the names of transformers."""
    head, vit, kind = parts(learner)
    layout, prefix = TRANSFORMERS_LAYOUTS[kind], f"{kind}."
    pooled = layout.pooled_norm if kind == "beit" and head.pool == "mean" else layout.norm  # the norm of one token, or of all
    encoder = encoder_map(layout, vit, theirs=prefix)
    state = classifier_state(learner, head, encoder, norm=f"{prefix}{pooled}", linear="classifier")
    if not kind.startswith("dinov2"):
        return state
    state["classifier.weight"] = of_both(head, vit.width)
    return with_registers_and_scales(state, layout, vit, prefix)


def of_both(head: Head, width: int) -> Float[Tensor, "K 2D"]:
    """The weight of a head that takes the class token, and then the mean of the patch tokens, as DINOv2's does."""
    zeros = head.weight.new_zeros(len(head.weight), width)
    if head.pool == "both":
        return torch.cat([head.weight[:, width:], head.weight[:, :width]], dim=1)
    return torch.cat([head.weight, zeros] if head.pool == "class" else [zeros, head.weight], dim=1)


def config_json(learner: Learner) -> dict[str, Any]:
    """The `config.json`: the shape, what the outputs are, and their names."""
    head, vit, kind = parts(learner)
    facts: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **shape_json(vit),
        "hidden_act": "gelu" if vit.mlp == "swiglu" else next(theirs for theirs, ours in ACTIVATIONS.items() if ours == vit.mlp),
        "id2label": {str(i): name for i, name in enumerate(head.names)},
        "label2id": {name: i for i, name in enumerate(head.names)},
    }
    if len(head.names) > 1 or head.problem != "single_label_classification":  # transformers refuses a single class
        facts["problem_type"] = head.problem
    if kind.startswith("dinov2"):
        facts |= {"mlp_ratio": dinov2_ratio(vit), "use_swiglu_ffn": vit.mlp == "swiglu", "layerscale_value": vit.layer_scale or 1.0}
        facts |= {"qkv_bias": True, "drop_path_rate": 0.0}
        return facts | ({"num_register_tokens": vit.registers} if vit.registers else {})
    facts["intermediate_size"] = int(vit.width * vit.mlp_ratio)
    if kind == "vit":
        return facts | {"qkv_bias": True}
    return facts | {
        "use_mask_token": False,
        "use_absolute_position_embeddings": vit.positions != "none",
        "use_relative_position_bias": vit.relative_bias == "block",
        "use_shared_relative_position_bias": vit.relative_bias == "shared",
        "layer_scale_init_value": vit.layer_scale or 0.0,
        "use_mean_pooling": head.pool == "mean",
        "drop_path_rate": 0.0,
    }


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes a folder: see `write_folder`."""
    return write_folder(folder, state_of(learner), config_json(learner), vit_of(learner).config)


@torch.no_grad()
def verify(learner: Learner, folder: Path) -> Verification:
    """Compares features and outputs for image files with those of transformers, or of our reloaded model without transformers."""
    head, vit, kind = parts(learner)
    if importlib.util.find_spec("transformers") is None:
        if head.pool == "both":  # unveil reads only the encoder
            return Verification(None, "transformers is not installed")
        return compare_reloaded(learner, load(folder, say=lambda text: None), "transformers")
    from transformers import AutoModelForImageClassification

    pair = images_of_transformers(folder, vit_of(learner).config)
    with silenced():
        model: Any = AutoModelForImageClassification.from_pretrained(folder)
    model.eval()
    outputs = model.base_model(pair.theirs)
    features = outputs.pooler_output if kind == "beit" else pooled(outputs.last_hidden_state, vit, head)
    difference, compared = difference_of_outputs(learner, model(pair.theirs).logits, pair.ours)
    difference = largest(difference, relative_difference(features, learner.features(pair.ours)))
    return Verification(difference, "transformers", f"features and {compared} of {pair.source}", NOTE)


def pooled(tokens: Float[Tensor, "B T D"], vit: ViTConfig, head: Head) -> Float[Tensor, "B F"]:
    """What a head takes, from the tokens of transformers after the final norm."""
    mean, first = tokens[:, vit.prefix_tokens :].mean(dim=1), tokens[:, 0]
    return {"mean": mean, "class": first, "both": torch.cat([mean, first], dim=1)}[head.pool]
