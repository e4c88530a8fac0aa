"""Finds copies of images that were resized, compressed, mirrored, cropped by up to a tenth, or made brighter or darker.

    thumbnails (N, 32, 32) -> low frequencies of a cosine transform, without the mean   descriptors (N, 63)
    each image, its crops and their mirror images, against all images                   candidates: cosine above 0.84
    each candidate aligned (scale and shift of both axes), on 32 x 32 pixels             agreement above 0.4
    the rest read again and aligned on 64 x 64 pixels                                   agreement above 0.8

A descriptor alone is not enough: pictures of a thing on a white ground share their low frequencies. So two images count as copies
if, once aligned, their fine structure agrees tile by tile; a frame or a silhouette fills a few tiles only. What is not found:
copies that were turned or painted over, and most of those cropped by more than a tenth of each side. Photographs of a series, taken
from one place, may be found as well.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

CANDIDATE = 0.84
"""The smallest cosine of descriptors. Crops by a tenth have more: 240 of 240 on three sets."""
FIRST = 0.4
"""The smallest agreement of 32 x 32 pixels, to look at 64 x 64 pixels."""
COPY = 0.8, 0.7
"""The smallest agreement of copies on 64 x 64 pixels, and the smallest that three quarters of the tiles must have."""
SPARSE = 0.9, 0.85
"""The same for images of which less than half has any structure, where fewer tiles could differ."""
EQUAL = 0.97
"""With a larger cosine of their descriptors, such images are treated as the others."""
MOST = 8
"""Candidates of an image in each split, the nearest ones, so that a thousand copies of one image do not become a million pairs."""
FREQUENCIES = 8
CROPS = (
    (1.0, 0.0, 0.0),
    *((0.9, 0.1 * across, 0.1 * down) for down in (-1, 0, 1) for across in (-1, 0, 1)),
    (0.8, 0.0, 0.0),
)  # fmt: skip
"""The crops that are compared with whole images: scale, and shift to the right and down, of coordinates from -1 to 1."""
QUERIES, ROWS = 512, 4096
"""Images and rows of a block: 8 MB of cosines, which stay in a cache."""


class Candidates(NamedTuple):
    """Pairs that may be copies."""

    first: Int[Tensor, " p"]
    """Rows of the queries, of which a crop was compared."""
    second: Int[Tensor, " p"]
    """Rows of the bank."""
    cosine: Float[Tensor, " p"]
    crop: Int[Tensor, " p"]
    """Numbers in `CROPS`."""
    mirrored: Bool[Tensor, " p"]


def descriptors(images: Float[Tensor, "n s s"]) -> Float[Tensor, "n d"]:
    """The low frequencies of images, of unit length. Each is weighted by itself, which undoes their fall in natural images."""
    images, side = images.float(), images.shape[-1]
    angle = (torch.arange(side) + 0.5) * math.pi / side
    basis = torch.cos(torch.arange(FREQUENCIES)[:, None] * angle).to(images)  # DCT-II, up to a factor for each row
    basis[0] /= math.sqrt(2)
    found = (basis @ images @ basis.T) * frequency().to(images.device)
    return F.normalize(found.flatten(1)[:, 1:], dim=1)


def frequency() -> Float[Tensor, "f f"]:
    numbers = torch.arange(FREQUENCIES, dtype=torch.float32)
    return torch.hypot(numbers[:, None], numbers[None])


def mirror_signs() -> Float[Tensor, " d"]:
    """What a descriptor is multiplied by if the image is mirrored left to right: odd waves change their sign."""
    signs = torch.ones(FREQUENCIES, FREQUENCIES)
    signs[:, 1::2] = -1
    return signs.flatten()[1:]


def cropped(images: Float[Tensor, "n s s"], crop: tuple[float, float, float]) -> Float[Tensor, "n s s"]:
    """A crop of each image, enlarged to its side."""
    scale, across, down = crop
    boxes = torch.tensor([[scale, scale, across, down]], device=images.device).expand(len(images), 4)
    return warped(images, boxes)[0]


def candidates(
    queries: Float[Tensor, "n s s"],
    bank: Float[Tensor, "m s s"],
    *,
    same: bool,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Candidates:
    """Pairs of a query, of which a crop or its mirror image may be a copy of an image of the bank, as a whole.

    Every query is compared with every row, in blocks. Only the `MOST` nearest rows of each query are kept.

    Args:
        queries: Thumbnails.
        bank: Thumbnails.
        same: Whether the queries are the bank, so that an image is not compared with itself.
        progress: Called with the number of queries that are done, and of all.
    """
    blocks = [descriptors(block).T.contiguous() for block in bank.split(ROWS)]
    signs, found = mirror_signs().to(bank.device), list[Candidates]()
    for start in range(0, len(queries), QUERIES):
        part, pieces = queries[start : start + QUERIES].float(), list[Candidates]()
        for number, crop in enumerate(CROPS):
            described = descriptors(cropped(part, crop))
            for mirrored in (False, True):
                query = described * signs if mirrored else described
                for place, block in enumerate(blocks):
                    cosine = query @ block
                    rows = (cosine.amax(dim=1) > CANDIDATE).nonzero()[:, 0]  # of most queries, none is near
                    if not len(rows):
                        continue
                    near = cosine[rows]
                    i, j = (near > CANDIDATE).nonzero(as_tuple=True)
                    kind = torch.full_like(i, number), torch.full_like(i, mirrored, dtype=torch.bool)
                    pieces.append(Candidates(rows[i] + start, j + place * ROWS, near[i, j], *kind))
        if pieces:
            found.append(best_of(Candidates(*(torch.cat(each) for each in zip(*pieces, strict=True))), same))
        progress(min(start + QUERIES, len(queries)), len(queries))
    if not found:
        none = torch.zeros(0, dtype=torch.int64)
        return Candidates(none, none, none.float(), none, none.bool())
    return Candidates(*(torch.cat(each).cpu() for each in zip(*found, strict=True)))


def best_of(found: Candidates, same: bool) -> Candidates:
    """The best crop of each pair, and of those the `MOST` nearest of each query."""
    if same:
        found = Candidates(*(each[found.first != found.second] for each in found))
    found = first_of_each(found, found.first, found.second)
    order = found.cosine.argsort(descending=True, stable=True)
    order = order[found.first[order].argsort(stable=True)]
    found = Candidates(*(each[order] for each in found))
    start = torch.searchsorted(found.first, found.first)  # the place of the nearest row of the same query
    kept = torch.arange(len(order), device=order.device) - start < MOST
    return Candidates(*(each[kept] for each in found))


def once(pairs: Candidates) -> Candidates:
    """Each pair once, by its nearer direction, if queries and bank are the same images."""
    return first_of_each(pairs, torch.minimum(pairs.first, pairs.second), torch.maximum(pairs.first, pairs.second))


def first_of_each(pairs: Candidates, low: Int[Tensor, " p"], high: Int[Tensor, " p"]) -> Candidates:
    """The nearest pair of each two numbers."""
    order = pairs.cosine.argsort(descending=True, stable=True)
    order = order[high[order].argsort(stable=True)]
    order = order[low[order].argsort(stable=True)]
    new = torch.ones(len(order), dtype=torch.bool, device=order.device)
    new[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    return Candidates(*(each[order][new] for each in pairs))


def warped(images: Float[Tensor, "p s s"], boxes: Float[Tensor, "p 4"]) -> tuple[Float[Tensor, "p s s"], Float[Tensor, "p s s"]]:
    """The part of each image in a box (width, height, shift to the right and down; coordinates from -1 to 1), at the full side.

    Also returns where the box is inside of the image: 1, or 0.
    """
    side = images.shape[-1]
    place = (torch.arange(side, device=images.device) + 0.5) * 2 / side - 1
    x, y = (place * boxes[:, axis, None] + boxes[:, 2 + axis, None] for axis in (0, 1))  # (p, s)
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    found = F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return found, ((x.abs() <= 1)[:, None] & (y.abs() <= 1)[:, :, None]).float()


def standardised(images: Float[Tensor, "p s s"], inside: Float[Tensor, "p s s"]) -> Float[Tensor, "p s s"]:
    """Images with mean 0 and length 1 where they are inside, and 0 elsewhere, so that brightness and contrast do not matter."""
    mean = (images * inside).sum(dim=(1, 2), keepdim=True) / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    centred = (images - mean) * inside
    return centred / centred.square().sum(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6)


def aligned(
    first: Float[Tensor, "p s s"], second: Float[Tensor, "p s s"], boxes: Float[Tensor, "p 4"], steps: int
) -> Float[Tensor, "p 4"]:
    """The box of each first image that resembles the second image most, found from a box nearby.

    Levenberg-Marquardt steps on the squared difference of the standardised images; the derivatives are differences.
    """
    tiny, damping = 0.01, boxes.new_full((len(boxes), 1, 1), 1e-3)

    def residual_of(boxes: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        image, within = warped(first, boxes)
        within = within if inside is None else inside
        return standardised(second, within) - standardised(image, within), within

    residual, inside = residual_of(boxes)
    for _ in range(steps):
        moved = [residual_of(boxes + tiny * one, inside)[0] for one in torch.eye(4, device=boxes.device)]
        slopes = torch.stack([(each - residual) / tiny for each in moved], dim=-1).flatten(1, 2)  # (p, s * s, 4)
        square, slope = slopes.mT @ slopes, slopes.mT @ residual.flatten(1)[..., None]
        step = torch.linalg.solve(square + damping * torch.diag_embed(square.diagonal(dim1=1, dim2=2) + 1e-6), -slope)[..., 0]
        tried = boxes + step.clamp(-0.05, 0.05)
        tried[:, :2].clamp_(0.72, 1.4)
        new, within = residual_of(tried)
        better = new.square().sum(dim=(1, 2)) < residual.square().sum(dim=(1, 2))
        pick = better[:, None, None]
        boxes = torch.where(pick[..., 0], tried, boxes)
        residual, inside = torch.where(pick, new, residual), torch.where(pick, within, inside)
        damping = torch.where(pick, damping * 0.3, damping * 10)
    return boxes


class Agreement(NamedTuple):
    """How far aligned images agree in their fine structure, from -1 to 1."""

    mean: Float[Tensor, " p"]
    """The mean of all tiles, weighted by how much structure they have."""
    quarter: Float[Tensor, " p"]
    """The agreement that three quarters of the tiles have."""
    share: Float[Tensor, " p"]
    """The share of the tiles that have structure."""


def agreement(first: Float[Tensor, "p s s"], second: Float[Tensor, "p s s"], inside: Float[Tensor, "p s s"]) -> Agreement:
    """The agreement of aligned images, with a side of 32 or 64.

    Both are brought to one contrast, and limited to waves of about 2 to 8 pixels of 32: finer ones do not outlive compression, and
    coarser ones are alike in images that differ. The agreement of a tile is twice the covariance of its pixels in both, divided by
    the sum of their mean squares, as in SSIM (Wang et al., 2004), so a thing that is in one image only lowers it.
    """
    side = first.shape[-1]
    scale, tiles = side / 32, side // 8
    spread = math.sqrt(side * side) * 50  # a standard deviation of 50 grey levels
    bands = []
    for images in (first, second):
        images = standardised(images, inside) * spread * (inside.mean(dim=(1, 2), keepdim=True)).sqrt()
        bands.append((blurred(images, 0.5 * scale) - blurred(images, 2 * scale)) * inside)
    one, two = bands

    def by_tile(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], side // tiles).flatten(1)

    both, ones, twos = by_tile(one * two), by_tile(one.square()), by_tile(two.square())
    energy = torch.maximum(ones, twos)
    weight = energy / (energy + 16) * (by_tile(inside) > 0.7)  # the noise of compression has a deviation of about 4 levels
    agree = 2 * both / (ones + twos).clamp(min=1e-3)
    mean = (agree * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-3)
    counts = weight >= 0.3
    ordered = agree.masked_fill(~counts, torch.inf).sort(dim=1).values
    quarter = ordered.gather(1, (counts.sum(dim=1) // 4)[:, None].clamp(max=tiles * tiles - 1))[:, 0]
    return Agreement(mean, quarter.nan_to_num(posinf=0.0), weight.mean(dim=1))


def blurred(images: Float[Tensor, "p s s"], sigma: float) -> Float[Tensor, "p s s"]:
    """Images smoothed by a Gaussian filter."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1, device=images.device).square() / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    padded = F.pad(images[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def verified(
    pairs: Candidates, first: Float[Tensor, "p s s"], second: Float[Tensor, "p s s"], boxes: Tensor | None = None
) -> tuple[Agreement, Tensor]:
    """The agreement of candidate pairs, and the boxes that align them.

    Args:
        pairs: The candidates.
        first: The thumbnail of which a crop was compared, for each pair.
        second: The thumbnail that it was compared with.
        boxes: Where the alignment starts, if it is known from smaller thumbnails.
    """
    mirrored = pairs.mirrored[:, None, None].to(first.device)
    start = torch.tensor([[scale, scale, across, down] for scale, across, down in CROPS])[pairs.crop]
    start[pairs.mirrored, 2] *= -1  # the crop was mirrored: take the crop on the other side of the mirror image
    boxes = start.to(first.device) if boxes is None else boxes
    found, places = [], []
    for part in torch.arange(len(first)).split(256):
        one = torch.where(mirrored[part], first[part].flip(2), first[part]).float()
        place = aligned(one, second[part].float(), boxes[part], 8 if first.shape[-1] <= 32 else 5)
        image, inside = warped(one, place)
        found.append(agreement(image, second[part].float(), inside))
        places.append(place)
    if not found:
        nothing = torch.zeros(0)
        return Agreement(nothing, nothing, nothing), torch.zeros(0, 4)
    return Agreement(*(torch.cat(each) for each in zip(*found, strict=True))), torch.cat(places)


def are_copies(found: Agreement, cosine: Float[Tensor, " p"]) -> Bool[Tensor, " p"]:
    """Which pairs count as copies, by the agreement of 64 x 64 pixels, and by the cosine of their descriptors."""
    sparse = (found.share < 0.5) & (cosine < EQUAL)
    needed, quarter = (torch.where(sparse, *limits) for limits in zip(SPARSE, COPY, strict=True))
    return (found.mean >= needed) & (found.quarter >= quarter)
