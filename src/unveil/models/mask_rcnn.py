"""Mask R-CNN (He et al., 2017) on a pyramid of a plain ViT, with the heads of ViTDet (Li et al., 2022), over torchvision's parts.

    images -> pyramid -> maps of strides 4, 8, 16, 32, and 64 by taking every second value    5 x (B, C, ...)
      -> region proposals: 2 convs -> for each anchor, whether it is an object, and its box
      -> the best 1,000 of an image, after non-maximum suppression
      -> RoIAlign 7 x 7 -> 4 convs with norms, a linear layer -> class and box                 of up to 512 samples, 1/4 objects
      -> RoIAlign 14 x 14 -> 4 convs with norms, a deconvolution -> a mask of 28 x 28          of objects, or of what is found

Images are normalised and padded by the caller: the `sizes` of their valid parts are given beside them, and nothing is found outside
of these. Labels are 0 to K - 1; inside of torchvision's parts, 0 is the background. `unveil.models.roi_heads` has the other
differences to torchvision's own detectors.

Letters: B images, S x T pixels with the padding, K classes, n objects of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from unveil.blocks.compiling import above_graphs, in_no_graph
from unveil.blocks.map_norms import MapLayerNorm
from unveil.detections import Detections
from unveil.errors import UnveilError
from unveil.models.pyramid import Pyramid
from unveil.models.roi_heads import RoIPool, anchor_grid, anchors_of, box_loss, in_full, mask_loss, mask_targets, shapes_of

BOX_CELLS, MASK_CELLS = 7, 14


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """The heads, and what they propose and find. Defaults are those of ViTDet."""

    masks: bool = True
    """Whether to predict masks, which needs masks of the objects; or boxes alone."""
    rpn_convs: int = 2
    """Convolutions of the region proposals."""
    head_channels: int = 256
    """Channels of the convolutions of the box and mask heads."""
    box_convs: int = 4
    """Convolutions of the box head."""
    box_layers: int = 1
    """Linear layers after them."""
    box_width: int = 1024
    """Width of these linear layers."""
    samples: int = 512
    """Proposals of an image that the heads learn from, a quarter of them on objects."""
    mask_convs: int = 4
    """Convolutions of the mask head before its deconvolution."""
    norm: Literal["layer", "none"] = "layer"
    """Norm after each convolution of the box and mask heads: over the channels of each pixel, or none (torchvision)."""
    anchor_scale: float = 8.0
    """Side of a square anchor, as a multiple of the stride of its map: 32 pixels at stride 4, 512 at stride 64."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights over widths of the anchors."""
    rpn_before_nms: tuple[int, int] = (2000, 1000)
    """Proposals of each map before non-maximum suppression, in training and evaluation."""
    rpn_after_nms: tuple[int, int] = (1000, 1000)
    """Proposals of an image after it, in training and evaluation."""
    detections: int = 100
    """Largest number of detections in an image. COCO counts the best 100, but an image of cells may have hundreds."""
    score_threshold: float = 0.05
    """Lowest score of a detection."""
    nms: float = 0.5
    """Overlap (IoU) from which the weaker of two detections of a class is dropped."""
    aligned: bool = True
    """Whether RoIAlign is aligned with the pixels, as in detectron2."""
    sampling_ratio: int = 0
    """Samples of RoIAlign in each direction of a cell; 0 for one for each pixel of the map, as in detectron2."""
    smooth_l1_beta: float = 0.0
    """Error of a box up to which its loss is squared; 0 for the absolute error, as in detectron2."""
    round_anchors: bool = False
    """Whether half sides of anchors are rounded to pixels, as in torchvision."""
    binary_masks: bool = True
    """Whether the cells of a true mask are 0 or 1, as in detectron2, or shares of their area."""


