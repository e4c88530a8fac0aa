"""Several views of each image, for methods that compare views (DINO, section 3 and appendix C; MoCo v3, section 4).

A view is a random resized crop with random flip, colour jitter, greyscale, blur and solarisation, computed for a whole batch on its
device. It depends only on the key of the sample, and each view has its own random stream. There are two differences to the papers:
brightness, contrast, saturation and hue are changed in this fixed order, not in a random one; and the blur is proportional to the
side of the image, since the blur of the papers is meant for 224 px.

Letters: B images, C channels, S T sides of the result, V views.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.patches import Size, grid_size
from unveil.blocks.stateless_random import Stream, combine, uniform
from unveil.data.augment import AugmentConfig, adjust_color, random_resized_boxes, standardise, to_grey
from unveil.data.batch import Batch
from unveil.data.resize import crop_resize
from unveil.errors import UnveilError

JITTER_PROB, GREY_PROB = 0.8, 0.2
"""Probability of colour jitter, and of dropping all colour."""
BLUR_SIGMA = (0.1, 2.0)
"""Range of the standard deviation of the blur, in pixels of an image of 224 px."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The distribution of one view."""

    size: Size
    """Height and width."""
    min_scale: float
    """Minimum share of the image's area in the view."""
    max_scale: float = 1.0
    """Maximum share."""
    blur_prob: float = 0.5
    """Probability of a blur."""
    solarise_prob: float = 0.0
    """Probability that bright pixels are inverted."""


def byol_views(size: Size, min_scale: float) -> tuple[View, View]:
    """Two large views: one is always blurred, the other is sometimes solarised (BYOL, Grill et al., 2020, appendix B)."""
    first = View(size=size, min_scale=min_scale, blur_prob=1.0)
    return first, View(size=size, min_scale=min_scale, blur_prob=0.1, solarise_prob=0.2)


