"""Augmentation of a whole batch on its device: random crops, flips and colour jitter.

The geometry is drawn first, and then applied to the images (by `unveil.data.resize`) and to their targets, so labels follow the
crop.

Letters: B images, C channels, H W sides of the canvas, S T sides of the result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.blocks.stateless_random import Stream, uniform
from unveil.data.batch import Batch, Cropped
from unveil.data.resize import LARGE, MAX_VALUE, crop_resize
from unveil.data.targets import Draw, Geometry
from unveil.errors import UnveilError
from unveil.ranges import Share, ShareAboveZero

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDING = 1e-3
"""By how much floats may lie outside of 0 to 1."""
TAKES = "normalise takes a tensor or an array (B, C, H, W) or (C, H, W) of uint8, uint16, or floats between 0 and 1"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How images are augmented (MAE, table 1e)."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("crop_from",)
    crop: Literal["resized", "clipped", "fixed", "none"] = "resized"
    """Kind of crop: random resized crops; the same, with boxes that do not fit cut off and not drawn again (MAE's linear probe);
    crops of fixed size at random positions; or the centre crop without flips."""
    crop_scale: ShareAboveZero = 0.2
    """Minimum share of the image's area in a random resized crop."""
    crop_from: Literal["original", "shrunk"] = "original"
    """What random resized crops are taken from: the original, so that small crops are sharp; or the image shrunk to 8/7 of the size
    of the input, which takes a fraction of the memory."""
    flip: bool = True
    """Flip half of the images left to right, except with crop "none"."""
    color_jitter: Share = 0.0
    """Strength of random brightness, contrast and saturation. 0.4 is common, but it hurts MAE (paper, table 1e)."""


class Augment:
    """Turns a batch of uint8 or uint16 canvases into normalised float images of one size."""

    own: Callable[[Tensor], Tensor] | None = None
    """An `OwnAugment`, which changes the images after the crop and before they are normalised."""

    def __init__(self, config: AugmentConfig, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.config, self.image_size, self.mean, self.std = config, image_size, mean, std

    @property
    def draw_early(self) -> Draw | None:
        """`draw`, if the loader may crop before it makes a batch: random resized crops never reach over the edge of an image."""
        early = self.config.crop_from == "original" and self.config.crop in ("resized", "clipped")
        return self.draw if early and min(self.image_size) >= LARGE else None

    def draw(self, sizes: Int[Tensor, "B 2"], keys: Int[Tensor, " B"]) -> Geometry:
        """Draws a random crop and flip for each image of these sizes. They depend only on the key of the sample."""
        config, sizes = self.config, sizes.float()
        if config.crop == "resized":
            boxes = random_resized_boxes(sizes, keys, config.crop_scale, self.image_size)
        elif config.crop == "clipped":
            boxes = clipped_boxes(sizes, keys, config.crop_scale, self.image_size)
        else:
            boxes = centre_boxes(sizes, self.image_size)
            if config.crop == "fixed":
                boxes = random_shift(boxes, sizes, keys)
        flips = config.flip and config.crop != "none"
        return Geometry(boxes, self.image_size, uniform(keys, 1, stream=Stream.FLIP)[:, 0] < 0.5 if flips else None)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with float images (B, C, S, T), and with targets after the same crop and flip."""
        if isinstance(batch, Cropped):
            images, targets = batch.images, batch.targets
        else:
            geometry = self.draw(batch.sizes, batch.keys)
            images = crop_resize(batch.images, geometry.boxes, batch.sizes, geometry.size, geometry.flip)
            targets = None if batch.targets is None else batch.targets.transformed(geometry)
        if self.config.color_jitter:
            images = images if images.is_floating_point() else images.float() / MAX_VALUE[images.dtype]
            images = color_jitter(images, batch.keys, self.config.color_jitter)
        if self.own is not None:
            images = self.own(images)
        return Batch(standardise(images, self.mean, self.std), batch.sizes, batch.keys, targets)


def eval_geometry(sizes: Int[Tensor, "B 2"], image_size: Size, crop_pct: float | None = None) -> Geometry:
    """The centre crop without a flip, for evaluations. Pass it to `batch.targets.transformed`. For arguments see `centre_boxes`."""
    return Geometry(centre_boxes(sizes.float(), image_size, crop_pct), image_size)


def eval_draw(image_size: Size, crop_pct: float | None = None) -> Draw | None:
    """`eval_geometry` for `ImageDataset.readable`; None if the results are too small to be resized as bytes."""
    return (lambda sizes, keys: eval_geometry(sizes, image_size, crop_pct)) if min(image_size) >= LARGE else None


def eval_images(
    batch: Batch, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...], crop_pct: float | None = None
) -> Float[Tensor, "B C S T"]:
    """Preprocesses images for evaluation: centre crop, resize, normalise. For `crop_pct` see `centre_boxes`."""
    if isinstance(batch, Cropped):
        return standardise(batch.images, mean, std)
    geometry = eval_geometry(batch.sizes, image_size, crop_pct)
    return standardise(crop_resize(batch.images, geometry.boxes, batch.sizes, image_size), mean, std)


def normalise(
    images: Tensor | NDArray[Any], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Float[Tensor, "*B C H W"]:
    """Scales images to 0 to 1, subtracts the mean of each channel and divides by its standard deviation.

    Args:
        images: A tensor or an array (B, C, H, W) or (C, H, W), of type uint8, uint16, or float between 0 and 1. An array may also
            be (B, H, W, C) or (H, W, C), if it has 1, 3 or 4 channels, or as many as there are means.
        mean: One mean per channel. By default ImageNet's for three channels, else their average.
        std: One standard deviation per channel; defaults as for `mean`.

    Raises:
        UnveilError: If the number of means or standard deviations is not that of channels, images are neither tensor nor array, or
            their type, shape or range is another.
    """
    images = channels_first(images, None if mean is None else len(mean))
    if images.is_floating_point():
        low, high = (images.min().item(), images.max().item()) if images.numel() else (0.0, 1.0)
        if not -ROUNDING <= low <= high <= 1 + ROUNDING:  # also if one of them is NaN
            raise UnveilError(f"{TAKES}; these reach from {low:g} to {high:g}: divide by the value of white, such as 255")
    return standardise(images, None if mean is None else tuple(mean), None if std is None else tuple(std))


def channels_first(images: Tensor | NDArray[Any], channels: int | None = None) -> Tensor:
    """Images (B, C, H, W) or (C, H, W) as a tensor. Raises `UnveilError` if they are none. For the arguments, see `normalise`."""
    if not isinstance(images, Tensor | np.ndarray):
        raise UnveilError(f"{TAKES}; found {type(images).__name__}: for example, use numpy.asarray(image)")
    if str(images.dtype).removeprefix("torch.") not in ("uint8", "uint16", "float16", "bfloat16", "float32", "float64"):
        raise UnveilError(f"{TAKES}; these are {images.dtype}")
    counts = (1, 3, 4) if channels is None else (channels,)
    if images.ndim not in (3, 4):
        raise UnveilError(f"{TAKES}; these have the shape {tuple(images.shape)}")
    last = images.shape[-3] not in counts and images.shape[-3] > 4 and images.shape[-1] in counts
    if isinstance(images, Tensor):
        if last:
            raise UnveilError(f"{TAKES}; the shape {tuple(images.shape)} has the channels last: use images.movedim(-1, -3)")
        return images
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3) if last else images).copy())


def standardise(
    images: Tensor, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Float[Tensor, "*B C H W"]:
    """`normalise` without a look at the values, which would wait for a GPU."""
    channels = images.shape[-3]
    mean = mean or (IMAGENET_MEAN if channels == 3 else (0.449,) * channels)
    std = std or (IMAGENET_STD if channels == 3 else (0.226,) * channels)
    if not len(mean) == len(std) == channels:
        raise UnveilError(f"images have {channels} channels, but there are {len(mean)} means and {len(std)} standard deviations")
    centre, spread = (
        torch.tensor([mean, std]).to(images.device, non_blocking=True)[..., None, None].unbind()
    )  # does not wait for a GPU
    # In one copy, since each new tensor of this size costs more than the arithmetic: the system hands out memory page by page.
    return images.to(torch.float32, copy=True).div_(MAX_VALUE.get(images.dtype, 1.0)).sub_(centre).div_(spread)


def random_resized_boxes(
    sizes: Float[Tensor, "B 2"],
    keys: Int[Tensor, " B"],
    min_scale: float,
    image_size: Size,
    max_scale: float = 1.0,
    tries: int = 10,
) -> Float[Tensor, "B 4"]:
    """Boxes (top, left, height, width) of a random resized crop (Szegedy et al., 2014), as torchvision draws them.

    The area is uniform between `min_scale` and `max_scale` of the image's area. The aspect ratio is between 3/4 and 4/3 of that of
    the result, uniform in its logarithm. The first of `tries` boxes that fits into the image is used. If none fits, the largest
    centred box with an aspect ratio in that range is used.
    """
    height, width = sizes[:, :1], sizes[:, 1:]  # (B, 1)
    u = uniform(keys, 2 * tries + 2, stream=Stream.CROP)
    area = height * width * (min_scale + (max_scale - min_scale) * u[:, :tries])
    aspect_of_result = image_size[1] / image_size[0]
    aspect = aspect_of_result * torch.exp((2 * u[:, tries : 2 * tries] - 1) * math.log(4 / 3))
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # (B, tries)
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    ratio = (width / height).clamp(aspect_of_result * 3 / 4, aspect_of_result * 4 / 3)
    none = ~fits.any(dim=1, keepdim=True)
    h = torch.where(none, torch.minimum(height, (width / ratio).round()).clamp(min=1), h.gather(1, first))
    w = torch.where(none, torch.minimum(width, (height * ratio).round()).clamp(min=1), w.gather(1, first))
    top = torch.where(none, ((height - h) / 2).floor(), (u[:, -2:-1] * (height - h + 1)).floor())
    left = torch.where(none, ((width - w) / 2).floor(), (u[:, -1:] * (width - w + 1)).floor())
    return torch.cat([top, left, h, w], dim=1)


def clipped_boxes(sizes: Float[Tensor, "B 2"], keys: Int[Tensor, " B"], min_scale: float, image_size: Size) -> Float[Tensor, "B 4"]:
    """Boxes of a random resized crop that are cut where they leave the image, as in the public code of MAE's linear probe.

    The first box of `random_resized_boxes` is used, and sides that are longer than the image are cut, so that the aspect ratio of
    such a crop changes.
    """
    height, width = sizes.unbind(1)
    u = uniform(keys, 4, stream=Stream.CROP)
    area = height * width * (min_scale + (1 - min_scale) * u[:, 0])
    aspect = image_size[1] / image_size[0] * torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    h, w = (area / aspect).sqrt().round().clamp(min=1).minimum(height), (area * aspect).sqrt().round().clamp(min=1).minimum(width)
    return torch.stack([(u[:, 2] * (height - h + 1)).floor(), (u[:, 3] * (width - w + 1)).floor(), h, w], dim=1)


def centre_boxes(sizes: Float[Tensor, "B 2"], image_size: Size, crop_pct: float | None = None) -> Float[Tensor, "B 4"]:
    """The largest centred box with the aspect ratio of the result, with its sides times `crop_pct`.

    By default, an image that is at least 8/7 times as large as the result is cropped to 7/8, and a smaller one is not cropped. At
    224 px this is the usual evaluation crop: resize the short side to 256, then take the centre.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    aspect = image_size[1] / image_size[0]
    h = torch.minimum(height, width / aspect)
    h = torch.where(h >= image_size[0] * 8 / 7, h * 7 / 8, h) if crop_pct is None else h * crop_pct
    w = (h * aspect).round().clamp(min=1).minimum(width)
    h = h.round().clamp(min=1)
    return torch.cat([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], dim=1)


def random_shift(boxes: Float[Tensor, "B 4"], sizes: Float[Tensor, "B 2"], keys: Int[Tensor, " B"]) -> Float[Tensor, "B 4"]:
    """Moves boxes to random positions in the image. A box without room to move may reach over the edge by up to 1/8, into black."""
    side = boxes[:, 2:]
    room = sizes - side
    over = torch.where(room < side / 8, (side / 8).floor(), 0.0)
    start = (uniform(keys, 2, stream=Stream.CROP) * (room + 2 * over + 1)).floor() - over
    return torch.cat([start, side], dim=1)


def color_jitter(images: Float[Tensor, "B C S T"], keys: Int[Tensor, " B"], strength: float) -> Float[Tensor, "B C S T"]:
    """Random brightness, contrast and, with three channels, saturation: factors between 1 - strength and 1 + strength."""
    return adjust_color(images, 1 + strength * (2 * uniform(keys, 3, stream=Stream.JITTER) - 1))


def adjust_color(images: Float[Tensor, "B C S T"], factors: Float[Tensor, "B 3"]) -> Float[Tensor, "B C S T"]:
    """Multiplies brightness, contrast and, with three channels, saturation by one factor each, as torchvision does."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 1)
    middle = to_grey(images).mean(dim=(2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast).clamp(0, 1)
    if images.shape[1] != 3:
        return images
    grey = to_grey(images)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def to_grey(images: Float[Tensor, "B C S T"]) -> Float[Tensor, "B 1 S T"]:
    """The luma of each pixel for three channels, else the mean of the channels."""
    shares = [0.299, 0.587, 0.114] if images.shape[1] == 3 else [1 / images.shape[1]] * images.shape[1]
    weights = torch.tensor(shares).to(images.device, non_blocking=True)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)
