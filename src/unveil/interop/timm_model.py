"""What is exported for timm: the tensors of an encoder and of its head as one linear layer; and the nearest architecture."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from unveil.errors import UnveilError
from unveil.interop.encoder_only import EncoderOnly, vit_of
from unveil.interop.heads import Problem, classifier_state, head_for, plain_config
from unveil.interop.layout_maps import encoder_map
from unveil.interop.layouts import TIMM
from unveil.interop.state_dict_map import StateDictMap, TensorName, to_state_dict
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Tensors

ARCHITECTURES: dict[int, tuple[str, tuple[int, ...]]] = {
    192: ("vit_tiny", (16,)),
    384: ("vit_small", (8, 16, 32)),
    768: ("vit_base", (8, 16, 32)),
    1024: ("vit_large", (14, 16, 32)),
    1280: ("vit_huge", (14,)),
}
"""The names of timm's models by width, and the patch sizes that they exist for."""
WITH_SWIGLU, WITH_EPS_1E5 = "vit_giant_patch14_reg4_dinov2", "vit_base_patch16_clip_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
"""Architectures with what `model_args` cannot say: a SwiGLU, an epsilon of 1e-5, a distillation token."""


class TimmModel(NamedTuple):
    """The exported part of a learner."""

    state: Tensors
    """Tensors with timm's names."""
    classes: Sequence[str] = ()
    """Names of the outputs of the head; empty if there is none."""
    problem: Problem = "single_label_classification"
    """What these outputs are."""
    norm_after_pooling: bool = False
    """Whether the norm follows the pooling of the tokens (timm's `fc_norm`)."""
    pool: str = "mean"
    """The features: the mean of the patch tokens, or the class token."""


def map_of(vit: ViTConfig, *, prefix: str = "encoder.") -> StateDictMap:
    """The map of an encoder for exporting; `prefix` is the prefix of our names."""
    names = encoder_map(TIMM, vit, ours=prefix)
    if vit.pre_norm:  # timm's patch embedding has no bias then
        names[f"{prefix}embed.bias"] = TensorName(("",))
    return names


def encoder_model(learner: Learner) -> TimmModel:
    """Only the encoder of a learner."""
    encoder = vit_of(learner)
    vit = encoder.config
    if vit.distillation_token and learner.pool != "class":
        raise UnveilError(
            "timm's distilled models take the class token and the distillation token as features, but those of this model are the "
            "mean of the patch tokens, so timm cannot represent it: export as safetensors instead"
        )
    state = to_state_dict(EncoderOnly(encoder), map_of(vit), vit.patch_size)
    return TimmModel(state, norm_after_pooling=vit.norm_after_pooling, pool=learner.pool)


def timm_model(learner: Learner) -> TimmModel:
    """The exported part of a learner: its encoder, and its head if timm has a place for it."""
    head = head_for(learner, "timm")
    if head is None:
        return encoder_model(learner)
    vit = plain_config(vit_of(learner).config)
    state = classifier_state(learner, head, map_of(vit), norm="fc_norm", linear="head")
    return TimmModel(state, head.names, head.problem, head.norm == "after", head.pool)


def architecture_of(vit: ViTConfig) -> str:
    """The name of timm's model that is most like an encoder. Differences from that model are written into `model_args`."""
    special = [
        name
        for name, needed in (
            (DISTILLED, vit.distillation_token),
            (WITH_SWIGLU, vit.mlp == "swiglu"),
            (WITH_EPS_1E5, math.isclose(vit.eps, 1e-5)),
        )
        if needed
    ]
    if len(special) > 1:
        raise UnveilError(
            f"timm has no model with what {' and '.join(special)} have each, so it cannot represent this encoder: export as "
            f"safetensors instead"
        )
    if special:
        return special[0]
    width = min(ARCHITECTURES, key=lambda each: abs(math.log(each / vit.width)))
    name, patches = ARCHITECTURES[width]
    return f"{name}_patch{min(patches, key=lambda each: abs(each - vit.patch_size[0]))}_224"
