"""Classifiers of other libraries as learners: an encoder, and its head if unveil has the same kind of head."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from unveil.data.augment import AugmentConfig
from unveil.interop.encoder_only import encoder_only
from unveil.interop.heads import Problem
from unveil.interop.layout_maps import encoder_map
from unveil.interop.layouts import Layout
from unveil.interop.state_dict_map import StateDictMap, TensorName, build_and_load, weight_and_bias
from unveil.learner import Learner
from unveil.methods.supervised import Supervised, SupervisedConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.linear import Linear, LinearConfig
from unveil.tasks.multilabel import MultiLabel, MultiLabelConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune
from unveil.tasks.regression import Regression, RegressionConfig

Pool = Literal["mean", "class"]
Kind = Literal["norm after pooling", "linear probe", "linear"]
PROBE_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Labels(NamedTuple):
    """What a file says about its head."""

    names: Sequence[str] = ()
    """The names of its outputs: classes, labels, or that of a number; empty if they are not recorded."""
    problem: Problem = "single_label_classification"
    """What these outputs are."""


NO_LABELS = Labels()


class Found(NamedTuple):
    """A learner that was loaded."""

    learner: Learner
    matched: int
    """Number of tensors that have a place in it."""
    notes: tuple[str, ...]
    """What was dropped or assumed, for the user."""

    @property
    def description(self) -> str:
        """What it is."""
        names: Sequence[str] = getattr(self.learner, "classes", [])
        if isinstance(self.learner, Regression):
            return f"a regression of {names[0]}"
        kind = "multi-label classifier" if isinstance(self.learner, MultiLabel) else "classifier"
        outputs = "labels" if isinstance(self.learner, MultiLabel) else "classes"
        return f"a {kind} of {len(names):,} {outputs}" if names else "an encoder"


def load_classifier(
    layout: Layout,
    vit: ViTConfig,
    state: Mapping[str, Tensor],
    source: str,
    *,
    pool: Pool,
    labels: Labels = NO_LABELS,
    keep_head: bool = True,
) -> Found:
    """The learner of an encoder's tensors, in eval mode, with its head if there is one that can be kept.

    Args:
        layout: The names of the tensors.
        vit: The config of the encoder.
        state: The tensors.
        source: The file or folder, for messages.
        pool: The features that the classifier takes.
        labels: What the outputs of the head are, and their names; by default scores of classes with numbers as names.
        keep_head: Whether the head takes these features. If not, it is dropped.

    Raises:
        UnveilError: If a tensor is missing or unexpected; heads excepted.
    """
    kind, notes = kind_of_head(layout, vit, state, labels.problem) if keep_head else None, list[str]()
    classes = labels.names
    heads = sorted(name for name in state if layout.heads and name.partition(".")[0] in layout.heads)
    if kind is None and heads:
        notes.append(f"the classifier ({', '.join(heads[:4])}) was dropped, as unveil has no such head: this is the encoder")
        state = {name: value for name, value in state.items() if name not in heads}
    if kind is None:
        names = encoder_map(layout, vit, state=state)
        found, matched = build_and_load(lambda: encoder_only(ViT(vit), source, pool), lambda _: names, state, source)
        return Found(found, matched, tuple(notes))
    head = layout.heads[0]
    count = len(state[f"{head}.1.bias" if kind == "linear probe" else f"{head}.bias"])
    if len(classes) not in (0, count):
        notes.append(f"the config names {len(classes):,} classes, but the classifier has {count:,}, which are numbered instead")
    elif not classes:
        notes.append("the file does not name its classes, so they are numbered")
    names_of_outputs = tuple(classes) if len(classes) == count else tuple(map(str, range(count)))
    inner = replace(vit, norm_after_pooling=False) if kind == "norm after pooling" else vit
    names = encoder_map(layout, inner, state=state) | head_map(layout, kind)
    build_it = partial(build, kind, inner, pool, Labels(names_of_outputs, labels.problem))
    learner, matched = build_and_load(build_it, lambda _: names, state, source)
    return Found(learner, matched, tuple(notes))


def kind_of_head(layout: Layout, vit: ViTConfig, state: Mapping[str, Tensor], problem: Problem) -> Kind | None:
    """The kind of a head; None if there is none, or none that unveil has."""
    if not layout.heads or vit.distillation_token:  # two classifiers, whose scores are averaged
        return None
    weight, probe = state.get(f"{layout.heads[0]}.weight"), state.get(f"{layout.heads[0]}.1.weight")
    of_classes = problem == "single_label_classification"
    if probe is not None and probe.ndim == 2 and probe.shape[1] == vit.width:
        return "linear probe" if of_classes else None
    if weight is None or weight.ndim != 2 or weight.shape[1] != vit.width or (of_classes and len(weight) < 2):
        return None
    if (problem == "regression" and len(weight) != 1) or not (of_classes or vit.final_norm or vit.norm_after_pooling):
        return None  # our regression has one number, and these tasks have a norm
    if f"{layout.heads[0]}.bias" not in state:
        return None
    return "norm after pooling" if vit.norm_after_pooling and not vit.final_norm else "linear"


def head_map(layout: Layout, kind: Kind) -> StateDictMap:
    """The map of the tensors of a head."""
    head = layout.heads[0]
    if kind == "linear probe":
        return {f"head.norm.{name}": TensorName((f"{head}.0.{name}",)) for name in PROBE_BUFFERS} | weight_and_bias(
            "head.linear", f"{head}.1"
        )
    names = weight_and_bias("head", head)
    return names | weight_and_bias("norm", layout.pooled_norm) if kind == "norm after pooling" else names


def build(kind: Kind, vit: ViTConfig, pool: Pool, labels: Labels) -> Learner:
    """An untrained learner of a kind."""
    options: Any = AugmentConfig()
    after, classes = kind == "norm after pooling", labels.names
    if labels.problem == "multi_label_classification":
        return MultiLabel.build(ViT(vit), MultiLabelConfig(pool=pool, fc_norm=after), options, classes)
    if labels.problem == "regression":
        return Regression.build(ViT(vit), RegressionConfig(pool=pool, fc_norm=after), options, classes)
    if kind == "linear probe":
        return Linear.build(ViT(vit), LinearConfig(pool=pool), options, classes)
    if after and pool == "class":
        return PartialFinetune.build(ViT(vit), PartialConfig(blocks=vit.depth, pool=pool), options, classes)
    if after:
        return Finetune.build(ViT(vit), FinetuneConfig(), options, classes)
    supervised = Supervised.build(vit, SupervisedConfig(average=0.0, pool=pool), options)
    supervised.set_classes(classes)
    return supervised
