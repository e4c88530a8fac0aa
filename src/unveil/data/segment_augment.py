"""Augmentation for one class per pixel: random resize, a crop that no class fills, flip, and photometric distortion.

This is the usual recipe of semantic segmentation (MMSegmentation, configs of ADE20K). The crop and the resize are one box of the
stored image, which may reach over its edge: what is outside is zero after normalisation, and has no class.

Letters: B images, H W sides of an image, S T sides of the result.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.blocks.stateless_random import Stream, uniform
from unveil.data.augment import AugmentConfig, standardise, to_grey
from unveil.data.batch import Batch
from unveil.data.pixels import IGNORE
from unveil.data.resize import MAX_VALUE, crop_resize
from unveil.data.targets import Geometry, PixelTargets, source_indices
from unveil.errors import UnveilError

SMALLEST = 0.5
"""The smallest factor by which images are resized."""
TRIES, MAX_SHARE, GRID = 10, 0.75, 64
"""How many crops are drawn until no class has more than this share of the labelled pixels (`cat_max_ratio`), and the side of the
grid of pixels that are counted."""
LONGEST = 4
"""The long side of a resized image is at most this many times the short side of the result, as in (2048, 512)."""


class SegmentAugment:
    """Turns a batch of uint8 or uint16 canvases and their maps into normalised images and maps of one size.

    Args:
        config: `crop` "resized" draws the size and the place, "fixed" only the place, "none" nothing; `crop_scale` is the smallest
            share of a square image that a crop shows; `color_jitter` is the strength of the distortion, 0.5 in the recipe.
        image_size: Height and width of the result.
        mean: For the normalisation.
        std: For the normalisation.
        own_pixels: Whether the factor of the resize starts from the pixels of the image, and not from the short side of the result.

    Raises:
        UnveilError: If `crop` is "clipped".
    """

    own: Callable[[Tensor], Tensor] | None = None
    """See `unveil.data.augment.Augment`."""

    def __init__(
        self, config: AugmentConfig, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...], *, own_pixels: bool
    ) -> None:
        if config.crop == "clipped":
            raise UnveilError("crop clipped is for linear probes: to segment, use crop resized, fixed or none")
        self.config, self.image_size, self.mean, self.std, self.own_pixels = config, image_size, mean, std, own_pixels

    def draw(self, sizes: Int[Tensor, "B 2"], keys: Int[Tensor, " B"], attempt: int = 0) -> Geometry:
        """The crop of each image. All attempts of an image have the same size, and other places."""
        config, sides = self.config, sizes.float()
        u = uniform(keys, 1 + 2 * TRIES, stream=Stream.CROP)
        factor = torch.ones(len(keys), 1, device=keys.device)
        if config.crop == "resized":
            factor = SMALLEST + (config.crop_scale**-0.5 - SMALLEST) * u[:, :1]
        scale = factor * (1.0 if self.own_pixels else base_scale(sides, self.image_size))  # (B, 1)
        box = (torch.tensor(self.image_size, device=keys.device) / scale).round().clamp(min=1)  # (B, 2)
        room = (sides - box).clamp(min=0)
        place = u[:, 1 + 2 * attempt : 3 + 2 * attempt] if config.crop != "none" else 0.5
        start = (place * (room + (config.crop != "none"))).floor()
        flips = config.flip and config.crop != "none"
        flip = uniform(keys, 1, stream=Stream.FLIP)[:, 0] < 0.5 if flips else None
        return Geometry(torch.cat([start, box], dim=1), self.image_size, flip)

    def max_shrink(self, canvas: Size) -> float:
        """See `crop_resize`."""
        short, factor = min(self.image_size), SMALLEST if self.config.crop == "resized" else 1.0
        unit = 1.0 if self.own_pixels else max(min(canvas) / short, max(canvas) / (LONGEST * short))
        return unit / factor + 1 / short  # boxes are rounded to pixels

    def varied(self, sizes: Int[Tensor, "B 2"], keys: Int[Tensor, " B"], targets: PixelTargets) -> Geometry:
        """The first crop of each image in which no class has more than `MAX_SHARE`; the last one if all have."""
        geometry = self.draw(sizes, keys)
        boxes, chosen = geometry.boxes, torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
        for attempt in range(TRIES if self.config.crop != "none" else 0):  # without a look at `chosen`, which would wait for a GPU
            each = self.draw(sizes, keys, attempt)
            boxes = torch.where(chosen[:, None], boxes, each.boxes)
            chosen |= is_varied(targets.transformed(each._replace(size=(GRID, GRID), flip=None)).maps)
        return geometry._replace(boxes=boxes)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with float images (B, C, S, T) and maps (B, S, T)."""
        assert isinstance(batch.targets, PixelTargets)
        geometry = self.varied(batch.sizes, batch.keys, batch.targets)
        most = self.max_shrink((batch.images.shape[2], batch.images.shape[3]))
        images = crop_resize(batch.images, geometry.boxes, batch.sizes, geometry.size, geometry.flip, most)
        targets = batch.targets.transformed(geometry)
        if self.config.color_jitter:
            images = photometric_distortion(images, batch.keys, self.config.color_jitter)
        if self.own is not None:
            images = self.own(images)
        images = standardise(images, self.mean, self.std)
        images = torch.where(inside(geometry, batch.sizes)[:, None], images, 0.0)
        return Batch(images, batch.sizes, batch.keys, targets)


