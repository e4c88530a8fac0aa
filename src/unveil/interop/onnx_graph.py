"""An encoder or a classifier as an ONNX graph, for programs without torch."""

import importlib.util
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from unveil.errors import UnveilError
from unveil.interop.files import fresh_name, settle
from unveil.interop.silence import silenced
from unveil.learner import Task
from unveil.methods.supervised import Supervised
from unveil.models.vit import ViT, ViTConfig

OPSET = 18
LARGEST = 1_900_000_000
"""Bytes of weights that fit into one ONNX file, whose limit is 2 GiB; more stand beside it, in `<name>.data`."""


class Predict(nn.Module):
    """A task whose forward pass is its prediction."""

    def __init__(self, task: Task | Supervised) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        return self.task.predict(images)


def export(model: nn.Module, out: str | Path) -> Path:
    """Writes a graph from `images` (B, C, H, W), float32 and normalised, of any batch size.

    Args:
        model: A `Task` or a `Supervised`, for `scores` (B, K); or a ViT or a learner that has one, for `tokens` (B, 1 + N, D),
            after the last norm.
        out: The file; weights of more than 1.9 GB go to `<out>.data` beside it.

    Raises:
        UnveilError: When the extra `onnx` is not installed, or there is no encoder.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UnveilError("ONNX export needs the packages onnx and onnxscript: run pip install 'unveil[onnx]'")
    out = Path(out)
    encoder = model if isinstance(model, ViT) else getattr(model, "encoder", None)
    if not isinstance(encoder, ViT):
        raise UnveilError(f"a {type(model).__name__} has no encoder of images that could become a graph")
    vit: ViTConfig = encoder.config
    scores = isinstance(model, Task | Supervised)
    graph = (Predict(model) if isinstance(model, Task | Supervised) else encoder).eval()
    device = encoder.class_token.device
    images = torch.zeros(2, vit.channels, *vit.image_size, device=device)  # 1 would be taken for a constant
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
                output_names=["scores" if scores else "tokens"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=sum(x.numel() * x.element_size() for x in graph.state_dict().values()) > LARGEST,
            )
        for path in sorted(folder.iterdir(), reverse=True):  # the weights before the graph that needs them
            settle(path, out.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out
