"""One class per pixel: a pyramid of feature maps of the encoder, and UperNet or a light head on it, all trained.

    images -> pyramid     four maps                   (B, D, ...)      unveil.models.pyramid
           -> head        scores of classes           (B, K, h, w)     unveil.models.upernet
           -> resized     to the crop in training     (B, K, S, T)
                          to the image in evaluations, whose argmax is the class of each pixel

The recipe is that of MAE and BEiT on ADE20K: a cross-entropy of each pixel, and that of an auxiliary head with weight 0.4. Images
are resized, cropped, flipped and distorted (`unveil.data.segment_augment`). Evaluations resize the short side of an image to that
of the crop, cut it into overlapping windows, average their scores, and resize them to the original.

Letters: B images, K classes, D width, C channels, S T sides of a crop, H W those of the original.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import AugmentConfig, standardise
from unveil.data.batch import Batch
from unveil.data.class_map_files import ClassMapWriter, class_colours
from unveil.data.mask_values import MaskConfig, MaskValues
from unveil.data.pixels import IGNORE
from unveil.data.resize import crop_resize
from unveil.data.segment_augment import LONGEST, SegmentAugment, base_scale
from unveil.data.targets import PixelTargets
from unveil.errors import UnveilError
from unveil.learner import Step, Task
from unveil.metrics import Metric
from unveil.models.pyramid import Pyramid, PyramidConfig, build_pyramid, without_encoder
from unveil.models.sliding_window import Score, averaged_bands, classes_of_bands
from unveil.models.upernet import LinearHead, Maps, UperNet, UperNetConfig, resized
from unveil.models.vit import ViT
from unveil.predictions import whole_image_predictions
from unveil.ranges import NonNegative, ShareAboveZero, ShareBelowOne
from unveil.segmentation_metrics import MeanIoU

BUDGET = 40_000
"""Images that a run sees by default, in 20 to 300 epochs."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(MaskConfig):
    """The head, what masks mean, and how images are evaluated."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("auxiliary", "stride")
    head: Literal["upernet", "linear"] = "upernet"
    """Head: UperNet, or a few convolutions on the patches, which is faster and suits small sets."""
    frozen: bool = False
    """Train what follows the encoder only, to see what its features are worth as they are."""
    drop_path: ShareBelowOne = 0.1
    """Probability that a sample skips a block, in the last block; it grows linearly with depth."""
    auxiliary: NonNegative = 0.4
    """Weight of the loss of UperNet's auxiliary head."""
    resize: Literal["short", "none"] = "short"
    """What random resizing and evaluations start from: images whose short side is that of the crop, as for photographs; or the
    pixels as they are, as for microscopes and satellites, of which large images are then computed in tiles."""
    inference: Literal["slide", "whole"] = "slide"
    """How images are evaluated: in overlapping windows of the size of the crop, whose scores are averaged; or at once."""
    stride: ShareAboveZero = 0.666
    """The distance of these windows, as a share of their size."""


