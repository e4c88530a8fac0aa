"""Heads in the layout of the public MAE release, and the JSON beside such a file: what it does not record, for `unveil.load`.

The file itself stays one that the public code reads. The JSON names the SHA-256 of its tensors, so it is not taken for that of
another file.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.atomic_files import write_text
from unveil.interop.classifiers import Labels
from unveil.interop.encoder_only import vit_of
from unveil.interop.heads import Head, classifier_state, facts_of_head, head_for, plain_config, problem_in
from unveil.interop.image_files import WHITE, transform_of
from unveil.interop.layout_maps import encoder_map
from unveil.interop.layouts import RELEASE
from unveil.json_files import json_text, read_json
from unveil.learner import Learner
from unveil.methods.mae import MAE
from unveil.models.weights import digest
from unveil.train.checkpoint import Tensors

FORMAT_NAME = "unveil mae"
PREPROCESSING = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "bit_depth")
"""Fields of a `ViTConfig` that no tensor shows."""


def state_with_head(learner: Learner, head: Head) -> Tensors:
    """The tensors of an encoder and its head, with the names of the release's fine-tuned models, or of its linear probes.

    Its models have the final norm and take the class token; or have the norm after the mean, which is named `fc_norm`. The head of
    a linear probe is a batch norm and a linear layer, `head.0` and `head.1`.
    """
    names = encoder_map(RELEASE, plain_config(vit_of(learner).config))
    norm = "fc_norm" if head.pool == "mean" else RELEASE.norm
    if head.probe is None:
        return classifier_state(learner, head, names, norm=norm, linear="head")
    state = classifier_state(learner, head, names, norm=norm, linear="head.1")
    layers = {"head.0": head.probe.norm, "head.1": head.probe.linear}
    return state | {f"{name}.{leaf}": x.clone().cpu() for name, layer in layers.items() for leaf, x in layer.state_dict().items()}


def place_of(path: Path) -> Path:
    """The path of the JSON beside a file."""
    return path.with_name(f"{path.name}.json")


def write_facts(learner: Learner, path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes the JSON beside a file: how images are prepared, the shape, the features, and what a head predicts."""
    vit, head = vit_of(learner).config, head_for(learner, "mae")
    values = asdict(vit)
    facts = {
        "format": FORMAT_NAME,
        "sha256": digest(state, {}),
        "image_size": list(vit.image_size),
        "heads": vit.heads,
        **{name: values[name] for name in PREPROCESSING},
        "resize_to": list(transform_of(vit).fitted),
        "rescale_factor": 1 / WHITE[vit.bit_depth],
        "pool": learner.pool,
    }
    if head is not None:
        facts |= facts_of_head(head.names, head.problem)
    if isinstance(learner, MAE) and "decoder_pred.weight" in state:
        facts |= {"decoder_heads": learner.decoder.config.heads, "target": learner.config.target}
    write_text(place_of(path), json_text(facts))


def read_facts(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The JSON beside a file; empty if there is none, or if it is that of other tensors."""
    place = place_of(path)
    found = read_json(place) if place.is_file() else {}
    own = found.get("format") == FORMAT_NAME and found.get("sha256") == digest(state, {})
    return dict(found) if own else {}


def preprocessing_in(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `ViTConfig` in this JSON."""
    return {name: tuple(value) if isinstance(value := facts[name], list) else value for name in PREPROCESSING if name in facts}


def labels_in(facts: Mapping[str, Any]) -> Labels:
    """What this JSON says about a head."""
    names = facts.get("label_names")
    return Labels([str(name) for name in names] if isinstance(names, list) else [], problem_in(facts))
