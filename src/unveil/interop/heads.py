"""The head of a learner as one linear layer on pooled features, for other libraries, and which format has a place for it.

    tokens -> (final norm) -> class token, mean of the patches, or both -> (norm) -> linear layer -> scores, logits or a number

The batch norm of a probe and the scale of a regression are folded into the linear layer, so the other library needs neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.heads import ProbeHead
from unveil.interop.encoder_only import vit_of
from unveil.interop.state_dict_map import StateDictMap, renamed, weight_and_bias
from unveil.learner import Learner, Task
from unveil.methods.supervised import Supervised
from unveil.models.vit_config import ViTConfig
from unveil.protocols import Classifies, MapsClasses
from unveil.tasks.finetune import Finetune
from unveil.tasks.linear import Linear
from unveil.tasks.multilabel import MultiLabel
from unveil.tasks.partial import PartialFinetune
from unveil.tasks.regression import Regression
from unveil.train.checkpoint import Tensors

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What the outputs of a head are: scores of classes, one logit for each label, or numbers. These are the words of transformers."""
PROBLEMS: tuple[Problem, ...] = ("single_label_classification", "multi_label_classification", "regression")
Norm = Literal["before", "after", "none", "twice"]
"""Where tokens or features are normalised: each token before the pooling, the features after it, nowhere, or at both places."""
COMPUTING = ("logits", "predict", "features", "outputs")
"""The methods that say what a head computes."""
PARTS = ("encoder.", "norm.", "head.", "averages.", "reconstruction.", "steps", "mean", "deviation")
"""Beginnings of the names of all tensors of the learners below. Averages and a decoder are for training only."""


@dataclass(frozen=True, eq=False)
class Head:
    """A head as one linear layer."""

    weight: Float[Tensor, "K F"]
    bias: Float[Tensor, " K"]
    pool: Literal["mean", "class", "both"]
    """What it takes: the mean of the patch tokens, the class token, or both side by side."""
    norm: Norm
    norm_layer: nn.LayerNorm | None
    """The norm after the pooling, if there is one."""
    names: tuple[str, ...]
    """The names of its outputs: classes, labels, or the name of the number."""
    problem: Problem
    probe: ProbeHead | None = None
    """The batch norm and the linear layer that `weight` and `bias` were folded from."""

    @property
    def kind(self) -> str:
        """What it is called in sentences."""
        return {"regression": "the number", "multi_label_classification": "the labels"}.get(self.problem, "the class scores")


@singledispatch
def head_of(learner: Learner) -> Head | None:
    """The head of a learner with a ViT; None if there is none, or none of those below, such as a plug-in's own."""
    return None


@head_of.register(Finetune)
@head_of.register(MultiLabel)
@head_of.register(PartialFinetune)
@head_of.register(Linear)
@head_of.register(Supervised)
def _(learner: Finetune | MultiLabel | PartialFinetune | Linear | Supervised) -> Head | None:
    kinds = (Finetune, MultiLabel, PartialFinetune, Linear, Supervised)
    problem: Problem = "multi_label_classification" if isinstance(learner, MultiLabel) else "single_label_classification"
    return built_in_head(learner, next(kind for kind in kinds if isinstance(learner, kind)), problem)


@head_of.register
def _(learner: Regression) -> Head | None:
    found = built_in_head(learner, Regression, "regression")
    if found is None:
        return None
    deviation, mean = learner.deviation.double().cpu(), learner.mean.double().cpu()
    return replace(
        found,
        weight=(found.weight.double() * deviation).float(),
        bias=(found.bias.double() * deviation + mean).float(),
        names=found.names or ("value",),
    )


def built_in_head(learner: Any, kind: type, problem: Problem) -> Head | None:
    """The head of a learner of a known class; None for a subclass that has more tensors or computes something else."""
    changed = any(getattr(type(learner), name, None) is not getattr(kind, name, None) for name in COMPUTING)
    if changed or not all(name.startswith(PARTS) for name in learner.state_dict()) or not hasattr(learner, "head"):
        return None
    vit: ViTConfig = vit_of(learner).config
    own, pooled = getattr(learner, "norm", None), vit_of(learner).pooled_norm
    after = [layer for layer in (own, pooled) if isinstance(layer, nn.LayerNorm)]
    probe = learner.head if isinstance(learner.head, ProbeHead) else None
    weight, bias = probe.folded() if probe else (learner.head.weight.detach(), learner.head.bias.detach())
    norm: Norm = "twice" if len(after) + vit.final_norm > 1 else "after" if after else "before" if vit.final_norm else "none"
    layer = after[0] if after else None
    return Head(weight.cpu(), bias.cpu(), learner.pool, norm, layer, tuple(learner.classes), problem, probe)


def has_head(learner: Learner) -> bool:
    """Whether a learner has a head of any kind, also one that only its own class knows."""
    return isinstance(learner, Task | Classifies) or head_of(learner) is not None


def plain_config(vit: ViTConfig) -> ViTConfig:
    """The config of an encoder whose norm after the pooling counts as a part of the head."""
    return replace(vit, norm_after_pooling=False)


def classifier_state(learner: Learner, head: Head, encoder: StateDictMap, *, norm: str, linear: str) -> Tensors:
    """The tensors of an encoder and its head, with the names of another library.

    Args:
        learner: The learner.
        head: Its head.
        encoder: The map of the tensors of its encoder, of `plain_config`.
        norm: The name of the norm after the pooling.
        linear: The name of the linear layer.
    """
    vit = vit_of(learner)
    own = {f"encoder.{name}": value.detach() for name, value in vit.state_dict().items() if not name.startswith("pooled_norm.")}
    own |= {"head.weight": head.weight, "head.bias": head.bias}
    names = encoder | weight_and_bias("head", linear)
    if head.norm_layer is not None:
        own |= {f"norm.{name}": value.detach() for name, value in head.norm_layer.state_dict().items()}
        names |= weight_and_bias("norm", norm)
    return renamed(own, names, vit.config.patch_size)