def base_scale(sides: Float[Tensor, "B 2"], image_size: Size) -> Float[Tensor, "B 1"]:
    """The factor that makes the short side of an image that of the result, unless its long side would be too long."""
    short = min(image_size)
    return torch.minimum(short / sides.amin(dim=1, keepdim=True), LONGEST * short / sides.amax(dim=1, keepdim=True))


def is_varied(maps: Int[Tensor, "B S T"]) -> Bool[Tensor, " B"]:
    """Whether a map has two classes or more, and none has more than `MAX_SHARE` of its labelled pixels."""
    flat = maps.flatten(1)
    counts = torch.zeros(len(maps), IGNORE + 1, device=maps.device).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    counts = counts[:, :IGNORE]
    return ((counts > 0).sum(dim=1) > 1) & (counts.amax(dim=1) < MAX_SHARE * counts.sum(dim=1))


def inside(geometry: Geometry, sizes: Int[Tensor, "B 2"]) -> Bool[Tensor, "B S T"]:
    """Which pixels of the result lie within the image."""
    boxes = geometry.boxes.long()
    rows = source_indices(boxes[:, 0], boxes[:, 2], geometry.size[0])  # (B, S)
    columns = source_indices(boxes[:, 1], boxes[:, 3], geometry.size[1])
    rows, columns = ((each >= 0) & (each < side[:, None]) for each, side in zip((rows, columns), sizes.unbind(dim=1), strict=True))
    if geometry.flip is not None:
        columns = torch.where(geometry.flip[:, None], columns.flip(1), columns)
    return rows[:, :, None] & columns[:, None, :]


def photometric_distortion(images: Tensor, keys: Int[Tensor, " B"], strength: float) -> Float[Tensor, "B C S T"]:
    """Random brightness, contrast, saturation and hue, each of half of the images (SSD, Liu et al., 2016).

    At a strength of 0.5, the recipe's: brightness changes by up to 0.125, contrast and saturation by factors of 0.5 to 1.5, and the
    hue by up to 18 degrees. Saturation and hue are for three channels. They are changed in the plane of constant brightness (YIQ).
    """
    images = images if images.is_floating_point() else images.float() / MAX_VALUE[images.dtype]
    u = uniform(keys, 8, stream=Stream.JITTER)
    amount = torch.where(u[:, :4] < 0.5, 2 * u[:, 4:] - 1, 0.0) * strength  # (B, 4)
    brightness, contrast, saturation, hue = amount[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1)
    images = (images + brightness / 4).clamp(0, 1)
    images = (images * (1 + contrast)).clamp(0, 1)
    if images.shape[1] != 3:
        return images
    grey = to_grey(images)
    images = grey + (images - grey) * (1 + saturation)
    return torch.einsum("bij,bjst->bist", hue_rotation(hue[:, 0, 0, 0] * 0.2 * torch.pi), images).clamp(0, 1)


def hue_rotation(angle: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """The matrix that turns the colours of a pixel by an angle around the axis of greys."""
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], device=angle.device
    )
    turn = torch.zeros(len(angle), 3, 3, device=angle.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    found: Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return found
