"""Detection and segmentation: the same losses, gradients and predictions on a GPU as on the CPU."""

import copy
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.ops import box_iou

from tests.gpu.test_devices import NO_GPU
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import BoxTargets, PixelTargets
from unveil.learner import Task
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.detect import Detect, DetectConfig
from unveil.tasks.segment import Segment, SegmentConfig

pytestmark = [pytest.mark.gpu, NO_GPU]

VIT = ViTConfig(width=48, depth=4, heads=3, image_size=(64, 64), patch_size=(8, 8))
PLAIN = AugmentConfig(crop="none")
OBJECTS = 6


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products and convolutions in float32; by default those of cuDNN are in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def images(targets: BoxTargets | PixelTargets) -> Batch:
    """Four images of three sizes on a canvas of 72 x 60."""
    chance = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 3, 9, 10), generator=chance).repeat_interleave(8, dim=2).repeat_interleave(6, dim=3)
    sizes = torch.tensor([[72, 60], [64, 60], [72, 50], [72, 60]])
    return Batch(pixels.to(torch.uint8), sizes, sample_keys(0, 0, 4), targets)


def boxes() -> BoxTargets:
    chance = torch.Generator().manual_seed(2)
    corner = torch.rand(4, OBJECTS, 2, generator=chance) * 30
    sides = 6 + torch.rand(4, OBJECTS, 2, generator=chance) * 14
    found = torch.cat([corner, corner + sides], dim=2)
    rows, columns = torch.arange(72)[:, None] + 0.5, torch.arange(60) + 0.5
    left, top, right, bottom = found[..., None, None].unbind(dim=2)
    masks = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    labels = torch.randint(0, 3, (4, OBJECTS), generator=chance)
    return BoxTargets(found, labels, torch.zeros(4, OBJECTS, dtype=torch.bool), sides.prod(dim=2), masks)


def maps() -> PixelTargets:
    return PixelTargets(torch.randint(0, 3, (4, 72, 60), generator=torch.Generator().manual_seed(3)))


def learned(model: Task, batch: Batch, device: str) -> tuple[float, Tensor, Task]:
    """The loss of a batch that was augmented on the CPU, all gradients in one vector, and the model."""
    model = copy.deepcopy(model).to(device).train()
    torch.manual_seed(0)
    loss = model(batch.to(torch.device(device))).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu(), model.eval()


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_a_segmenter(head: Literal["upernet", "linear"]) -> None:
    torch.manual_seed(0)
    model, raw = Segment(ViT(VIT), ["a", "b", "c"], SegmentConfig(head=head, drop_path=0.0), PLAIN), images(maps())
    model.head.apply(lambda part: setattr(part, "p", 0.0) if isinstance(part, torch.nn.Dropout2d) else None)
    (loss, slope, here), (other, same, there) = (learned(model, model.augment(raw), each) for each in ("cpu", "cuda"))
    assert other == pytest.approx(loss, rel=1e-4)
    assert (same - slope).norm() < 1e-3 * slope.norm()
    true, found = here.predict(raw), there.predict(raw.to(torch.device("cuda"))).cpu()
    assert (true == found).float().mean() > 0.998  # bytes are resized in half precision on a GPU


def test_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first anchors and proposals in place of random ones, since a GPU draws others."""
    monkeypatch.setattr(_utils.torch, "randperm", lambda n, device=None: torch.arange(n, device=device))
    torch.manual_seed(0)
    options = DetectConfig(channels=32, box_convs=1, mask_convs=1, box_width=64, proposals=200, drop_path=0.0)
    model, raw = Detect(ViT(VIT), ["a", "b", "c"], options, PLAIN), images(boxes())
    with torch.no_grad():
        model.detector.roi.box_predictor.cls_score.weight.mul_(50)  # so that scores differ, and with them their order is known
    (loss, slope, here), (other, same, there) = (learned(model, model.augment(raw), each) for each in ("cpu", "cuda"))
    assert other == pytest.approx(loss, rel=1e-3)
    assert (same - slope).norm() < 1e-2 * slope.norm()
    for true, found in zip(here.predict(raw), there.predict(raw.to(torch.device("cuda"))), strict=True):
        near = (box_iou(true.boxes, found.boxes) > 0.97) & (true.labels[:, None] == found.labels)
        near &= (true.scores[:, None] - found.scores).abs() < 0.01
        assert len(true.boxes) > 20
        assert near.any(dim=1).float().mean() > 0.9
