"""Mask R-CNN against torchvision's with its conventions, and each difference to it by itself."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN as Peer
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import resnet18
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from unveil.errors import UnveilError
from unveil.models.mask_rcnn import TORCHVISION, MaskRCNN, MaskRCNNConfig
from unveil.models.pyramid import PyramidConfig, build_pyramid
from unveil.models.roi_heads import RoIPool, anchor_grid, anchors_of, box_loss, mask_loss, mask_targets
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig

K = 3
ENCODER = ViTConfig(width=16, depth=2, heads=2, image_size=(64, 64), patch_size=(8, 8))
SMALL = MaskRCNNConfig(head_channels=8, box_width=16, box_convs=1, mask_convs=1, rpn_convs=1, rpn_after_nms=(100, 100))


class Maps(nn.Module):
    """torchvision's backbone in the place of a pyramid, without the level that it adds itself."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.channels, self.strides = backbone, [backbone.out_channels] * 4, [4, 8, 16, 32]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [each for name, each in self.backbone(images).items() if name != "pool"]


def small(**changes: object) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(build_pyramid(ViT(ENCODER), PyramidConfig(channels=8)), K, replace(SMALL, **changes))


def pictures(height: int = 64, width: int = 96, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def objects(boxes: list[list[float]], labels: list[int], height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[math.ceil(top) : int(bottom), math.ceil(left) : int(right)] = True
        mask[math.ceil(top), math.ceil(left)] = False  # so that boxes and masks differ
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "masks": masks,
    }


TARGETS = [objects([[3, 5, 40, 30.5], [20.25, 8, 90, 60], [50, 40, 62, 50]], [0, 2, 1]), objects([[10, 10, 42, 60]], [1])]
SIZES = torch.tensor([[64, 96], [64, 64]])


@pytest.fixture(scope="module")
def parity() -> tuple[MaskRCNN, Peer, torch.Tensor]:
    """Ours and torchvision's with the same weights, and images of which the second is padded."""
    torch.manual_seed(0)
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(resnet18(norm_layer=FrozenBatchNorm2d), stages, [64, 128, 256, 512], 16)
    peer = Peer(
        backbone,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=30,
        box_detections_per_img=5,
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, K + 1),
        mask_head=MaskRCNNHeads(16, (24, 24), 1),
        mask_predictor=MaskRCNNPredictor(24, 24, K + 1),
        min_size=64,
        max_size=96,
    )
    peer.transform._skip_resize = True  # which draws a random number
    shape = {"head_channels": 24, "box_width": 32, "mask_convs": 2, "rpn_after_nms": (200, 30), "detections": 5}
    ours = MaskRCNN(Maps(backbone), K, MaskRCNNConfig(**{**TORCHVISION, **shape}))
    ours.rpn.head.load_state_dict(peer.rpn.head.state_dict())
    state = {name.replace("fc6", "1").replace("fc7", "3"): x for name, x in peer.roi_heads.state_dict().items()}
    ours.roi.load_state_dict(state)
    images = pictures()
    images[1, :, :, 64:] = 0
    return ours, peer, images