class Segment(Task):
    """A pyramid of the encoder's feature maps, and a head with one score per class and pixel.

    Attributes:
        stored: What the masks of the training data hold for each class.
        colours: The colour of each class, in masks or for pictures.
        in_colour: Whether the masks are colours.
    """

    whole_images = True
    Config = SegmentConfig
    DEFAULTS = {
        "schedule": "linear",
        "warmup_ratio": 0.05,
        "beta2": 0.999,
        "weight_decay": 0.05,
        "layer_decay": 0.65,
        "crop_scale": 0.25,
        "color_jitter": 0.5,
    }
    """See also `settings_for`. `crop_scale` 0.25 resizes by up to 2, and `color_jitter` 0.5 is the usual distortion."""
    CHOSEN = ("base_lr", "epochs", "batch_size", "drop_path")
    TargetType = PixelTargets
    stored: Tensor
    colours: Tensor
    in_colour: Tensor

    def __init__(self, encoder: ViT, classes: Sequence[str], config: SegmentConfig, augment: AugmentConfig) -> None:
        super().__init__()
        self.classes, self.config = classes, config
        levels: Literal["depths", "patches"] = "depths" if config.head == "upernet" else "patches"
        pyramid = build_pyramid(encoder, PyramidConfig(levels=levels, drop_path=0.0 if config.frozen else config.drop_path))
        self.encoder: ViT = pyramid.encoder.requires_grad_(not config.frozen)
        self.pyramid: Pyramid = without_encoder(pyramid)
        width = encoder.config.width if config.head == "upernet" else min(256, encoder.config.width)
        build = UperNet if config.head == "upernet" else LinearHead
        auxiliary = UperNetConfig.auxiliary_channels if config.auxiliary else 0
        self.head = build(pyramid.channels, len(classes), UperNetConfig(channels=width, auxiliary_channels=auxiliary))
        vit = self.encoder.config
        own_pixels = config.resize == "none"
        self.augmentation = SegmentAugment(augment, vit.image_size, vit.mean, vit.std, own_pixels=own_pixels)
        self.register_buffer("stored", torch.arange(len(classes)))
        self.register_buffer("colours", class_colours(len(classes)))
        self.register_buffer("in_colour", torch.tensor(False))

    @classmethod
    def build(cls, encoder: ViT, config: SegmentConfig, augment: AugmentConfig, classes: Sequence[str]) -> "Segment":
        return cls(encoder, classes, config, augment)

    @classmethod
    def settings_for(cls, width: int, samples: int) -> Mapping[str, Any]:
        """The learning rate of ViT-B is the published 1e-4 for a batch of 16; that of vit-nano was chosen on CamVid (LAB.md)."""
        rate = 1.6e-3 * (768 / width) ** (5 / 3)
        epochs = float(min(300, max(20, round(BUDGET / samples))))
        return {
            "base_lr": rate,
            "epochs": epochs,
            "batch_size": 16 if samples >= 200 else 8,
            "drop_path": 0.1 if width >= 384 else 0.0,
        }

    @classmethod
    def training_side(cls, config: SegmentConfig, augment: AugmentConfig, image_size: Size) -> int | None:
        """What the largest random resize needs."""
        return None if config.resize == "none" else -int(-min(image_size) // augment.crop_scale**0.5)

    @torch.no_grad()
    def set_mask_values(self, values: MaskValues) -> None:
        """Stores what predicted masks hold for each class: the values, and the colours if any are known."""
        self.stored.copy_(torch.tensor(values.stored))
        self.in_colour.fill_(values.in_colour)
        if values.colours:
            self.colours.copy_(torch.tensor(values.colours))

    def maps(self, images: Float[Tensor, "B C S T"]) -> Maps:
        """The scores of normalised images at the resolution of the head, and those of the auxiliary head in training."""
        found: Maps = self.head(self.pyramid(images))
        return found

    def map_logits(self, images: Float[Tensor, "B C S T"]) -> Float[Tensor, "B K S T"]:
        """The scores of each pixel of normalised images of any size that patches tile."""
        return resized(self.maps(images).logits.float(), (images.shape[2], images.shape[3]))

    def forward(self, batch: Batch) -> Step:
        """The cross-entropy of the head, and of the auxiliary head."""
        assert isinstance(batch.targets, PixelTargets)
        maps, found = batch.targets.maps, self.maps(batch.images)
        loss = pixel_loss(found.logits, maps)
        if found.auxiliary is None:
            return Step(loss, {})
        auxiliary = pixel_loss(found.auxiliary, maps)
        return Step(loss + self.config.auxiliary * auxiliary, {"segmentation_loss": loss, "auxiliary_loss": auxiliary})

    def predict(self, batch: Batch) -> UInt8[Tensor, "B H W"]:
        """The class of each pixel of whole images, on their canvas; `IGNORE` beside them. See `Learner.whole_images`."""
        rows, columns = batch.images.shape[2:]
        found = torch.full((len(batch.images), rows, columns), IGNORE, dtype=torch.uint8, device=batch.images.device)
        for image, size, result in zip(batch.images, batch.sizes.tolist(), found, strict=True):
            height, width = size
            result[:height, :width] = self.classes_of(image[:, :height, :width], self.map_logits)
        return found

    def classes_of(self, image: Tensor, score: Score) -> UInt8[Tensor, "H W"]:
        """The class of each pixel of an image (C, H, W) of uint8 or uint16, in windows or at once as `config` says.

        Args:
            image: The image as it is stored.
            score: `map_logits`, or the same function of an exported graph.
        """
        vit, config = self.encoder.config, self.config
        original = (image.shape[1], image.shape[2])
        window = vit.image_size
        size = original if config.resize == "none" else self.evaluation_size(original)
        if config.inference == "whole":
            patch = vit.patch_size
            size = (max(1, round(size[0] / patch[0])) * patch[0], max(1, round(size[1] / patch[1])) * patch[1])
        pixels = image
        if size != original:
            whole = torch.tensor([[0, 0, *original]], device=image.device)
            pixels = crop_resize(image[None], whole.float(), whole[:, 2:], size)[0]
        if config.inference == "whole":
            images = standardise(pixels, vit.mean, vit.std)[None]
            logits = self.maps(images).logits if score == self.map_logits else score(images)
            return classes_of_bands([logits[0].float()], (logits.shape[2], logits.shape[3]), original)

        def cut(top: int, left: int) -> Tensor:
            part = standardise(pixels[:, top : top + window[0], left : left + window[1]], vit.mean, vit.std)
            return F.pad(part, (0, window[1] - part.shape[2], 0, window[0] - part.shape[1]))  # as beyond the edge in training

        padded = max(size[0], window[0]), max(size[1], window[1])
        return classes_of_bands(averaged_bands(cut, score, padded, window, self.stride_of(window)), size, original)

    def evaluation_size(self, original: Size) -> Size:
        """The size to which an image is resized before it is cut into windows."""
        scale = float(base_scale(torch.tensor([original]).float(), self.encoder.config.image_size))
        return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))

    def graph_facts(self) -> Mapping[str, Any]:
        """See `unveil.protocols.MapsClasses`."""
        if self.config.inference == "whole":
            raise UnveilError(
                "a graph has one size of images, but this segmenter computes whole images of any size (inference whole): use --to "
                "safetensors"
            )
        window = self.encoder.config.image_size
        return {
            "resize": self.config.resize,
            "longest": LONGEST,
            "window": list(window),
            "stride": list(self.stride_of(window)),
            "values": self.stored.tolist(),
            "colours": self.colours.tolist(),
        }

    def stride_of(self, window: Size) -> Size:
        """The distance of windows in pixels."""
        rows, columns = (max(1, round(self.config.stride * side)) for side in window)
        return rows, columns

    def metric(self) -> Metric:
        return MeanIoU(self.classes)

    def items(self, predictions: UInt8[Tensor, "B H W"], sizes: Int[Tensor, "B 2"]) -> list[NDArray[np.uint8]]:
        """The class of each pixel of each image, (H, W): see `unveil.protocols.WritesFolder`."""
        maps = predictions.cpu().numpy()
        return [each[:height, :width] for each, (height, width) in zip(maps, sizes.tolist(), strict=True)]

    def writer(self, out: Any, *, overlays: bool) -> ClassMapWriter:
        """See `unveil.protocols.WritesFolder`."""
        return ClassMapWriter(
            out,
            classes=self.classes,
            stored=self.stored.tolist(),
            colours=self.colours.tolist(),
            in_colour=bool(self.in_colour),
            overlays=overlays,
        )

    @torch.inference_mode()
    def predict_images(  # type: ignore[override]  # maps are a list, where class scores are a table
        self, images: Iterable[Any], *, max_pixels: int = 64_000_000
    ) -> list[NDArray[np.uint8]]:
        """The class of each pixel of images of any size, as arrays (H, W) of numbers of `classes`.

        Args:
            images: Paths, Pillow images, arrays (H, W) or (H, W, C), or tensors (C, H, W): see `raw_image`.
            max_pixels: An image with more pixels than this is refused.

        Raises:
            UnveilError: If an image cannot be read.
        """
        return [found[0].cpu().numpy() for found in whole_image_predictions(self, images, max_pixels=max_pixels)]


def pixel_loss(scores: Float[Tensor, "B K _ _"], maps: Tensor) -> Float[Tensor, ""]:
    """The cross-entropy of the pixels with a class, divided by the number of all pixels.

    So it is a mean over samples, whatever they lack, as in the public recipes (MMSegmentation: `avg_non_ignore=False`).
    """
    total = F.cross_entropy(resized(scores.float(), (maps.shape[1], maps.shape[2])), maps, ignore_index=IGNORE, reduction="sum")
    return total / maps.numel()
