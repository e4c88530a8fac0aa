"""Exports an encoder or a classifier as an ONNX graph, for programs without torch. Graphs cannot be loaded."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unveil.atomic_files import fresh_name, move_into_place, write_text
from unveil.data.images import read_image
from unveil.errors import UnveilError
from unveil.interop.encoder_only import has_vit, vit_of
from unveil.interop.heads import head_of, left_out
from unveil.interop.image_files import WHITE, image_files, sizes_to_try, transform_of
from unveil.interop.silence import silenced
from unveil.interop.verify_export import (
    Verification,
    difference_of_outputs,
    image_pair,
    largest,
    prepare_like,
    random_images,
    relative_difference,
)
from unveil.learner import Learner
from unveil.protocols import Classifies, MapsClasses

OPSET = 18
CONFIG = "config.json"
SAME_PIXELS = 0.995
"""Share of the pixels whose class is the same. Others lie where two scores are equal but for rounding."""
MAX_BYTES = 1_900_000_000
"""Maximum bytes of weights inside the ONNX file, whose limit is 2 GiB. More weights go to a file `<name>.data` next to it."""


class Outputs(nn.Module):
    """A learner as a module that returns the outputs of its head or else tokens, and features."""

    def __init__(self, learner: Learner, example: Tensor) -> None:
        super().__init__()
        self.learner = learner
        # If the outputs are computed from the features, the encoder runs only once.
        self.head: nn.Module | None = linear_layer(learner)
        if isinstance(learner, MapsClasses):
            return
        if self.head is None and isinstance(learner, Classifies) and isinstance(head := getattr(learner, "head", None), nn.Module):
            features = learner.features(example)
            if head(features).equal(learner.logits(example)):
                self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.learner, MapsClasses):
            return (self.learner.map_logits(images),)
        if self.head is not None:
            features = self.learner.features(images)
            return self.head(features), features
        if isinstance(self.learner, Classifies):
            return self.learner.logits(images), self.learner.features(images)
        tokens: Tensor = self.learner.encoder(images)
        return tokens, vit_of(self.learner).pooled(tokens, self.learner.pool)


def linear_layer(learner: Learner) -> nn.Linear | None:
    """The linear layer from features to the outputs of a built-in head, a number in its own unit; None for other learners."""
    head = head_of(learner)
    if head is None:
        return None
    layer = nn.Linear(head.weight.shape[1], len(head.weight))
    layer.load_state_dict({"weight": head.weight, "bias": head.bias})
    return layer.to(vit_of(learner).embed.weight.device)


def outputs_of(learner: Learner) -> dict[str, Any]:
    """The names of the outputs of a graph, and what they are: see `export`."""
    head = head_of(learner)
    if isinstance(learner, MapsClasses):
        return {"outputs": ["scores"], "classes": list(learner.classes), **learner.graph_facts()}
    if head is not None and head.problem == "regression":
        return {"outputs": ["values", "features"], "problem_type": head.problem, "columns": list(head.names)}
    if not isinstance(learner, Classifies):
        return {"outputs": ["tokens", "features"]}
    problem = {"problem_type": head.problem} if head is not None else {}
    return {"outputs": ["scores", "features"], **problem, "classes": list(learner.classes)}


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT."""
    return has_vit(learner)


def config_json(learner: Learner) -> dict[str, Any]:
    """What a program needs besides the graph: how images are prepared, and the names of the classes. Sizes are height and width."""
    vit = vit_of(learner).config
    crop = {
        "resize_to": list(transform_of(vit).fitted),
        "crop_pct": vit.crop_pct,
        "crop_mode": vit.crop_mode,
        "interpolation": vit.interpolation,
        "pool": learner.pool,
        "prefix_tokens": vit.prefix_tokens,
    }
    return {
        "format": "unveil onnx",
        **outputs_of(learner),
        "image_size": list(vit.image_size),
        "channels": vit.channels,
        "rescale_factor": 1 / WHITE[vit.bit_depth],
        "mean": list(vit.mean),
        "std": list(vit.std),
        **({} if isinstance(learner, MapsClasses) else crop),
    }