def test_losses_are_those_of_torchvision(parity):
    ours, peer, images = parity
    theirs = [{**t, "labels": t["labels"] + 1, "masks": t["masks"].byte()} for t in TARGETS]
    theirs[1]["masks"] = theirs[1]["masks"][:, :, :64]
    torch.manual_seed(4)
    true = peer.train()([images[0], images[1, :, :, :64]], theirs)
    torch.manual_seed(4)
    found = ours.train().losses(images, TARGETS, SIZES)
    assert found.keys() == true.keys()
    for name in found:
        assert torch.equal(found[name], true[name]), name
        assert found[name] > 0
    gradients = []
    for model, losses in ((ours, found), (peer, true)):
        model.zero_grad()
        sum(losses.values()).backward()
        stages = (ours.pyramid, model.rpn, model.roi if model is ours else model.roi_heads)
        gradients.append([p.grad.clone() for stage in stages for p in stage.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_detections_are_those_of_torchvision(parity, monkeypatch):
    ours, peer, images = parity
    monkeypatch.setattr(peer.transform, "postprocess", lambda found, sizes, originals: found)
    monkeypatch.setattr(peer.roi_heads, "score_thresh", 0.2)
    monkeypatch.setattr(ours.roi, "score_thresh", 0.2)
    for peer_found, found in zip(peer.eval()([images[0], images[1, :, :, :64]]), ours.eval().detect(images, SIZES), strict=True):
        assert 0 < len(found.boxes) <= 5
        assert torch.equal(found.boxes, peer_found["boxes"])
        assert torch.equal(found.scores, peer_found["scores"])
        assert torch.equal(found.labels, peer_found["labels"] - 1)
        assert torch.equal(found.masks, peer_found["masks"][:, 0])


def test_heads_of_vitdet():
    """The sizes of detectron2's ViTDet, counted by hand; it has no box of the background."""
    with torch.device("meta"):
        vit = ViT(ViTConfig(width=768, depth=1, heads=12, image_size=(224, 224), patch_size=(16, 16)))
        model = MaskRCNN(build_pyramid(vit, PyramidConfig()), 80)
    count = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in {"rpn": model.rpn, "box": model.roi.box_head, "mask": model.roi.mask_head}.items()
    }
    conv, norm = 256 * 256 * 9, 2 * 256
    assert count["rpn"] == 2 * (conv + 256) + 256 * 3 + 3 + 256 * 12 + 12
    assert count["box"] == 4 * (conv + norm) + 256 * 49 * 1024 + 1024
    assert count["mask"] == 4 * (conv + norm)
    assert model.strides == (4, 8, 16, 32, 64)
    assert [model.config.anchor_scale * s for s in model.strides] == [32, 64, 128, 256, 512]


def test_maps_of_different_widths_are_refused():
    pyramid = build_pyramid(ViT(ENCODER), PyramidConfig(levels="depths"))
    assert MaskRCNN(pyramid, K, SMALL).pyramid is pyramid
    pyramid.channels = [4, 8, 16, 16]
    with pytest.raises(UnveilError, match="a detector needs the same in all"):
        MaskRCNN(pyramid, K, SMALL)


# Difference 1: where RoIAlign looks.


def ramp(stride: float, rows: int = 16, columns: int = 24) -> torch.Tensor:
    """A map whose two channels are the coordinates x and y, in pixels of the image, of the middle of each value."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) * stride, (torch.arange(columns) + 0.5) * stride, indexing="ij")
    return torch.stack([x, y])[None]


@pytest.mark.parametrize("stride", [4, 3.5])
@pytest.mark.parametrize("ratio", [0, 2])
def test_aligned_pooling_sees_the_middle_of_its_cells(stride, ratio):
    box = torch.tensor([[13.0, 9.0, 55.0, 37.0]])
    found = RoIPool([stride], 7, ratio)([ramp(stride)], [box])
    middle_x = 13 + (torch.arange(7) + 0.5) * 42 / 7
    middle_y = 9 + (torch.arange(7) + 0.5) * 28 / 7
    torch.testing.assert_close(found[0, 0], middle_x.expand(7, 7), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[0, 1], middle_y[:, None].expand(7, 7), rtol=0, atol=1e-3)
    shifted = RoIPool([stride], 7, ratio, aligned=False)([ramp(stride)], [box])
    torch.testing.assert_close(shifted[0, 0], middle_x.expand(7, 7) + stride / 2, rtol=0, atol=1e-3)  # torchvision's half pixel


# Difference 2: the loss of boxes.


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_the_loss_of_boxes_by_hand(beta):
    found, true = torch.tensor([[0.05, -0.5, 2.0, 0.0]]), torch.zeros(1, 4)
    total = 0.0
    for error in (0.05, 0.5, 2.0, 0.0):
        total += 0.5 * error**2 / beta if error < beta else error - 0.5 * beta
    torch.testing.assert_close(box_loss(found, true, beta, 8), torch.tensor(total / 8))
    assert box_loss(found[:0], true[:0], beta, 0) == 0


def test_the_option_of_the_loss_reaches_both_stages():
    losses = []
    for beta in (0.0, 5.0):
        torch.manual_seed(2)
        losses.append(small(smooth_l1_beta=beta).losses(pictures(), TARGETS, SIZES))
    for name in ("loss_rpn_box_reg", "loss_box_reg"):
        assert losses[1][name] < losses[0][name]
    assert losses[0]["loss_objectness"] == losses[1]["loss_objectness"]


# Difference 3: padding and normalisation are the caller's.


def test_images_reach_the_pyramid_as_they_are():
    model, seen = small(), []
    model.pyramid.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = pictures(64, 96) * 100 + 7
    model.eval().detect(images, SIZES)
    assert seen[0] is images


def test_strides_do_not_depend_on_the_padding():
    """torchvision guesses the stride of a map from the largest image without its padding."""
    maps = [torch.randn(1, 2, 32 // f, 32 // f) for f in (1, 2, 4, 8)]
    boxes = [torch.tensor([[4.0, 4.0, 30.0, 30.0]])]
    peer = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(i): each for i, each in enumerate(maps)}
    ours = RoIPool([4, 8, 16, 32], 7, 2, aligned=False)(maps, boxes)
    assert torch.equal(ours, peer(named, boxes, [(128, 128)]))
    wrong = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(named, boxes, [(40, 40)])
    assert not torch.allclose(ours, wrong, atol=0.1)


def test_boxes_go_to_the_map_of_their_size():
    pool = RoIPool([4, 8, 16, 32], 7)
    sides = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert pool.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert RoIPool([2, 4, 8, 16], 7).levels(boxes).tolist() == [0, 1, 2, 2, 3, 3, 3, 3]  # 224 pixels from stride 16 as well
    found = pool([torch.full((1, 1, 8, 8), float(i)) for i in range(4)], [boxes[[0, 2]], boxes[[4, 6]]][:1])
    assert found.amax(dim=(1, 2, 3)).tolist() == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("masks", [True, False])
def test_nothing_is_found_in_the_padding(masks):
    model = small(masks=masks, score_threshold=0.0, detections=1000).eval()
    sizes = torch.tensor([[20, 90], [64, 33]])
    for found, (height, width) in zip(model.detect(pictures(), sizes), sizes.tolist(), strict=True):
        assert len(found.boxes) > 10
        assert found.boxes.min() >= 0
        assert found.boxes[:, [0, 2]].max() <= width
        assert found.boxes[:, [1, 3]].max() <= height
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.masks is None if not masks else found.masks.shape == (len(found.boxes), 28, 28)
        assert (found.scores.diff() <= 0).all()


# Difference 4: no class for the background.


@torch.no_grad()
def test_the_first_class_is_0():
    model = small(score_threshold=0.5).eval()
    for chosen in range(K):
        bias = torch.full((K + 1,), -5.0)
        bias[1 + chosen] = 5
        model.roi.box_predictor.cls_score.bias.copy_(bias)
        logits = model.roi.mask_predictor.mask_fcn_logits
        logits.weight.zero_()
        logits.bias.copy_(torch.arange(K + 1.0))
        found = model.detect(pictures(), SIZES)[0]
        assert len(found.labels) > 0
        assert (found.labels == chosen).all()
        torch.testing.assert_close(found.masks, torch.full_like(found.masks, 1 + chosen).sigmoid())
    model.roi.box_predictor.cls_score.bias.copy_(torch.tensor([9.0, -5, -5, -5]))
    assert len(model.detect(pictures(), SIZES)[0].labels) == 0


def test_labels_are_learned_from_0():
    """A score for the true classes lowers the loss; for others it raises it."""
    losses = []
    for favoured in (None, 1, 2):
        model = small()
        with torch.no_grad():
            if favoured is not None:
                model.roi.box_predictor.cls_score.bias[favoured] = 1.0
        torch.manual_seed(3)
        targets = [{**t, "labels": torch.zeros_like(t["labels"])} for t in TARGETS]
        found = model.losses(pictures(), targets, SIZES)
        losses.append(found["loss_classifier"].item())
        assert targets[0]["labels"].sum() == 0  # what was given did not change
    assert losses[2] > losses[1]


# Difference 5: how often RoIAlign looks.


def bilinear(values: torch.Tensor, y: float, x: float) -> float:
    y, x = min(max(y, 0), values.shape[0] - 1), min(max(x, 0), values.shape[1] - 1)
    i, j = min(int(y), values.shape[0] - 2), min(int(x), values.shape[1] - 2)
    below, beside = y - i, x - j
    corner = values[i : i + 2, j : j + 2].tolist()
    upper, lower = (row[0] * (1 - beside) + row[1] * beside for row in corner)
    return upper * (1 - below) + lower * below


@pytest.mark.parametrize("ratio", [0, 2])
def test_pooling_by_hand(ratio):
    values = torch.randn(12, 16)
    left, top, right, bottom = box = [3.0, 5.0, 58.0, 40.0]  # 13.75 x 8.75 values of the map in 3 x 3 cells
    found = RoIPool([4], 3, ratio)([values[None, None]], [torch.tensor([box])])[0, 0]
    height, width = (bottom - top) / 4 / 3, (right - left) / 4 / 3
    down, across = (ratio or math.ceil(height)), (ratio or math.ceil(width))
    assert (down, across) == ((2, 2) if ratio else (3, 5))
    for i in range(3):
        for j in range(3):
            samples = [
                bilinear(values, top / 4 - 0.5 + (i + (a + 0.5) / down) * height, left / 4 - 0.5 + (j + (b + 0.5) / across) * width)
                for a in range(down)
                for b in range(across)
            ]
            assert found[i, j].item() == pytest.approx(sum(samples) / len(samples), abs=1e-4)


# What else differs from torchvision.


def test_anchors_by_hand():
    exact, rounded = (anchors_of(32, (0.5, 1.0, 2.0), each) for each in (False, True))
    torch.testing.assert_close(exact[:, 2] - exact[:, 0], torch.tensor([32 * 2**0.5, 32, 32 / 2**0.5]))
    torch.testing.assert_close(exact[:, 3] - exact[:, 1], torch.tensor([32 / 2**0.5, 32, 32 * 2**0.5]))
    assert rounded[0].tolist() == [-23, -11, 23, 11]
    grid = anchor_grid(exact, 2, 3, 3.5)
    assert grid.shape == (2 * 3 * 3, 4)
    torch.testing.assert_close(grid[3 * (3 * 1 + 2) + 1], torch.tensor([7 - 16.0, 3.5 - 16, 7 + 16, 3.5 + 16]))


def test_anchors_follow_the_patches():
    pyramid = build_pyramid(ViT(replace(ENCODER, patch_size=(14, 14), image_size=(28, 28))), PyramidConfig(channels=8))
    model = MaskRCNN(pyramid, K, SMALL)
    assert model.strides == (3.5, 7, 14, 28, 56)
    found = model.propose(model.pyramid(pictures(28, 42)), torch.tensor([[28, 42]] * 2))
    anchors = found.anchors[0]
    assert len(anchors) == 3 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)
    torch.testing.assert_close(anchors[1], torch.tensor([-14.0, -14, 14, 14]))
    torch.testing.assert_close(anchors[3 * 95 + 1], torch.tensor([38.5 - 14, 24.5 - 14, 38.5 + 14, 24.5 + 14]))


def test_true_masks_in_their_boxes():
    mask = torch.zeros(40, 20, 30, dtype=torch.bool)
    mask[:, 5:15, 10:18] = True
    mask[35, 5:15, 10:18] = False
    boxes = torch.tensor([[10.0, 5.0, 26.0, 15.0], [9.0, 5.0, 17.0, 13.0], [10.0, 5.0, 26.0, 15.0]])
    found = mask_targets(mask, boxes, torch.tensor([0, 39, 35]), 4)
    assert found[0].tolist() == [[1, 1, 0, 0]] * 4
    assert found[1].tolist() == [[1, 1, 1, 1]] * 4  # half of a cell is enough
    assert not found[2].any()
    shares = mask_targets(mask, boxes, torch.tensor([0, 39, 35]), 4, binary=False)
    torch.testing.assert_close(shares[1, 0], torch.tensor([0.5, 1, 1, 1]))
    assert mask_targets(mask, boxes[:0], torch.tensor([], dtype=torch.long), 4).shape == (0, 4, 4)


def test_the_loss_of_masks_by_hand():
    logits, true, labels = torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4).round(), torch.tensor([2, 1])
    total = 0.0
    for n in range(2):
        for y, p in zip(true[n].flatten(), logits[n, labels[n]].flatten().sigmoid(), strict=True):
            total -= (y * p.log() + (1 - y) * (1 - p).log()).item()
    assert mask_loss(logits, labels, true).item() == pytest.approx(total / 32, abs=1e-5)


# Awkward input.


@pytest.mark.parametrize("full", [[], [0], [0, 1]])
@pytest.mark.parametrize("masks", [True, False])
def test_images_without_objects(full, masks):
    model = small(masks=masks).train()
    targets = [TARGETS[i] if i in full else objects([], []) for i in range(2)]
    assert all(len(t["boxes"]) == 0 and t["boxes"].shape == (0, 4) for i, t in enumerate(targets) if i not in full)
    losses = model.losses(pictures(), targets, SIZES)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    if not full:
        assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0


def test_boxes_alone_need_no_masks():
    model = small(masks=False)
    targets = [{name: x for name, x in t.items() if name != "masks"} for t in TARGETS]
    losses = model.train().losses(pictures(), targets, SIZES)
    assert losses.keys() == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert not any("mask" in name for name, _ in model.named_parameters())
    for target in (targets[0], {**targets[0], "masks": None}):
        with pytest.raises(UnveilError, match=r"the objects have no masks.*use --no-masks"):
            small().losses(pictures(count=1), [target], SIZES[:1])


def test_boxes_without_area_do_not_count():
    losses = []
    flat = objects([[5, 5, 5, 20], [30, 30, 40, 30], [3, 5, 40, 30.5]], [1, 1, 0])
    for target in (flat, {name: x[2:] for name, x in flat.items()}):
        torch.manual_seed(5)
        losses.append(small().losses(pictures(count=1), [target], SIZES[:1]))
    for name, loss in losses[0].items():
        assert loss == losses[1][name]
        assert loss.isfinite()


@torch.no_grad()
def test_many_objects_in_an_image():
    found = small(score_threshold=0.0, detections=250, nms=1.0).eval().detect(pictures(), SIZES)
    assert [len(each.boxes) for each in found] == [250, 250]
    assert len(small(score_threshold=0.0, detections=7, nms=1.0).eval().detect(pictures(), SIZES)[0].boxes) == 7


def test_counts_of_proposals():
    model = small(rpn_before_nms=(40, 20), rpn_after_nms=(30, 10))
    with torch.no_grad():
        assert {len(each) for each in model.train().propose(model.pyramid(pictures()), SIZES).boxes} == {30}
        assert {len(each) for each in model.eval().propose(model.pyramid(pictures()), SIZES).boxes} == {10}


@pytest.mark.parametrize("masks", [True, False])
def test_half_precision_moves_no_box(masks):
    model = small(masks=masks).train()
    losses, boxes = [], []
    for half in (False, True):
        model.zero_grad()
        torch.manual_seed(6)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = model.losses(pictures(), TARGETS, SIZES)
            proposals = model.propose(model.pyramid(pictures()), SIZES)
        losses.append(found)
        boxes.append(proposals.boxes[0])
        assert proposals.anchors[0].dtype == proposals.boxes[0].dtype == torch.float32
        assert all(loss.dtype == torch.float32 for loss in found.values())
        sum(found.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for name, loss in losses[0].items():
        assert losses[1][name].item() == pytest.approx(loss.item(), rel=0.1), name
    nearest = torch.cdist(boxes[1], boxes[0]).min(dim=1).values  # in pixels; 96 has a precision of half a pixel in bfloat16
    assert nearest.median() < 0.25


def test_layers_and_weight_decay():
    model = small()
    assert model.layer_of("pyramid.encoder.positions") == 0
    assert model.layer_of("pyramid.encoder.transformer.blocks.1.norm1.weight") == 2
    assert {model.layer_of(name) for name, _ in model.named_parameters() if "encoder" not in name} == {3}
    assert model.no_weight_decay() == {"pyramid.encoder.positions"}


class Light(nn.Module):
    """Maps that take little time to compile."""

    channels, strides = [8] * 4, [2, 4, 8, 16]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(self.conv(images), stride) for stride in self.strides]


def test_compiled_it_learns_the_same():
    """torch.compile stops at the pyramid, so another number of objects needs no new graph."""
    model, graphs = MaskRCNN(Light(), K, SMALL).train(), []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def losses(targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return model.losses(pictures(), targets, SIZES)

    compiled = torch.compile(losses, backend=count)
    for targets in (TARGETS, TARGETS[::-1], [objects([], [])] * 2):
        torch.manual_seed(8)
        found = compiled(targets)
        torch.manual_seed(8)
        for name, loss in losses(targets).items():
            torch.testing.assert_close(found[name], loss)
    assert len(graphs) == 1