def why_not_timm(vit: ViTConfig, head: Head) -> str:
    """Why timm has no place for a head; empty if it has."""
    if vit.distillation_token:
        return "timm's distilled models have two heads"
    if vit.relative_bias != "none":
        return "unveil writes no model of timm with relative biases"
    if head.pool == "both":
        return "timm's head takes the class token or the mean of the patch tokens, not both"
    return "timm has no norm both before and after the pooling" if head.norm == "twice" else ""


def transformers_kind(vit: ViTConfig, head: Head) -> str | None:
    """The `model_type` of transformers that computes a head on an encoder; None if there is none.

    ViT has the final norm and the class token. BEiT has the norm after the mean, or the final norm and the class token. DINOv2 has
    the final norm, and takes the class token and the mean side by side, so a head on one of them has zeros for the other.
    """
    square = vit.image_size[0] == vit.image_size[1] and vit.patch_size[0] == vit.patch_size[1]
    if not square or not vit.class_token or vit.distillation_token or vit.pre_norm or head.norm in ("none", "twice"):
        return None
    if vit.mlp != "swiglu" and not vit.registers:
        beit = head.norm == "after" if head.pool == "mean" else head.pool == "class" and vit.relative_bias != "none"
        if beit:
            return "beit"
        if head.pool == "class" and vit.relative_bias == "none" and vit.layer_scale is None and vit.positions != "none":
            return "vit"
    if vit.relative_bias != "none" or vit.positions == "none" or vit.mlp not in ("gelu", "swiglu"):
        return None
    if (head.norm == "after" and head.pool != "class") or dinov2_ratio(vit) is None:
        return None
    return "dinov2_with_registers" if vit.registers else "dinov2"


def dinov2_ratio(vit: ViTConfig) -> int | None:
    """The `mlp_ratio` from which transformers computes the width of an MLP of DINOv2, a whole number; None if there is none."""
    hidden = int(vit.width * vit.mlp_ratio)
    for ratio in range(1, 65):
        whole = vit.width * ratio
        if (whole if vit.mlp != "swiglu" else (int(whole * 2 / 3) + 7) // 8 * 8) == hidden:
            return ratio
    return None


def why_not_transformers(vit: ViTConfig, head: Head) -> str:
    """Why transformers has no place for a head; empty if it has."""
    return "" if transformers_kind(vit, head) else "none of ViT, BEiT and DINOv2 in transformers computes it on this encoder"


def why_not_mae(vit: ViTConfig, head: Head) -> str:
    """Why the layout of the public MAE release has no place for a head; empty if it has.

    Its models have the final norm and the class token, or else the norm after the mean.
    """
    if (head.norm, head.pool) not in (("before", "class"), ("after", "class"), ("after", "mean")):
        return "the public MAE release has a head on the mean only with the norm after it, and else on the class token"
    return ""


WHY_NOT: dict[str, Callable[[ViTConfig, Head], str]] = {
    "timm": why_not_timm,
    "transformers": why_not_transformers,
    "mae": why_not_mae,
}
"""The formats that cannot express every head. The others, safetensors and onnx, keep all."""


def head_for(learner: Learner, to: str) -> Head | None:
    """The head of a learner if a format has a place for it."""
    head = head_of(learner)
    return head if head is not None and not WHY_NOT[to](vit_of(learner).config, head) else None


def left_out(learner: Learner, to: str) -> str:
    """A sentence about a head that a format has no place for, with the formats that keep it; empty if nothing was left out."""
    if not has_head(learner):
        return ""
    head, vit = head_of(learner), vit_of(learner).config
    if head is None:
        keeps = "safetensors or onnx" if isinstance(learner, MapsClasses) else "safetensors"
        return f"the head of {type(learner).__name__} was left out, as only its own class knows it: --to {keeps} keeps it"
    why = WHY_NOT[to](vit, head)
    keep = [name for name, reason in WHY_NOT.items() if name != "mae" and not reason(vit, head)] + ["safetensors", "onnx"]
    return f"the head was left out, as {why}: --to {', '.join(keep[:-1])} or {keep[-1]} keeps {head.kind}" if why else ""


def keeps_head(learner: Learner, to: str) -> bool:
    """Whether an export in a format has the head of a learner. False if there is none."""
    return has_head(learner) and not (to in WHY_NOT and left_out(learner, to))


def joined(*notes: str) -> str:
    """Sentences for the user as one text."""
    return "; ".join(note for note in notes if note)


def facts_of_head(names: Sequence[str], problem: Problem) -> dict[str, Any]:
    """What the configs of timm and of the MAE release say about a head, from which `unveil.load` rebuilds it."""
    return {"label_names": list(names), "problem_type": problem}


def problem_in(facts: Any) -> Problem:
    """The problem that a config records; by default that of one class per image."""
    found = facts.get("problem_type")
    return found if found in PROBLEMS else "single_label_classification"


def exported_features(learner: Learner, to: str, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
    """The features that an export should have: those of `unveil embed`, or of the encoder alone if the head was left out."""
    if left_out(learner, to):
        found: Tensor = vit_of(learner).features(images, "class" if learner.pool == "class" else "mean")
        return found
    return learner.features(images)
