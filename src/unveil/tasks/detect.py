"""Objects: their boxes, classes and masks, by Mask R-CNN on a pyramid of the encoder, all trained (ViTDet, Li et al., 2022).

    images -> scaled, cropped, padded                (B, C, S, T)     unveil.data.detect_augment
           -> pyramid -> proposals -> detections                      unveil.models.pyramid, unveil.models.mask_rcnn

An evaluation scales an image so that it fits into S x T, or takes its pixels as they are, in overlapping tiles if it is large.

Letters: B images, C channels, S T sides of the input, H W those of the original, n objects of an image.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from unveil.blocks.ema import ema_update
from unveil.blocks.patches import Size
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.detect_augment import DetectAugment, refuse_clipped
from unveil.data.rle import encoded
from unveil.data.scale_jitter import ScaleJitter
from unveil.data.targets import BoxTargets, Geometry
from unveil.detection_files import SHOWN_SCORE, DetectionWriter
from unveil.detection_metrics import DetectionMetric
from unveil.detections import Detections
from unveil.learner import Step, Task
from unveil.metrics import Metric
from unveil.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from unveil.models.paste_masks import pasted_mask
from unveil.models.pyramid import PyramidConfig, build_pyramid, without_encoder
from unveil.models.tiled_detection import Tile, cut_by, merged, tiles_of
from unveil.models.vit import ViT
from unveil.predictions import whole_image_predictions
from unveil.ranges import Count, CountOrZero, Positive, Range, ShareBelowOne

WINDOW, LARGE_GRID = 14, 32
"""Side of ViTDet's windows, and the rows of patches from which on they are used by default."""
BUDGET = 20_000
"""Images that a run sees by default, in 12 to 150 epochs."""
SMALL = 384
"""Width of an encoder below which the heads are small as well."""
SMALL_HEADS = {"channels": 128, "box_convs": 0, "mask_convs": 1, "box_width": 256, "samples": 128, "proposals": 300}
"""The convolutions of ViTDet's box head, at 512 places of an image, cost ten times a small encoder."""


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """The heads, and how images are scaled. Defaults are those of ViTDet, for ViT-B and larger: see also `Detect.settings_for`."""

    HIDDEN: ClassVar[tuple[str, ...]] = (
        "channels",
        "box_convs",
        "mask_convs",
        "box_width",
        "samples",
        "proposals",
        "window",
        "relative_positions",
        "levels",
        "scales",
        "score_threshold",
    )
    recipe: Literal["auto", "paper"] = "auto"
    """Settings: those that suit the size of the model and the number of images, or those of ViTDet for COCO. Single options
    override either."""
    masks: bool = True
    """Whether to predict a mask of each object; by default if DATA has masks."""
    detections: Count = 100
    """Largest number of detections in an image, which is also how many are scored; by default 100 as in COCO, or more if training
    images have more objects. An image in tiles may have as many in each area of the size of the input."""
    resize: Literal["fit", "none"] = "fit"
    """Scale 1: images that fit into the size of the input, as for photographs; or the pixels as they are, as for microscopes and
    satellites, of which large images are then computed in tiles."""
    scales: tuple[Positive, Positive] = (0.1, 2.0)
    """The smallest and the largest scale in training (large-scale jitter)."""
    frozen: bool = False
    """Train what follows the encoder only, to see what its features are worth as they are."""
    drop_path: ShareBelowOne = 0.1
    """Probability that a sample skips a block, in the last block; it grows linearly with depth."""
    ema: ShareBelowOne = 0.0
    """Momentum of a moving average of all weights, which is evaluated and kept in their place, such as 0.999; 0 for none."""
    levels: Literal["last", "depths"] = "last"
    """The pyramid: from the last block (ViTDet), or from four depths (MAE)."""
    channels: Count = 256
    """Channels of the pyramid and of the convolutions of the heads."""
    box_convs: Annotated[int, Range(0, 16)] = 4
    """Convolutions of the box head."""
    mask_convs: Annotated[int, Range(0, 16)] = 4
    """Convolutions of the mask head."""
    box_width: Count = 1024
    """Width of the linear layer of the box head."""
    samples: Count = 512
    """Proposals of an image that the heads learn from, a quarter of them on objects."""
    proposals: Count = 1000
    """Proposals of an image that the heads look at in evaluations, and from which `samples` are drawn; at least as many as
    `detections`."""
    window: CountOrZero | None = None
    """Side of the windows within which most blocks attend, in patches; 0 for none. By default that of the encoder, or 14 for inputs
    of more than 32 patches on a side if the encoder is trained."""
    relative_positions: bool | None = None
    """Whether to add decomposed relative positions, from zero; by default with windows."""
    score_threshold: ShareBelowOne = 0.05
    """Lowest score of a detection."""


