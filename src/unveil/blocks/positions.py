"""Positions of tokens: sine-cosine and learned tables, their resizing, and BEiT's relative position bias."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.fast.learned_bias import selected_biases
from unveil.blocks.patches import Size
from unveil.errors import UnveilError


def sincos_1d(places: Float[Tensor, " T"], width: int) -> Float[Tensor, "T {width}"]:
    """Sines, then cosines, of geometric frequencies (Transformer, section 3.5, which alternates them)."""
    if width % 2:
        raise UnveilError(f"sine-cosine positions need an even width, found {width}")
    frequency = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = places.to(torch.float64)[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos_2d(grid: Size, width: int) -> Float[Tensor, "N {width}"]:
    """Positions of a grid, row by row: the first half of the width encodes the column, the second the row (as public MAE)."""
    if width % 4:
        raise UnveilError(f"2-D sine-cosine positions need a width that is a multiple of 4, found {width}")
    rows, columns = grid
    across, down = (sincos_1d(torch.arange(side), width // 2) for side in (columns, rows))
    return torch.cat([across.repeat(rows, 1), down.repeat_interleave(columns, dim=0)], dim=1)


def resize_positions(positions: Float[Tensor, "T D"], old: Size, new: Size, antialias: bool = False) -> Float[Tensor, "U D"]:
    """Position embeddings for another grid, by bicubic interpolation. Rows before the grid (the class token) do not change.

    By default as the public code of MAE, DINO and BEiT does it, whose results at other sizes depend on it. A table of sines and
    cosines is interpolated too, and not computed for the new grid: its positions stay in the range that the weights know.

    Args:
        positions: One row for each token.
        old: Rows and columns of patches.
        new: The same for the result.
        antialias: Whether to use the wider kernel of timm's `resample_abs_pos_embed`, which also blurs when the grid shrinks.
    """
    if old == new:
        return positions
    prefix = positions.shape[0] - old[0] * old[1]
    table = positions[prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    table = F.interpolate(table, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([positions[:prefix], table.permute(0, 2, 3, 1).flatten(1, 2)[0].to(positions.dtype)])


def resize_biases(table: Float[Tensor, "T h"], old: Size, new: Size) -> Float[Tensor, "U h"]:
    """The table of a `RelativePositionBias` for another grid, by bicubic interpolation. Offset 0 stays at the centre."""
    if old == new:
        return table
    (rows, columns), size = ((2 * side - 1 for side in old), tuple(2 * side - 1 for side in new))
    offsets = rows * columns
    image = table[:offsets].reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=True)
    return torch.cat([image.permute(0, 2, 3, 1).flatten(1, 2)[0].to(table.dtype), table[offsets:]])


def relative_offsets(grid: Size) -> tuple[Int[Tensor, "N N"], Int[Tensor, "N N"]]:
    """For each pair of patches of a grid, the rows and the columns from the second to the first."""
    rows, columns = grid
    y = torch.arange(rows).repeat_interleave(columns)
    x = torch.arange(columns).repeat(rows)
    return y[:, None] - y[None, :], x[:, None] - x[None, :]


def relative_index(grid: Size, class_token: bool) -> Int[Tensor, "T T"]:
    """For each pair of tokens, the index of its offset in a table of all offsets between two patches of a grid.

    With a class token, which comes first, three more rows follow: class to patch, patch to class, class to class.
    """
    (rows, columns), (down, across) = grid, relative_offsets(grid)
    index = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
    if class_token:
        offsets = (2 * rows - 1) * (2 * columns - 1)
        index = F.pad(index, (1, 0, 1, 0))
        index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


class RelativePositionBias(nn.Module):
    """A learned attention bias for each head and each offset between two patches (BEiT, appendix)."""

    index: Tensor

    def __init__(self, grid: Size, heads: int, class_token: bool = True) -> None:
        super().__init__()
        self.grid, self.class_token = grid, class_token
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1) + (3 if class_token else 0)
        self.table = nn.Parameter(torch.zeros(offsets, heads))
        self.register_buffer("index", relative_index(grid, class_token), persistent=False)

    def forward(self, grid: Size | None = None) -> Float[Tensor, "heads T T"]:
        """The bias of each pair of tokens. For another `grid`, the table is interpolated."""
        table: Tensor = self.table
        index = self.index
        if grid is not None and grid != self.grid:
            table = resize_biases(table, self.grid, grid)
            index = relative_index(grid, self.class_token).to(table.device)
        return self.select(table, index)

    def within(self, window: int) -> Float[Tensor, "heads W W"]:
        """The bias of each pair of patches in a window of `window` x `window` patches, without a class token.

        An offset has the bias that it has in the grid. Only for windows larger than the grid is the table interpolated.
        """
        grid = (max(self.grid[0], window), max(self.grid[1], window))
        table = resize_biases(self.table, self.grid, grid)
        rows, columns = relative_offsets((window, window))
        index = (rows + grid[0] - 1) * (2 * grid[1] - 1) + columns + grid[1] - 1
        return self.select(table, index.to(table.device))

    def select(self, table: Float[Tensor, "O heads"], index: Int[Tensor, "T T"]) -> Float[Tensor, "heads T T"]:
        """The biases at these rows of a table."""
        if choose.selected_biases(table):
            return selected_biases(table, index)
        return table[index].permute(2, 0, 1).contiguous()
