"""Augmentation of a whole batch on its device: what is cropped, flipped and coloured, and how; `resize` does the work.

Letters: B images, C channels, H W sides of the canvas, S T sides of the result.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.blocks.stateless_random import uniform
from unveil.data.batch import Batch
from unveil.data.resize import FULL, crop_resize
from unveil.errors import UnveilError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How images are changed before they are seen (MAE, table 1e)."""

    crop: Literal["resized", "fixed", "none"] = "resized"
    """A random resized crop; a crop of fixed size at a random place; or the centre, without flips."""
    crop_scale: float = 0.2
    """Smallest share of an image's area that a random resized crop takes."""
    flip: bool = True
    """Flip half of the images left to right; never with crop "none"."""
    jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0.4 is usual, the paper has it hurt."""


class Augment:
    """Makes normalised float images of one size from a batch of uint8 or uint16 canvases."""

    def __init__(self, config: AugmentConfig, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.config, self.image_size, self.mean, self.std = config, image_size, mean, std

    def __call__(self, batch: Batch) -> Batch:
        """The batch with (B, C, S, T) float images; all chance comes from the samples' keys."""
        config, sizes = self.config, batch.sizes.float()
        flip = None
        if config.crop == "resized":
            boxes = random_boxes(sizes, batch.keys, config.crop_scale, self.image_size)
        else:
            boxes = centre_boxes(sizes, self.image_size)
            if config.crop == "fixed":
                boxes = moved_boxes(boxes, sizes, batch.keys)
        if config.flip and config.crop != "none":
            flip = uniform(batch.keys, 1, stream=12)[:, 0] < 0.5
        images = crop_resize(batch.images, boxes, batch.sizes, self.image_size, flip)
        if config.jitter:
            images = jittered(images, batch.keys, config.jitter)
        return batch._replace(images=normalise(images, self.mean, self.std))


def view(batch: Batch, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Tensor, "B C S T"]:
    """The images as evaluations see them: the centre, resized and normalised."""
    boxes = centre_boxes(batch.sizes.float(), image_size)
    return normalise(crop_resize(batch.images, boxes, batch.sizes, image_size), mean, std)


def normalise(
    images: Tensor, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Float[Tensor, "*B C H W"]:
    """Images as encoders take them: scaled to 0 to 1, less the mean, over the deviation of each channel.

    Args:
        images: (B, C, H, W) or (C, H, W): uint8, uint16, or float already between 0 and 1.
        mean: Each channel's mean; ImageNet's by default, or its average where there are not three channels.
        std: Each channel's standard deviation, likewise.

    Raises:
        UnveilError: When there are not as many means as channels, or the type is another.
    """
    if not (images.is_floating_point() or images.dtype in FULL):
        raise UnveilError(f"images are {images.dtype}: give uint8, uint16, or floats between 0 and 1")
    channels = images.shape[-3]
    mean = mean or (IMAGENET_MEAN if channels == 3 else (0.449,) * channels)
    std = std or (IMAGENET_STD if channels == 3 else (0.226,) * channels)
    if not len(mean) == len(std) == channels:
        raise UnveilError(f"images have {channels} channels, and there are {len(mean)} means and {len(std)} deviations")
    centre, spread = torch.tensor([mean, std]).to(images.device, non_blocking=True)[..., None, None].unbind()  # no wait for a GPU
    return (images.float() / FULL.get(images.dtype, 1.0) - centre) / spread


def random_boxes(
    sizes: Float[Tensor, "B 2"], keys: Int[Tensor, " B"], scale: float, image_size: Size, most: float = 1.0, tries: int = 10
) -> Float[Tensor, "B 4"]:
    """Boxes (top, left, height, width) of a random resized crop (Szegedy et al., 2014), as torchvision draws them.

    Area uniform between `scale` and `most` of the image's, aspect between 3/4 and 4/3 of the result's, uniform in its logarithm;
    the first of ten tries that fits inside the image, or else the largest box of a fitting aspect in the centre.
    """
    height, width = sizes[:, :1], sizes[:, 1:]  # (B, 1)
    u = uniform(keys, 2 * tries + 2, stream=11)
    area = height * width * (scale + (most - scale) * u[:, :tries])
    wanted = image_size[1] / image_size[0]
    aspect = wanted * torch.exp((2 * u[:, tries : 2 * tries] - 1) * math.log(4 / 3))
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # (B, tries)
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    ratio = (width / height).clamp(wanted * 3 / 4, wanted * 4 / 3)
    none = ~fits.any(dim=1, keepdim=True)
    h = torch.where(none, torch.minimum(height, (width / ratio).round()).clamp(min=1), h.gather(1, first))
    w = torch.where(none, torch.minimum(width, (height * ratio).round()).clamp(min=1), w.gather(1, first))
    top = torch.where(none, ((height - h) / 2).floor(), (u[:, -2:-1] * (height - h + 1)).floor())
    left = torch.where(none, ((width - w) / 2).floor(), (u[:, -1:] * (width - w + 1)).floor())
    return torch.cat([top, left, h, w], dim=1)


def centre_boxes(sizes: Float[Tensor, "B 2"], image_size: Size) -> Float[Tensor, "B 4"]:
    """The largest box of the result's aspect in the centre: 7/8 of it where the image is larger than 8/7 of the result."""
    height, width = sizes[:, :1], sizes[:, 1:]
    aspect = image_size[1] / image_size[0]
    h = torch.minimum(height, width / aspect)
    h = torch.where(h >= image_size[0] * 8 / 7, h * 7 / 8, h)
    w = (h * aspect).round().clamp(min=1).minimum(width)
    h = h.round().clamp(min=1)
    return torch.cat([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], dim=1)


def moved_boxes(boxes: Float[Tensor, "B 4"], sizes: Float[Tensor, "B 2"], keys: Int[Tensor, " B"]) -> Float[Tensor, "B 4"]:
    """Boxes of the same size at random places; where there is no room, they reach an eighth over the edge, into black."""
    side = boxes[:, 2:]
    room = sizes - side
    over = torch.where(room < side / 8, (side / 8).floor(), 0.0)
    start = (uniform(keys, 2, stream=11) * (room + 2 * over + 1)).floor() - over
    return torch.cat([start, side], dim=1)


def jittered(images: Float[Tensor, "B C S T"], keys: Int[Tensor, " B"], strength: float) -> Float[Tensor, "B C S T"]:
    """Random brightness, contrast and, with three channels, saturation: factors between 1 - strength and 1 + strength."""
    return adjusted(images, 1 + strength * (2 * uniform(keys, 3, stream=13) - 1))


def adjusted(images: Float[Tensor, "B C S T"], factors: Float[Tensor, "B 3"]) -> Float[Tensor, "B C S T"]:
    """Brightness, contrast and, with three channels, saturation, each times a factor."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 1)
    middle = grey(images).mean(dim=(2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast).clamp(0, 1)
    if images.shape[1] != 3:
        return images
    without = grey(images)
    return (without + (images - without) * saturation).clamp(0, 1)


def grey(images: Float[Tensor, "B C S T"]) -> Float[Tensor, "B 1 S T"]:
    """The brightness of each pixel; the mean of the channels where there are not three."""
    shares = [0.299, 0.587, 0.114] if images.shape[1] == 3 else [1 / images.shape[1]] * images.shape[1]
    weights = torch.tensor(shares).to(images.device, non_blocking=True)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)
