"""Speed and memory of detectors and segmenters, beside torchvision's Mask R-CNN, and of windows beside global attention.

    python benchmarks/dense.py                                   # small models, on a CPU
    python benchmarks/dense.py --large                           # ViT-B at 1024 and 512 pixels, on a GPU
    python benchmarks/dense.py --only "window" --steps 5

Each row is a process of its own, on random images, each with 8 objects. "step" is a forward and a backward pass in bfloat16 without
the optimiser, "predict" what evaluation does. Memory is the peak of the tensors on a GPU, and on a CPU that of the process, less
what it had with the weights alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import receipt, wait

from unveil.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from unveil.models.pyramid import PyramidConfig, build_pyramid
from unveil.models.upernet import LinearHead, UperNet, UperNetConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig

OBJECTS, CLASSES = 8, 20
Work = tuple[nn.Module, Callable[[], Tensor], Callable[[], Any]]
"""A model, the loss of a batch, and a prediction for it."""


def objects(side: int, count: int, device: torch.device) -> list[dict[str, Tensor]]:
    """The same squares in each of `count` images."""
    corner = torch.arange(OBJECTS, device=device) * (side // OBJECTS // 2)
    boxes = torch.stack([corner, corner, corner + side // 4, corner + side // 4], dim=1).float()
    masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool, device=device)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return [{"boxes": boxes, "labels": torch.arange(OBJECTS, device=device) % CLASSES, "masks": masks} for _ in range(count)]


def body(model: str, side: int, patch: int, config: PyramidConfig) -> Any:
    width, depth, heads = MODELS[model]
    return build_pyramid(
        ViT(ViTConfig(width=width, depth=depth, heads=heads, image_size=(side, side), patch_size=(patch,) * 2)), config
    )


def detector(model: str, side: int, patch: int, batch: int, heads: int, config: PyramidConfig, device: torch.device) -> Work:
    shape = MaskRCNNConfig(head_channels=heads, box_width=4 * heads)
    found = MaskRCNN(body(model, side, patch, config), CLASSES, shape).to(device)
    images, sizes = torch.randn(batch, 3, side, side, device=device), torch.tensor([[side, side]] * batch)
    targets = objects(side, batch, device)
    return found, lambda: total(found.losses(images, targets, sizes)), lambda: found.detect(images, sizes)


def theirs(side: int, batch: int, device: torch.device) -> Work:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    found = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=1 + CLASSES, min_size=side, max_size=side)
    found = found.to(device)
    images = list(torch.rand(batch, 3, side, side, device=device))
    targets = [{**each, "labels": each["labels"] + 1} for each in objects(side, batch, device)]
    return found, lambda: total(found(images, targets)), lambda: found(images)


def segmenter(model: str, side: int, patch: int, batch: int, channels: int, linear: bool, device: torch.device) -> Work:
    pyramid = body(model, side, patch, PyramidConfig(levels="patches" if linear else "depths"))
    head = (LinearHead if linear else UperNet)(pyramid.channels, CLASSES, UperNetConfig(channels=channels))
    found = nn.Sequential(pyramid, head).to(device)
    images, labels = (
        torch.randn(batch, 3, side, side, device=device),
        torch.zeros(batch, side, side, dtype=torch.long, device=device),
    )

    def loss() -> Tensor:
        maps = [each for each in found(images) if each is not None]
        return total({str(i): F.cross_entropy(resized(each), labels) for i, each in enumerate(maps)})

    def resized(logits: Tensor) -> Tensor:
        return F.interpolate(logits.float(), size=(side, side), mode="bilinear")

    return found, loss, lambda: resized(found(images)[0]).argmax(dim=1)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


SMALL = PyramidConfig(channels=64)
CASES: dict[str, tuple[int, Callable[[torch.device], Work]]] = {
    "detect, vit-tiny/8, 256 px, global": (2, partial(detector, "vit-tiny", 256, 8, 2, 64, SMALL)),
    "detect, vit-tiny/8, 256 px, window 8": (2, partial(detector, "vit-tiny", 256, 8, 2, 64, PyramidConfig(channels=64, window=8))),
    "detect, torchvision ResNet-50, 256 px": (2, partial(theirs, 256, 2)),
    "segment, vit-tiny/8, 256 px, UperNet 128": (2, partial(segmenter, "vit-tiny", 256, 8, 2, 128, False)),
    "segment, vit-tiny/8, 256 px, linear": (2, partial(segmenter, "vit-tiny", 256, 8, 2, 128, True)),
}
LARGE: dict[str, tuple[int, Callable[[torch.device], Work]]] = {
    "detect, vit-base/16, 1024 px, global": (1, partial(detector, "vit-base", 1024, 16, 1, 256, PyramidConfig())),
    "detect, vit-base/16, 1024 px, window 14": (1, partial(detector, "vit-base", 1024, 16, 1, 256, PyramidConfig(window=14))),
    "detect, vit-base/16, 1024 px, window 14, relative": (
        1,
        partial(detector, "vit-base", 1024, 16, 1, 256, PyramidConfig(window=14, relative_positions=True)),
    ),
    "detect, torchvision ResNet-50, 1024 px": (1, partial(theirs, 1024, 1)),
    "segment, vit-base/16, 512 px, UperNet 768": (4, partial(segmenter, "vit-base", 512, 16, 4, 768, False)),
    "segment, vit-base/16, 512 px, linear": (4, partial(segmenter, "vit-base", 512, 16, 4, 256, True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="ViT-B instead of the small models")
    parser.add_argument("--only", default="", help="rows whose name has these words")
    parser.add_argument("--steps", type=int, default=3, help="the best of so many steps counts, after one that does not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device, cases = torch.device(args.device), LARGE if args.large else CASES
    if args.case:
        print(json.dumps(measured(*cases[args.case], args.steps, device)))
        return
    print("| model | step, images/s | predict, images/s | peak in a step, GB |\n| --- | --- | --- | --- |")
    for name in cases:
        if args.only in name:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", name]
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            step, predict, peak = json.loads(ran.stdout.splitlines()[-1])
            print(f"| {name} | {step:.2f} | {predict:.2f} | {peak:.2f} |", flush=True)
    print(f"\n{receipt(device)}")


def measured(batch: int, build: Callable[[torch.device], Work], steps: int, device: torch.device) -> tuple[float, float, float]:
    """Images a second in training and prediction, and the peak of memory in training, in GB."""
    torch.manual_seed(0)
    model, loss, predict = build(device)
    model.train()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            found = loss()
        found.backward()
        model.zero_grad()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training = best(step, steps, device)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    model.eval()

    def evaluate() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            predict()

    return batch / training, batch / best(evaluate, steps, device), peak / 1e9


def best(work: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds of the fastest of some runs, after one that is not timed."""
    times = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


if __name__ == "__main__":
    main()