def export(learner: Learner, out: str | Path) -> Path:
    """Writes a graph whose input is `images` (B, C, H, W), normalised float32 images, with any batch size; and `config.json`.

    The first output of a classifier is `scores` (B, K), before the softmax, or before the sigmoid of a model with several labels
    per image: `problem_type` says which. That of a regression is `values` (B, 1), in the unit of the labels. That of other
    learners is `tokens` (B, L + N, D), after the final norm, with the class token and other leading tokens first: `prefix_tokens`
    is their number. The second output is `features` (B, D), as `unveil embed` writes them. A segmenter has one output, `scores`
    (B, K, H, W) of each pixel of a window. How images are prepared, and for a segmenter cut into windows, and the names of the
    classes or of the number, are in the metadata of the graph, as JSON by key, and in `config.json` beside it.

    Args:
        learner: A learner with a ViT.
        out: The file. Weights of more than 1.9 GB go to `<out>.data`.

    Raises:
        UnveilError: If the extra `onnx` is not installed, or the learner has no ViT.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UnveilError("ONNX export needs the packages onnx and onnxscript: run pip install 'unveil[onnx]'")
    out, facts, vit = Path(out), config_json(learner), vit_of(learner).config
    images = torch.zeros(2, vit.channels, *vit.image_size, device=vit_of(learner).embed.weight.device)  # 1 would become a constant
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = fresh_name(out)
    folder.mkdir()
    try:
        with silenced(), torch.no_grad():
            graph = Outputs(learner.eval(), images)
            program = torch.onnx.export(
                graph,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=["images"],
                output_names=facts["outputs"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
            assert program is not None
            program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
            external = sum(x.numel() * x.element_size() for x in graph.state_dict().values()) > MAX_BYTES
            program.save(folder / out.name, external_data=external)
        write_text(folder / CONFIG, json.dumps(facts, indent=2) + "\n")
        for path in sorted(folder.iterdir(), reverse=True):  # move the weights before the graph that refers to them
            move_into_place(path, out.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


@torch.no_grad()
def verify(learner: Learner, out: Path) -> Verification:
    """Compares the outputs of onnxruntime with those of the learner. Images are prepared by the metadata of the graph."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Verification(None, "onnxruntime is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    if isinstance(learner, MapsClasses):
        return verify_maps(learner, session)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    vit = vit_of(learner).config
    recorded = replace(
        vit,
        image_size=tuple(facts["image_size"]),
        crop_pct=facts["crop_pct"],
        crop_mode=facts["crop_mode"],
        interpolation=facts["interpolation"],
        channels=facts["channels"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )
    pair = image_pair(vit, prepare_like(recorded))
    found, features = (torch.from_numpy(x) for x in session.run(None, {"images": pair.theirs.numpy()}))
    difference, compared = difference_of_outputs(learner, found, pair.ours)
    difference = largest(difference, relative_difference(features, learner.features(pair.ours)))
    note = left_out(learner, "onnx") if "tokens" in facts["outputs"] else ""
    return Verification(difference, "onnxruntime", f"features and {compared} of {pair.source}", note)


def verify_maps(learner: MapsClasses, session: Any) -> Verification:
    """Compares the scores of all windows of image files, and the maps that follow from them."""
    assert isinstance(learner, Learner)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    if facts != json.loads(json.dumps(config_json(learner))):
        return Verification(float("nan"), "onnxruntime", "metadata of the graph")
    vit, differences = vit_of(learner).config, [0.0]

    def score(images: Tensor) -> Tensor:
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        differences.append(relative_difference(found, learner.map_logits(images)))
        return found

    with image_files(vit, sizes_to_try(vit)) as paths:
        for path in paths:
            pixels = torch.from_numpy(read_image(path, channels=vit.channels)).permute(2, 0, 1)
            same = learner.classes_of(pixels, score) == learner.classes_of(pixels, learner.map_logits)
            differences.append(0.0 if float(same.float().mean()) > SAME_PIXELS else float("nan"))
        if not paths:
            score(random_images(vit))
        return Verification(largest(*differences), "onnxruntime", f"class maps of {'image files' if paths else 'random images'}")