class Detect(Task):
    """Mask R-CNN on a pyramid of the encoder.

    Attributes:
        category_ids: The id of each class in files of detections.
    """

    whole_images = True
    needs_whole_batch = True  # the losses of boxes and masks are means over the objects of a batch
    Config = DetectConfig
    DEFAULTS = {
        "schedule": "linear",
        "warmup_ratio": 0.05,
        "beta2": 0.999,
        "weight_decay": 0.1,
        "layer_decay": 0.7,
        "clip_grad": 1.0,
    }
    PAPER = {"base_lr": 4e-4, "epochs": 100.0, "batch_size": 64, "validation": 0.0}
    """ViTDet-B: a rate of 1e-4 for 64 images, 100 epochs of COCO. Its schedule falls in two steps at the end, and not linearly."""
    CHOSEN = ("base_lr", "epochs", "batch_size", "drop_path", "scales", *SMALL_HEADS)
    TargetType = BoxTargets
    category_ids: Tensor
    averaged: Tensor

    def __init__(self, encoder: ViT, classes: Sequence[str], config: DetectConfig, augment: AugmentConfig) -> None:
        super().__init__()
        self.classes, self.config = classes, config
        vit = encoder.config
        large = max(vit.grid) > LARGE_GRID and not config.frozen  # the features of a frozen encoder stay as they are
        window = (vit.window or (WINDOW if large else 0)) if config.window is None else config.window
        relative = window > 0 and not config.frozen if config.relative_positions is None else config.relative_positions
        pyramid_config = PyramidConfig(
            levels=config.levels,
            channels=config.channels,
            drop_path=0.0 if config.frozen else config.drop_path,
            window=window,
            relative_positions=relative,
        )
        pyramid = build_pyramid(encoder, pyramid_config)
        self.encoder: ViT = pyramid.encoder.requires_grad_(not config.frozen)
        proposals = max(config.proposals, config.detections)  # each gives one detection of a class
        options = MaskRCNNConfig(
            masks=config.masks,
            head_channels=config.channels,
            box_convs=config.box_convs,
            mask_convs=config.mask_convs,
            samples=config.samples,
            rpn_before_nms=(2 * proposals, proposals),
            rpn_after_nms=(proposals, proposals),
            box_width=config.box_width,
            detections=config.detections,
            score_threshold=config.score_threshold,
        )
        self.detector = MaskRCNN(without_encoder(pyramid), len(classes), options)
        self.average: nn.ModuleList | None = None
        fit: Literal["inside", "pixels"] = "pixels" if config.resize == "none" else "inside"
        size, mean, std = self.encoder.config.image_size, vit.mean, vit.std
        self.augmentation = DetectAugment(augment, size, mean, std, scales=config.scales, fit=fit)
        self.evaluation = ScaleJitter(image_size=size, mean=mean, std=std, scales=(1.0, 1.0), fit=fit, flip=False)
        self.register_buffer("category_ids", torch.arange(1, 1 + len(classes)))
        self.register_buffer("averaged", torch.zeros((), dtype=torch.int64), persistent=False)

    @classmethod
    def build(cls, encoder: ViT, config: DetectConfig, augment: AugmentConfig, classes: Sequence[str]) -> "Detect":
        return cls(encoder, classes, config, augment)

    @classmethod
    def settings_for(cls, width: int, samples: int) -> Mapping[str, Any]:
        """Small encoders get small heads and a higher learning rate; few images are seen more often.

        The rate of ViT-B is the published one, 1e-4 for a batch of 64; that of vit-nano was chosen on blood cells (LAB.md).
        """
        found: dict[str, Any] = {
            "base_lr": 4e-4 * (768 / width) ** (7 / 3),
            "epochs": float(min(150, max(12, round(BUDGET / samples)))),
            "batch_size": 16 if samples >= 1000 else 8,
            "drop_path": 0.1 if width >= SMALL else 0.0,
            "scales": (0.1, 2.0) if samples >= 10_000 else (0.5, 1.5),
        }
        return found | (SMALL_HEADS if width < SMALL else {})

    @classmethod
    def training_side(cls, config: DetectConfig, augment: AugmentConfig, image_size: Size) -> int | None:
        """What the largest scale needs. Raises `UnveilError` for a kind of crop that boxes do not have."""
        refuse_clipped(augment)
        return None if config.resize == "none" else -int(-max(image_size) * config.scales[1] // 1)

    @torch.no_grad()
    def set_category_ids(self, ids: Mapping[str, Any]) -> None:
        """Stores the ids of the classes in the annotations; 1 to K if any is no whole number, or two are equal."""
        found = [ids.get(name) for name in self.classes]
        if len(set(found)) == len(found) and all(isinstance(each, int) and not isinstance(each, bool) for each in found):
            self.category_ids.copy_(torch.tensor(found, dtype=torch.int64))

    def add_training_parts(self) -> None:
        """The moving average of the weights."""
        if self.config.ema:
            self.average = nn.ModuleList(copy.deepcopy((self.encoder, self.detector))).requires_grad_(False)
            self.register_buffer("averaged", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def drop_training_parts(self) -> None:
        """The average takes the place of the weights."""
        if self.average is not None:
            for module, average in zip((self.encoder, self.detector), self.average, strict=True):
                module.load_state_dict(average.state_dict())
            self.average = None
            self.register_buffer("averaged", torch.zeros((), dtype=torch.int64), persistent=False)

    def after_step(self, progress: float) -> None:
        """Updates the average, with a smaller momentum in the first steps, so that it forgets where they began."""
        if self.average is not None:
            self.averaged += 1
            steps = int(self.averaged)
            ema_update(self.average, nn.ModuleList([self.encoder, self.detector]), min(self.config.ema, (1 + steps) / (10 + steps)))

    def augment(self, batch: Batch) -> Batch:
        """Scales, crops, flips and pads images, with their objects."""
        assert isinstance(batch.targets, BoxTargets)
        if not self.config.masks:
            batch = batch._replace(targets=batch.targets._replace(masks=None))
        augmented: Batch = self.augmentation(batch)
        return augmented

    def forward(self, batch: Batch) -> Step:
        """The sum of the losses of proposals, classes, boxes and masks. Crowds are not learned."""
        assert isinstance(batch.targets, BoxTargets)
        losses = self.detector.losses(batch.images, objects_of(batch.targets), batch.sizes)
        total: Tensor = torch.stack(list(losses.values())).sum()
        return Step(total, losses)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """What is found in whole images, in their pixels; masks are run lengths. See `Learner.whole_images`."""
        found = []
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True):
            found.append(self.found_in(image[:, :height, :width]))
        return found

    def found_in(self, image: Tensor) -> Detections:
        """The detections in an image (C, H, W) of uint8 or uint16."""
        size = (image.shape[1], image.shape[2])
        inputs = self.encoder.config.image_size
        tiles = tiles_of(size, inputs) if self.config.resize == "none" else [Tile(0, 0, *size)]
        parts, cut = [], []
        for tile in tiles:
            part = self.detected(image[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width])
            parts.append(part._replace(boxes=part.boxes + part.boxes.new_tensor([tile.left, tile.top] * 2)))
            cut.append(cut_by(tile, parts[-1].boxes, size))
        boxes = torch.cat([part.boxes for part in parts])
        scores, labels = torch.cat([part.scores for part in parts]), torch.cat([part.labels for part in parts])
        drawn = [part.masks for part in parts if isinstance(part.masks, Tensor)]
        masks = torch.cat(drawn) if drawn else None
        if len(tiles) > 1:
            options = self.detector.config
            most = options.detections * -(-size[0] * size[1] // (inputs[0] * inputs[1]))  # in as many inputs as the image fills
            kept = merged(boxes, scores, labels, torch.cat(cut), options.nms, most)
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
            masks = None if masks is None else masks[kept]
        whole = None if masks is None else pasted(masks, boxes, size)
        return Detections(clip_boxes_to_image(boxes, size).cpu(), scores.cpu(), labels.cpu(), whole)

    def detected(self, image: Tensor) -> Detections:
        """The detections in an image, or in a tile of it, scaled to the input; boxes are in its pixels, masks within boxes."""
        sizes = torch.tensor([image.shape[1:]], device=image.device)
        batch = Batch(image[None], sizes, torch.zeros(1, dtype=torch.int64, device=image.device))
        geometry = self.evaluation.draw(sizes, batch.keys)
        scaled = self.evaluation.apply(batch, geometry)
        detector = self.detector if self.average is None or self.training else self.average[1]
        assert isinstance(detector, MaskRCNN)
        (found,) = detector.detect(scaled.images, scaled.sizes)
        return found._replace(boxes=original_boxes(found.boxes, geometry))

    def metric(self) -> Metric:
        return DetectionMetric(len(self.classes), masks=self.config.masks, max_dets=self.config.detections)

    def items(self, predictions: list[Detections], sizes: Int[Tensor, "B 2"]) -> list[Detections]:
        """The detections of each image: see `unveil.protocols.WritesFolder`."""
        return predictions

    def writer(self, out: Any, *, overlays: bool, shown_score: float = SHOWN_SCORE) -> DetectionWriter:
        """See `unveil.protocols.WritesFolder`."""
        ids = self.category_ids.tolist()
        return DetectionWriter(out, classes=self.classes, category_ids=ids, overlays=overlays, shown_score=shown_score)

    @torch.inference_mode()
    def predict_images(  # type: ignore[override]  # objects are a list, where class scores are a table
        self, images: Iterable[Any], *, max_pixels: int = 64_000_000
    ) -> list[Detections]:
        """The objects in images of any size, in their pixels; masks are COCO's run lengths.

        Args:
            images: Paths, Pillow images, arrays (H, W) or (H, W, C), or tensors (C, H, W): see `raw_image`.
            max_pixels: An image with more pixels than this is refused.

        Raises:
            UnveilError: If an image cannot be read.
        """
        return [found[0] for found in whole_image_predictions(self, images, max_pixels=max_pixels)]


def objects_of(targets: BoxTargets) -> list[dict[str, Tensor]]:
    """The objects of each image to learn from: without padding and crowds."""
    found = []
    for row in range(len(targets.labels)):
        real = targets.labels[row] >= 0
        if targets.crowd is not None:
            real &= ~targets.crowd[row]
        each = {"boxes": targets.boxes[row][real], "labels": targets.labels[row][real]}
        found.append(each if targets.masks is None else each | {"masks": targets.masks[row][real]})
    return found


def pasted(masks: Float[Tensor, "n s s"], boxes: Float[Tensor, "n 4"], size: Size) -> list[dict[str, Any]]:
    """Masks at the size of the image, as run lengths: one at a time, so that hundreds of a large image fit into memory."""
    each = (pasted_mask(mask, box, size) for mask, box in zip(masks, boxes.tolist(), strict=True))
    return [encoded(mask[None].numpy())[0] for mask in each]


def original_boxes(boxes: Float[Tensor, "n 4"], geometry: Geometry) -> Float[Tensor, "n 4"]:
    """Boxes in the result of a crop and resize, in pixels of the original."""
    top, left, height, width = geometry.boxes[0].tolist()
    scale = boxes.new_tensor([width / geometry.size[1], height / geometry.size[0]] * 2)
    return boxes * scale + boxes.new_tensor([left, top] * 2)