TORCHVISION: Mapping[str, Any] = {
    "rpn_convs": 1,
    "box_convs": 0,
    "box_layers": 2,
    "norm": "none",
    "rpn_before_nms": (2000, 1000),
    "rpn_after_nms": (2000, 1000),
    "aligned": False,
    "sampling_ratio": 2,
    "smooth_l1_beta": 1 / 9,
    "round_anchors": True,
    "binary_masks": False,
}
"""The options with which this is `torchvision.models.detection.MaskRCNN`, for tests and for weights that it trained."""


class Proposals(NamedTuple):
    """What the first stage knows of a batch."""

    anchors: list[Float[Tensor, "A 4"]]
    """Of each image."""
    objectness: Float[Tensor, "BA 1"]
    """A logit of each anchor."""
    deltas: Float[Tensor, "BA 4"]
    """From each anchor to its box."""
    boxes: list[Float[Tensor, "_ 4"]]
    """The best boxes of each image."""


class Samples(NamedTuple):
    """Proposals of each image to learn from."""

    boxes: list[Float[Tensor, "_ 4"]]
    objects: list[Int[Tensor, " _"]]
    """The object that overlaps most."""
    labels: list[Int[Tensor, " _"]]
    """Its class, from 1 on; 0 for proposals on the background."""


