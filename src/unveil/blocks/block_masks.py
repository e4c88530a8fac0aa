"""Masks made of rectangles of patches: BEiT's, SimMIM's and I-JEPA's.

Letters: B images, N patches, V visible, M masked; in I-JEPA's, K target blocks.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.masks import Mask, hide_lowest, visible_count
from unveil.blocks.patches import Size
from unveil.blocks.stateless_random import Stream, uniform
from unveil.errors import UnveilError

BLOCK_NOISE = 4 * 64 + 1
"""Random numbers for each image in `block_mask`: 64 rectangles, and the direction."""


def block_mask(noise: Float[Tensor, "B _"], grid: Size, ratio: float, smallest: int = 16) -> Mask:
    """Masks rectangles until the ratio is reached (BEiT, section 2.3 and algorithm 1).

    Each image gets a sequence of rectangles. A rectangle takes 4 numbers of noise: area (from `smallest` patches to the number to
    mask), aspect (0.3 to 1/0.3, uniform in its logarithm), top and left. Rectangles are masked in turn until there are enough
    patches. The last rectangle is masked only in part, so that the count is exact: line by line in a random direction, which the
    last number of noise chooses.
    """
    (rows, columns), n = grid, grid[0] * grid[1]
    visible = visible_count(n, ratio)
    hidden = n - visible
    u = noise[:, :-1].reshape(noise.shape[0], -1, 4)  # (B, rectangles, 4)
    low = min(smallest, hidden)
    area = low + u[..., 0] * (hidden - low)
    aspect = torch.exp((2 * u[..., 1] - 1) * math.log(1 / 0.3))
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top = (u[..., 2] * (rows - height + 1)).floor()
    left = (u[..., 3] * (columns - width + 1)).floor()
    inside = in_rectangle(grid, top, left, height, width)  # (B, rectangles, N)
    count = inside.shape[1]
    turn = torch.arange(count, device=noise.device)[None, :, None].expand_as(inside)
    first = torch.where(inside, turn, count).amin(dim=1)  # (B, N)
    return hide_lowest(first.float(), visible, direction(noise[:, -1], grid))


def direction(noise: Float[Tensor, " B"], grid: Size) -> Int[Tensor, "B N"]:
    """For each image, the turn of each patch in a random direction: row by row or column by column, from one of the four corners.

    A part of a rectangle that is filled in this order hangs together, and no place of the grid is preferred: a fixed direction
    would mask the top more often than the bottom.
    """
    rows, columns = grid
    y = torch.arange(rows, device=noise.device).repeat_interleave(columns)
    x = torch.arange(columns, device=noise.device).repeat(rows)
    ways = [
        order
        for down in (y, rows - 1 - y)
        for right in (x, columns - 1 - x)
        for order in (down * columns + right, right * rows + down)
    ]
    chosen = (noise * len(ways)).long().clamp(max=len(ways) - 1)
    return torch.stack(ways)[chosen]


def in_rectangle(
    grid: Size, top: Float[Tensor, "*B"], left: Float[Tensor, "*B"], height: Float[Tensor, "*B"], width: Float[Tensor, "*B"]
) -> Bool[Tensor, "*B N"]:
    """True for the patches of a grid inside a rectangle. The sides of the rectangle are whole numbers of patches."""
    y = torch.arange(grid[0], device=top.device)[:, None]
    x = torch.arange(grid[1], device=top.device)[None, :]
    top, left, height, width = (each[..., None, None] for each in (top, left, height, width))
    return ((y >= top) & (y < top + height) & (x >= left) & (x < left + width)).flatten(-2)


def unit_mask(noise: Float[Tensor, "B _"], grid: Size, ratio: float, unit: int) -> Mask:
    """Masks squares of `unit` x `unit` patches at random (SimMIM, section 3.2).

    If the squares do not tile the grid, those at its lower and right edge are smaller, and the last one is masked in part, in a
    random direction, so that the count is the same in each image.

    Args:
        noise: A number in [0, 1) for each square, and one for the direction.
        grid: Rows and columns of patches.
        ratio: Share of the image to mask.
        unit: Side of a square in patches.
    """
    rows, columns = units_of(grid, unit)
    score = noise[:, :-1].reshape(-1, rows, columns).repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2)
    visible = visible_count(rows * columns, ratio) * grid[0] * grid[1] // (rows * columns)
    return hide_lowest(score[:, : grid[0], : grid[1]].flatten(1), visible, direction(noise[:, -1], grid))


def units_of(grid: Size, unit: int) -> Size:
    """Rows and columns of squares of `unit` x `unit` patches. Raises `UnveilError` if a square is larger than the grid."""
    if not 1 <= unit <= min(grid):
        raise UnveilError(f"a unit of {unit} patches does not fit into {grid[0]} x {grid[1]} patches: use 1 to {min(grid)}")
    return -(-grid[0] // unit), -(-grid[1] // unit)


class MultiBlockMask(NamedTuple):
    """The context and the target blocks of each image (I-JEPA)."""

    keep: Int[Tensor, "B V"]
    """Indices of the context patches, the input of the encoder."""
    targets: Int[Tensor, "B K M"]
    """Indices of the patches of each target block. Blocks may overlap each other, but not the context."""


def multi_block_mask(
    keys: Int[Tensor, " B"],
    grid: Size,
    *,
    blocks: int = 4,
    scale: float = 0.175,
    aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: float = 0.925,
) -> MultiBlockMask:
    """Target blocks, and a context block without them (I-JEPA: Assran et al., 2023, section 3 and appendix A.1).

    The mask of a sample depends only on its key, and all masks have the same shape. This needs some changes to the public code:

    - Areas are fixed: `scale` and `context_scale` are the middle of the paper's ranges 0.15 to 0.2 and 0.85 to 1. The public code
      draws both once for each batch.
    - The aspect of the target blocks is drawn for each sample, and not once for each batch. All blocks of a sample have one size.
    - A target block has exactly M = round(scale x N) patches. If no rectangle of that aspect has M patches, it is cut at a
      random edge.
    - The context has exactly V patches, which is what remains of the context block if no target blocks overlap. Samples with more
      keep V of them at random. The public code cuts all samples to the smallest count of the batch, by position.

    Args:
        keys: Keys of the samples.
        grid: Rows and columns of patches.
        blocks: K.
        scale: Area of a target block, as a share of all patches.
        aspect: Range of height over width of the target blocks, uniform.
        context_scale: Area of the context block, as a share of all patches. It has the aspect of the grid.

    Raises:
        UnveilError: If a target block has no patch, or if the target blocks may leave no context.
    """
    (rows, columns), n = grid, grid[0] * grid[1]
    size = round(scale * n)  # M
    tall, wide = (max(1, round(side * context_scale**0.5)) for side in grid)
    visible = tall * wide - blocks * size  # V
    if size < 1 or visible < 1:
        raise UnveilError(
            f"{blocks} target blocks of {size} patches in a context block of {tall} x {wide} patches: expected at least 1 patch in "
            "a target block, and 1 in the rest of the context; change the scale, or use smaller patches"
        )
    u = uniform(keys, 4 + 2 * blocks + n, Stream.MASK)
    low, high = aspect
    ratio = low + u[:, :1] * (high - low)  # (B, 1): one size for all blocks of a sample
    height = (size * ratio).sqrt().round().clamp(-(-size // columns), rows)
    width = (size / height).ceil()
    corner = u[:, 3 : 3 + 2 * blocks].unflatten(1, (blocks, 2))
    top = (corner[..., 0] * (rows - height + 1)).floor()  # (B, K)
    left = (corner[..., 1] * (columns - width + 1)).floor()
    inside = in_rectangle(grid, top, left, height.expand_as(top), width.expand_as(top))  # (B, K, N), M patches or a few more
    order = direction(u[:, -1], grid)[:, None] + n * ~inside  # (B, K, N): patches of the block first
    targets = order.argsort(dim=2)[..., :size]

    free = in_rectangle(
        grid,
        (u[:, 1] * (rows - tall + 1)).floor(),
        (u[:, 2] * (columns - wide + 1)).floor(),
        torch.full_like(u[:, 1], tall),
        torch.full_like(u[:, 1], wide),
    )
    free = free.scatter(1, targets.flatten(1), False)
    score = u[:, 3 + 2 * blocks : -1] - free.float()  # below 0 for patches that may be in the context
    return MultiBlockMask(score.argsort(dim=1, stable=True)[:, :visible], targets)


def grid_mask(batch: int, grid: Size, ratio: float, device: torch.device) -> Mask:
    """Keeps the upper left patch of each square (MAE, figure 6) of 2 x 2 patches for 75 %, or 3 x 3 for 89 %."""
    side = round((1 - ratio) ** -0.5)
    if side < 2 or abs(1 - side**-2 - ratio) > 0.005:
        raise UnveilError(f"grid sampling cannot mask {ratio}: use 0.75 (keeps 1 of 4), 0.889 (1 of 9) or 0.9375 (1 of 16)")
    y = torch.arange(grid[0], device=device)[:, None] % side
    x = torch.arange(grid[1], device=device)[None, :] % side
    order = ((y + x) > 0).flatten().to(torch.uint8).argsort(stable=True).expand(batch, -1)
    visible = -(-grid[0] // side) * -(-grid[1] // side)  # counted on the host, so that nothing waits for a GPU
    return order[:, :visible], order[:, visible:]
