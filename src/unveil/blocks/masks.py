"""Which patches to hide. Every mask hides the same number of patches in each image of a batch.

A mask is a pair of positions: `keep` (B, V) and `hide` (B, M), with V = int(N x (1 - ratio)) as in the public MAE code.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.errors import UnveilError

Mask = tuple[Int[Tensor, "B V"], Int[Tensor, "B M"]]


def visible_count(patches: int, ratio: float) -> int:
    """How many patches stay visible. Raises `UnveilError` where none would."""
    if not 0 <= ratio < 1:
        raise UnveilError(f"mask ratio {ratio} is outside 0 to 1: use for example 0.75")
    visible = int(patches * (1 - ratio))
    if visible < 1:
        raise UnveilError(f"mask ratio {ratio} hides all of {patches} patches: use a smaller ratio or smaller patches")
    return visible


def hide_lowest(score: Float[Tensor, "B N"], visible: int) -> Mask:
    """Hides the patches with the lowest scores; ties go by position."""
    order = score.argsort(dim=1, stable=True)
    hidden = score.shape[1] - visible
    return order[:, hidden:], order[:, :hidden]


def random_mask(noise: Float[Tensor, "B N"], ratio: float) -> Mask:
    """Hides patches uniformly at random (MAE, section 3), given noise in [0, 1)."""
    return hide_lowest(noise, visible_count(noise.shape[1], ratio))


def block_mask(noise: Float[Tensor, "B _"], grid: Size, ratio: float, smallest: int = 16) -> Mask:
    """Hides rectangles until the ratio is reached (BEiT, section 2.3 and algorithm 1).

    Each image gets a row of rectangles with 4 numbers of noise each: area (`smallest` patches up to the ratio's share),
    aspect (0.3 to 1/0.3, uniform in its logarithm), and place. A patch is hidden at the turn of the first rectangle that
    covers it, until enough are; the last rectangle is cut short, row by row, so that the count is exact.
    """
    (rows, columns), n = grid, grid[0] * grid[1]
    visible = visible_count(n, ratio)
    hidden = n - visible
    u = noise.reshape(noise.shape[0], -1, 4)  # (B, rectangles, 4)
    low = min(smallest, hidden)
    area = low + u[..., 0] * (hidden - low)
    aspect = torch.exp((2 * u[..., 1] - 1) * math.log(1 / 0.3))
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top = (u[..., 2] * (rows - height + 1)).floor()[..., None, None]
    left = (u[..., 3] * (columns - width + 1)).floor()[..., None, None]
    y = torch.arange(rows, device=noise.device)[:, None]
    x = torch.arange(columns, device=noise.device)[None, :]
    inside = (y >= top) & (y < top + height[..., None, None]) & (x >= left) & (x < left + width[..., None, None])
    count = inside.shape[1]
    turn = torch.arange(count, device=noise.device)[None, :, None, None].expand_as(inside)
    first = torch.where(inside, turn, count).amin(dim=1).flatten(1)  # (B, N)
    return hide_lowest(first.float(), visible)


def unit_mask(noise: Float[Tensor, "B U"], grid: Size, ratio: float, unit: int) -> Mask:
    """Hides squares of `unit` x `unit` patches at random (SimMIM, section 3.2), given noise in [0, 1) for each square.

    Where the squares do not tile the grid, those at its lower and right edge are smaller, and the last one hidden is cut short, so
    that the count is the same in each image.
    """
    rows, columns = units_of(grid, unit)
    score = noise.reshape(-1, rows, columns).repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2)
    visible = visible_count(rows * columns, ratio) * grid[0] * grid[1] // (rows * columns)
    return hide_lowest(score[:, : grid[0], : grid[1]].flatten(1), visible)


def units_of(grid: Size, unit: int) -> Size:
    """Rows and columns of squares of `unit` x `unit` patches. Raises `UnveilError` where one is larger than the grid."""
    if not 1 <= unit <= min(grid):
        raise UnveilError(f"a unit of {unit} patches does not fit into {grid[0]} x {grid[1]} patches: use 1 to {min(grid)}")
    return -(-grid[0] // unit), -(-grid[1] // unit)


def grid_mask(batch: int, grid: Size, ratio: float, device: torch.device) -> Mask:
    """Keeps one patch, the upper left, of each square of patches (MAE, figure 6): 2 x 2 for 75 %, 3 x 3 for 89 %."""
    side = round((1 - ratio) ** -0.5)
    if side < 2 or abs(1 - side**-2 - ratio) > 0.005:
        raise UnveilError(f"grid sampling cannot hide {ratio}: use 0.75 (one of 4 stays), 0.889 (of 9) or 0.9375 (of 16)")
    y = torch.arange(grid[0], device=device)[:, None] % side
    x = torch.arange(grid[1], device=device)[None, :] % side
    order = ((y + x) > 0).flatten().to(torch.uint8).argsort(stable=True).expand(batch, -1)
    visible = -(-grid[0] // side) * -(-grid[1] // side)  # counted here: a GPU's answer would be waited for
    return order[:, :visible], order[:, visible:]


def given_mask(hidden: Bool[Tensor, "B N"], images: int, patches: int) -> Mask:
    """The mask of a user's bool tensor. Raises `UnveilError` for another shape, or another count in some rows."""
    wanted, counts = (images, patches), sorted(set(hidden.sum(1).tolist()))
    if hidden.shape != wanted or len(counts) > 1:
        found = f"`hidden` is {tuple(hidden.shape)} with {counts[:5]} patches hidden in a row"
        raise UnveilError(f"{found}: give {wanted} bool, the same count in each row")
    return split(hidden.bool())


def split(hidden: Bool[Tensor, "B N"]) -> Mask:
    """The mask of a bool tensor that is True where a patch is hidden, the same count in each row."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    visible = int((~hidden[0]).sum())
    return order[:, :visible], order[:, visible:]


def as_bool(hide: Int[Tensor, "B M"], patches: int) -> Bool[Tensor, "B N"]:
    """True where a patch is hidden: the inverse of `split`."""
    hidden = torch.zeros(hide.shape[0], patches, dtype=torch.bool, device=hide.device)
    return hidden.scatter(1, hide, torch.ones_like(hide, dtype=torch.bool))
