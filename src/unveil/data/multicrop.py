"""Several views of an image, as methods that compare views draw them (DINO, section 3 and appendix C; MoCo v3, section 4).

A view is a random resized crop, flipped or not, in other colours, grey, blurred or solarised: for a whole batch at once, on its
device. All chance comes from the samples' keys, each view's from another stream. As in the papers, but for two things: brightness,
contrast, saturation and hue come in this order for every image, not in a random one; and blur is in proportion to the
image's side, for the papers' is meant for 224 px.

Letters: B images, C channels, S T sides of the result.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unveil.blocks.patches import Size, grid_size
from unveil.blocks.stateless_random import combine, uniform
from unveil.data.augment import AugmentConfig, adjusted, grey, normalise, random_boxes
from unveil.data.batch import Batch
from unveil.data.resize import crop_resize
from unveil.errors import UnveilError

JITTERED, GREYED = 0.8, 0.2
"""Shares of views with other colours, and without any."""
SIGMA = (0.1, 2.0)
"""Deviations of the blur, in pixels of an image of 224."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one view differs from the others."""

    size: Size
    """Height and width."""
    least: float
    """Smallest share of the image's area that it shows."""
    most: float = 1.0
    """Largest share."""
    blurred: float = 0.5
    """Share of views that are blurred."""
    solarised: float = 0.0
    """Share of views whose bright half is inverted."""


def pair(size: Size, least: float) -> tuple[View, View]:
    """Two large views, one always blurred and one sometimes solarised, as BYOL has them (Grill et al., 2020, appendix B)."""
    return View(size=size, least=least, blurred=1.0), View(size=size, least=least, blurred=0.1, solarised=0.2)


class Views:
    """Draws views of a batch of uint8 or uint16 canvases, normalised.

    Of the config, `crop_scale` is for the method to use in its views, `jitter` the strength of brightness and contrast, of which
    saturation has a half and hue a quarter. Raises `UnveilError` where it asks for no random crops.
    """

    def __init__(self, config: AugmentConfig, image_size: Size, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if config.crop != "resized":
            raise UnveilError(f"views of an image are random resized crops, and crop is {config.crop!r}: use --crop resized")
        self.config, self.mean, self.std = config, mean, std
        self.sigma = tuple(pixels * (image_size[0] * image_size[1]) ** 0.5 / 224 for pixels in SIGMA)

    def __call__(self, batch: Batch, views: tuple[View, ...], stream: int = 0) -> Float[Tensor, "V B C S T"]:
        """One view of each kind, all of one size; `stream` is the number of the first."""
        drawn = [self.draw(batch, view, stream + i) for i, view in enumerate(views)]
        return torch.stack(drawn)

    def draw(self, batch: Batch, view: View, number: int) -> Float[Tensor, "B C S T"]:
        """View number `number` of each image."""
        config, keys = self.config, combine(combine(batch.keys, batch.keys >> 31), 1000 + number)
        boxes = random_boxes(batch.sizes.float(), keys, view.least, view.size, view.most)
        happens, amounts = uniform(keys, 5, stream=21), uniform(keys, 5, stream=22)
        flip = happens[:, 0] < 0.5 * config.flip
        images = crop_resize(batch.images, boxes, batch.sizes, view.size, flip)
        if config.jitter:
            change = (2 * amounts[:, :4] - 1) * (happens[:, 1:2] < JITTERED)
            change = change * config.jitter * torch.tensor([1, 1, 0.5, 0.25]).to(change.device, non_blocking=True)
            images = adjusted(images, 1 + change[:, :3])
            if images.shape[1] == 3:
                images = turned(images, change[:, 3])
        if images.shape[1] == 3:
            images = chosen(happens[:, 2] < GREYED, grey(images), images)
        least, most = self.sigma
        images = blurred(images, (least + (most - least) * amounts[:, 4]) * (happens[:, 3] < view.blurred), most)
        images = solarised(images, happens[:, 4] < view.solarised)
        return normalise(images, self.mean, self.std)


def chosen(which: Bool[Tensor, " B"], yes: Tensor, no: Tensor) -> Tensor:
    """Images from one batch or from the other."""
    return torch.where(which[:, None, None, None], yes, no)


def turned(images: Float[Tensor, "B 3 S T"], by: Float[Tensor, " B"]) -> Float[Tensor, "B 3 S T"]:
    """Other hues: each turns by a share of the circle of colours; the largest and the smallest value of a pixel stay as they are.

    A channel follows its hue in six stretches: two at the top, one down, two at the bottom, one up.
    """
    high, low = images.amax(dim=1), images.amin(dim=1)
    width = high - low
    red, green, blue = (images / torch.where(width == 0, 1.0, width)[:, None]).unbind(1)
    green_high, blue_high = 2 + blue - red, 4 + red - green
    sextant = torch.where(high == images[:, 0], green - blue, torch.where(high == images[:, 1], green_high, blue_high))
    start = torch.tensor([5.0, 3.0, 1.0]).to(images.device, non_blocking=True)[:, None, None]
    place = (start + (sextant + 6 * by[:, None, None])[:, None]) % 6  # (B, 3, S, T)
    return high[:, None] - width[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def blurred(images: Float[Tensor, "B C S T"], sigma: Float[Tensor, " B"], most: float) -> Float[Tensor, "B C S T"]:
    """A Gaussian blur of each image with its own deviation, at most `most`; with 0 nothing changes.

    Rows and columns are multiplied by a matrix each; what would look over the edge looks back into the image.
    """
    rows, columns = (blur_matrix(sigma, most, side) for side in images.shape[2:])
    return rows[:, None] @ images @ columns[:, None].mT


def blur_matrix(sigma: Float[Tensor, " B"], most: float, side: int) -> Float[Tensor, "B S S"]:
    """The weights (side, side) of a blur, cut off beyond three times the largest deviation."""
    reach = min(max(1, round(3 * most)), side - 1)
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]).square())  # (B, K)
    weight = weight / weight.sum(dim=1, keepdim=True)
    place = (torch.arange(side, device=sigma.device)[:, None] + offset).abs()  # (S, K)
    place = (side - 1) - ((side - 1) - place).abs()  # mirrored at both edges
    matrix = torch.zeros(len(sigma), side, side, device=sigma.device)
    return matrix.scatter_add_(2, place.expand(len(sigma), -1, -1), weight[:, None].expand(-1, side, -1).contiguous())


def solarised(images: Float[Tensor, "B C S T"], which: Bool[Tensor, " B"]) -> Float[Tensor, "B C S T"]:
    """What is brighter than the middle is inverted, in the chosen images."""
    return chosen(which, torch.where(images >= 0.5, 1 - images, images), images)


def view_size(image_size: Size, patch_size: Size) -> Size:
    """Sides of a small view: 96/224 of the image's, in whole patches, two at least where there are two."""
    counts = zip(grid_size(image_size, patch_size), patch_size, strict=True)
    height, width = (patch * min(max(2, round(count * 96 / 224)), count) for count, patch in counts)
    return height, width