class MultiCrop:
    """Draws normalised views from a batch of uint8 or uint16 canvases.

    `crop_scale` of the config is used by the method that defines the views. `color_jitter` is the strength for brightness and
    contrast; saturation has half of it, and hue a quarter. Raises `UnveilError` if `crop` is not "resized".
    """

    own: Callable[[Tensor], Tensor] | None = None
    """See `Augment`; it changes each view."""
    returns_batch = False

    def __init__(self, config: AugmentConfig, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if config.crop != "resized":
            raise UnveilError(f"views of an image are random resized crops, but crop is {config.crop!r}: use --crop resized")
        self.config, self.mean, self.std = config, mean, std
        self.sigma = tuple(pixels * (image_size[0] * image_size[1]) ** 0.5 / 224 for pixels in BLUR_SIGMA)

    def __call__(self, batch: Batch, views: tuple[View, ...], first: int = 0) -> Float[Tensor, "V B C S T"]:
        """One view for each of `views`, which must have the same size; `first` is the number of the first view."""
        return torch.stack([self.draw(batch, view, first + i) for i, view in enumerate(views)])

    def draw(self, batch: Batch, view: View, number: int) -> Float[Tensor, "B C S T"]:
        """View number `number` of each image."""
        config, keys = self.config, combine(combine(batch.keys, batch.keys >> 31), Stream.VIEW + number)
        boxes = random_resized_boxes(batch.sizes.float(), keys, view.min_scale, view.size, view.max_scale)
        happens, amounts = uniform(keys, 5, stream=Stream.VIEW_EVENTS), uniform(keys, 5, stream=Stream.VIEW_AMOUNTS)
        flip = happens[:, 0] < 0.5 * config.flip
        images = crop_resize(batch.images, boxes, batch.sizes, view.size, flip)
        if config.color_jitter:
            change = (2 * amounts[:, :4] - 1) * (happens[:, 1:2] < JITTER_PROB)
            change = change * config.color_jitter * torch.tensor([1, 1, 0.5, 0.25]).to(change.device, non_blocking=True)
            images = adjust_color(images, 1 + change[:, :3])
            if images.shape[1] == 3:
                images = adjust_hue(images, change[:, 3])
        if images.shape[1] == 3:
            images = where_image(happens[:, 2] < GREY_PROB, to_grey(images), images)
        smallest, largest = self.sigma
        sigma = (smallest + (largest - smallest) * amounts[:, 4]) * (happens[:, 3] < view.blur_prob)
        images = gaussian_blur(images, sigma, largest)
        images = solarise(images, happens[:, 4] < view.solarise_prob)
        if self.own is not None:
            images = self.own(images)
        return standardise(images, self.mean, self.std)


def where_image(condition: Bool[Tensor, " B"], yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` with one condition per image."""
    return torch.where(condition[:, None, None, None], yes, no)


def adjust_hue(images: Float[Tensor, "B 3 S T"], shift: Float[Tensor, " B"]) -> Float[Tensor, "B 3 S T"]:
    """Rotates the hue of each image by a share of the colour circle. The maximum and minimum of the channels do not change.

    As a function of hue, a channel has six parts: two at the maximum, one falling, two at the minimum, one rising.
    """
    high, low = images.amax(dim=1), images.amin(dim=1)
    width = high - low
    red, green, blue = (images / torch.where(width == 0, 1.0, width)[:, None]).unbind(1)
    green_high, blue_high = 2 + blue - red, 4 + red - green
    sextant = torch.where(high == images[:, 0], green - blue, torch.where(high == images[:, 1], green_high, blue_high))
    start = torch.tensor([5.0, 3.0, 1.0]).to(images.device, non_blocking=True)[:, None, None]
    position = (start + (sextant + 6 * shift[:, None, None])[:, None]) % 6  # (B, 3, S, T)
    return high[:, None] - width[:, None] * torch.minimum(position, 4 - position).clamp(0, 1)


def gaussian_blur(images: Float[Tensor, "B C S T"], sigma: Float[Tensor, " B"], max_sigma: float) -> Float[Tensor, "B C S T"]:
    """A Gaussian blur of each image with its own standard deviation, at most `max_sigma`; 0 leaves an image as it is.

    Rows and columns are each multiplied by a matrix. At the edges the image is mirrored.
    """
    rows, columns = (blur_matrix(sigma, max_sigma, side) for side in images.shape[2:])
    return rows[:, None] @ images @ columns[:, None].mT


def blur_matrix(sigma: Float[Tensor, " B"], max_sigma: float, side: int) -> Float[Tensor, "B S S"]:
    """The weights (side, side) of a blur, cut off beyond three times the largest standard deviation."""
    reach = min(max(1, round(3 * max_sigma)), side - 1)
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]).square())  # (B, K)
    weight = weight / weight.sum(dim=1, keepdim=True)
    index = (torch.arange(side, device=sigma.device)[:, None] + offset).abs()  # (S, K)
    index = (side - 1) - ((side - 1) - index).abs()  # mirrored at both edges
    matrix = torch.zeros(len(sigma), side, side, device=sigma.device)
    return matrix.scatter_add_(2, index.expand(len(sigma), -1, -1), weight[:, None].expand(-1, side, -1).contiguous())


def solarise(images: Float[Tensor, "B C S T"], condition: Bool[Tensor, " B"]) -> Float[Tensor, "B C S T"]:
    """Inverts pixels of at least 1/2 in the images for which the condition is True."""
    return where_image(condition, torch.where(images >= 0.5, 1 - images, images), images)


def view_size(image_size: Size, patch_size: Size) -> Size:
    """The size of a small view: 96/224 of the image's sides, rounded to whole patches, but at least 2 patches if there are 2."""
    counts = zip(grid_size(image_size, patch_size), patch_size, strict=True)
    height, width = (patch * min(max(2, round(count * 96 / 224)), count) for count, patch in counts)
    return height, width