class MaskRCNN(nn.Module):
    """Finds objects: their boxes, classes and masks.

    Args:
        pyramid: Gives maps with the same number of channels.
        classes: K.
        config: The options.
    """

    def __init__(self, pyramid: Pyramid, classes: int, config: MaskRCNNConfig = MaskRCNNConfig()) -> None:
        super().__init__()
        if len(set(pyramid.channels)) > 1:
            raise UnveilError(f"the maps of the pyramid have {pyramid.channels} channels, but a detector needs the same in all")
        self.pyramid, self.config, self.classes = pyramid, config, classes
        channels, width = pyramid.channels[0], config.head_channels
        self.strides = (*pyramid.strides, 2 * pyramid.strides[-1])
        top = (dict(zip(("training", "testing"), each, strict=True)) for each in (config.rpn_before_nms, config.rpn_after_nms))
        head = RPNHead(channels, len(config.anchor_ratios), conv_depth=config.rpn_convs)
        self.rpn = RegionProposalNetwork(None, head, 0.7, 0.3, 256, 0.5, *top, 0.7)
        norm = MapLayerNorm if config.norm == "layer" else None
        layers = [config.box_width] * config.box_layers
        self.roi = RoIHeads(
            self.pool(BOX_CELLS),
            FastRCNNConvFCHead((channels, BOX_CELLS, BOX_CELLS), [width] * config.box_convs, layers, norm),
            FastRCNNPredictor(config.box_width, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.samples,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms,
            detections_per_img=config.detections,
        )
        if config.masks:
            self.roi.mask_roi_pool = self.pool(MASK_CELLS)
            self.roi.mask_head = MaskRCNNHeads(channels, [width] * config.mask_convs, 1, norm)
            self.roi.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
        nn.init.normal_(self.roi.box_predictor.cls_score.weight, std=0.01)  # as in detectron2: no class and no box is preferred
        nn.init.normal_(self.roi.box_predictor.bbox_pred.weight, std=0.001)
        for layer in (self.roi.box_predictor.cls_score, self.roi.box_predictor.bbox_pred):
            nn.init.zeros_(layer.bias)

    def pool(self, size: int) -> RoIPool:
        """RoIAlign to so many cells, from the maps of the pyramid itself."""
        return RoIPool(self.strides[:-1], size, self.config.sampling_ratio, self.config.aligned)

    def layer_of(self, name: str) -> int:
        """The depth of a parameter: see `Pyramid.layer_of`."""
        owner, _, rest = name.partition(".")
        return self.pyramid.layer_of(rest) if owner == "pyramid" else self.pyramid.encoder.config.depth + 1

    def no_weight_decay(self) -> set[str]:
        """Names of matrices without weight decay: those of the pyramid."""
        return {f"pyramid.{name}" for name in self.pyramid.no_weight_decay()}

    @above_graphs
    def losses(
        self, images: Float[Tensor, "B C S T"], targets: Sequence[Mapping[str, Tensor]], sizes: Int[Tensor, "B 2"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses to sum: `loss_objectness` and `loss_rpn_box_reg` of proposals, `loss_classifier`, `loss_box_reg`, `loss_mask`.

        Anchors and proposals to learn from are drawn by the global generator. Boxes without an area, as a crop may leave them, do
        not count.

        Args:
            images: Normalised images, with their padding below and on the right.
            targets: For each image `boxes` (n, 4), left, top, right, bottom in pixels; `labels` (n,), 0 to K - 1; and with
                `config.masks` also `masks` (n, S, T) bool, all False for an object that has only a box. An image may have no
                object, n = 0.
            sizes: Height and width of each image without its padding.

        Raises:
            UnveilError: If masks are to be predicted, and there are none.
        """
        return self.losses_of(self.pyramid(images), targets, sizes)

    @above_graphs
    @torch.no_grad()
    def detect(self, images: Float[Tensor, "B C S T"], sizes: Int[Tensor, "B 2"]) -> list[Detections]:
        """What is found in each image, in pixels of the input, the best first; masks are (n, 28, 28) probabilities within the box.

        Arguments as in `losses`.
        """
        return self.detections_in(self.pyramid(images), sizes)

    @in_no_graph
    def losses_of(
        self, maps: list[Tensor], targets: Sequence[Mapping[str, Tensor]], sizes: Int[Tensor, "B 2"]
    ) -> dict[str, Tensor]:
        """See `losses`."""
        objects = [self.checked(target) for target in targets]
        found = self.propose(maps, sizes)
        with in_full(maps):
            losses = self.proposal_losses(found, objects)
            sampled, matched, labels, deltas = self.roi.select_training_samples(found.boxes, objects)
        scores, boxes = self.classify(maps, sampled)
        with in_full(maps):
            losses |= self.class_losses(scores, boxes, torch.cat(labels), torch.cat(deltas))
        if self.config.masks:
            losses["loss_mask"] = self.mask_loss(maps, objects, Samples(sampled, matched, labels))
        return losses

    @in_no_graph
    def detections_in(self, maps: list[Tensor], sizes: Int[Tensor, "B 2"]) -> list[Detections]:
        """See `detect`."""
        found = self.propose(maps, sizes)
        scores, deltas = self.classify(maps, found.boxes)
        with in_full(maps):
            boxes, scores, labels = self.roi.postprocess_detections(scores, deltas, found.boxes, shapes_of(sizes))
        masks: list[Tensor] | list[None] = [None] * len(boxes)
        if self.config.masks:
            chosen = torch.cat(labels)
            drawn = self.draw(maps, boxes)[torch.arange(len(chosen), device=chosen.device), chosen].sigmoid()
            masks = list(drawn.split([len(each) for each in boxes]))
        return [Detections(b, s, label - 1, m) for b, s, label, m in zip(boxes, scores, labels, masks, strict=True)]

    def propose(self, maps: list[Tensor], sizes: Int[Tensor, "B 2"]) -> Proposals:
        """The first stage. Anchors and boxes are in float32, also under autocast: half precision would move them by pixels."""
        every = [*maps, F.max_pool2d(maps[-1], 1, 2)]
        logits, deltas = ([each.float() for each in part] for part in self.rpn.head(every))
        with in_full(maps):
            anchors = [self.anchors(every)] * len(sizes)
            counts = [each[0].numel() for each in logits]
            objectness, flat = concat_box_prediction_layers(logits, deltas)
            boxes = self.rpn.box_coder.decode(flat.detach(), anchors).view(len(sizes), -1, 4)
            best, _ = self.rpn.filter_proposals(boxes, objectness, shapes_of(sizes), counts)
        return Proposals(anchors, objectness, flat, best)

    def anchors(self, maps: Sequence[Tensor]) -> Float[Tensor, "A 4"]:
        """The anchors of all maps, the finest first."""
        config, found = self.config, []
        for each, stride in zip(maps, self.strides, strict=True):
            cell = anchors_of(config.anchor_scale * stride, config.anchor_ratios, config.round_anchors).to(each.device)
            found.append(anchor_grid(cell, each.shape[2], each.shape[3], stride))
        return torch.cat(found)

    def proposal_losses(self, found: Proposals, objects: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of 256 anchors in each image, at most half of them on objects (Faster R-CNN, section 3.1.2)."""
        labels, matched = self.rpn.assign_targets_to_anchors(found.anchors, objects)
        deltas = torch.cat(self.rpn.box_coder.encode(matched, found.anchors))
        positive, negative = (torch.where(torch.cat(each))[0] for each in self.rpn.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        true = torch.cat(labels)[sampled]
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(found.objectness.flatten()[sampled], true),
            "loss_rpn_box_reg": box_loss(found.deltas[positive], deltas[positive], self.config.smooth_l1_beta, len(sampled)),
        }

    def class_losses(
        self, scores: Float[Tensor, "n K1"], boxes: Float[Tensor, "n K4"], labels: Int[Tensor, " n"], true: Float[Tensor, "n 4"]
    ) -> dict[str, Tensor]:
        """Losses of the sampled proposals: of their classes, and of the boxes of those on objects."""
        positive = torch.where(labels > 0)[0]
        of_class = boxes.unflatten(1, (-1, 4))[positive, labels[positive]]
        return {
            "loss_classifier": F.cross_entropy(scores, labels) if len(labels) else scores.sum() * 0,
            "loss_box_reg": box_loss(of_class, true[positive], self.config.smooth_l1_beta, len(labels)),
        }

    def mask_loss(self, maps: list[Tensor], objects: list[dict[str, Tensor]], samples: Samples) -> Float[Tensor, ""]:
        """The loss of the masks of those samples that are on objects."""
        drawn = [target["masks"].flatten(1).any(dim=1) for target in objects]  # others have only a box
        positive = [torch.where(each > 0)[0] for each in samples.labels]
        positive = [place[has[owner[place]]] for place, has, owner in zip(positive, drawn, samples.objects, strict=True)]
        boxes, owners, labels = ([each[place] for each, place in zip(part, positive, strict=True)] for part in samples)
        logits, config = self.draw(maps, boxes), self.config
        with in_full(maps):
            true = [
                mask_targets(each["masks"], box, owner, logits.shape[-1], aligned=config.aligned, binary=config.binary_masks)
                for each, box, owner in zip(objects, boxes, owners, strict=True)
            ]
            return mask_loss(logits, torch.cat(labels), torch.cat(true))

    def classify(self, maps: list[Tensor], boxes: list[Tensor]) -> tuple[Float[Tensor, "n K1"], Float[Tensor, "n K4"]]:
        """Class scores of boxes, the background first, and for each class the way to a better box."""
        pooled = self.roi.box_roi_pool(maps, boxes)
        scores, deltas = self.roi.box_predictor(self.roi.box_head(pooled))
        return scores.float(), deltas.float()

    def draw(self, maps: list[Tensor], boxes: list[Tensor]) -> Float[Tensor, "n K1 28 28"]:
        """Logits of the mask within each box, for each class; that of the background is not used."""
        pooled = self.roi.mask_roi_pool(maps, boxes)
        logits: Tensor = self.roi.mask_predictor(self.roi.mask_head(pooled))
        return logits.float()

    def checked(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The objects of an image that have an area, as torchvision's parts take them: 0 is the background."""
        boxes = target["boxes"].float()
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        found = {"boxes": boxes[kept], "labels": target["labels"][kept].long() + 1}
        if self.config.masks:
            if target.get("masks") is None:
                raise UnveilError(
                    "the objects have no masks, so no masks can be learned: use --no-masks (in Python, masks=False) for boxes alone"
                )
            found["masks"] = target["masks"][kept]
        return found
