"""Exports an encoder or a classifier as an ONNX graph, for programs without torch. Graphs cannot be loaded."""

import importlib.util
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from unveil.atomic_files import fresh_name, move_into_place
from unveil.errors import UnveilError
from unveil.interop.encoder_only import has_vit, vit_of
from unveil.interop.silence import silenced
from unveil.interop.verify_export import Verification, outputs_for_images, random_images, relative_difference
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.protocols import Classifies

OPSET = 18
MAX_BYTES = 1_900_000_000
"""Maximum bytes of weights inside the ONNX file, whose limit is 2 GiB. More weights go to a file `<name>.data` next to it."""


class ClassScores(nn.Module):
    """A classifier as a module whose forward pass returns class scores."""

    def __init__(self, classifier: Classifies) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.logits(images)


def writes(learner: Learner) -> bool:
    """Whether a learner has a ViT."""
    return has_vit(learner)


def export(learner: Learner, out: str | Path) -> Path:
    """Writes a graph whose input is `images` (B, C, H, W), normalised float32 images, with any batch size.

    The output of a classifier is `scores` (B, K). The output of other learners is `tokens` (B, 1 + N, D), after the final norm.

    Args:
        learner: A learner with a ViT.
        out: The file. Weights of more than 1.9 GB go to `<out>.data`.

    Raises:
        UnveilError: If the extra `onnx` is not installed, or the learner has no ViT.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UnveilError("ONNX export needs the packages onnx and onnxscript: run pip install 'unveil[onnx]'")
    out, encoder = Path(out), vit_of(learner)
    vit: ViTConfig = encoder.config
    classifier = isinstance(learner, Classifies)
    graph = (ClassScores(learner) if isinstance(learner, Classifies) else encoder).eval()
    device = encoder.class_token.device
    images = torch.zeros(2, vit.channels, *vit.image_size, device=device)  # a batch size of 1 would become a constant
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = fresh_name(out)
    folder.mkdir()
    try:
        with silenced(), torch.no_grad():
            torch.onnx.export(
                graph,
                (images,),
                folder / out.name,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=["images"],
                output_names=["scores" if classifier else "tokens"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=sum(x.numel() * x.element_size() for x in graph.state_dict().values()) > MAX_BYTES,
            )
        for path in sorted(folder.iterdir(), reverse=True):  # move the weights before the graph that refers to them
            move_into_place(path, out.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def verify(learner: Learner, out: Path) -> Verification:
    """Compares the outputs of onnxruntime with those of the learner."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Verification(None, "onnxruntime is not installed")
    images = random_images(vit_of(learner).config)
    wanted, compared = outputs_for_images(learner, images)
    return Verification(relative_difference(run_graph(out, images), wanted), "onnxruntime", compared)


def run_graph(path: Path, images: Tensor) -> Tensor:
    """The output of a graph, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
