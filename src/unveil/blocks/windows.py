"""Attention of patches on a grid: within windows (ViTDet, section 3), and with decomposed relative positions (MViTv2, section 4.1).

    queries, keys, values of R x C patches    (B, h, R * C, d)
      -> windows of w x w patches             (B * windows, h, w * w, d)    the grid is padded at the bottom and on the right
      -> attention within each window
      -> patches of the grid again            (B, h, R * C, d)

Letters: B images, h heads, R rows, C columns, T = R x C patches, w side of a window, d width of a head.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unveil.blocks.attention import Attention, OnGrid, attend
from unveil.blocks.patches import Size
from unveil.errors import UnveilError


class GridAttention(Attention):
    """Self-attention of patches within windows, or of all patches of a grid, with or without decomposed relative positions.

    As in the public code of ViTDet, patches that only pad the grid are zero after the norm, and others attend to them.

    Args:
        width: D.
        heads: h.
        dropout: Share of attention weights to drop in training.
        window: Side of a window in patches; 0 for global attention.
        relative: Rows and columns of patches for which relative positions are learned, from zero; None for no such positions.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, window: int = 0, relative: Size | None = None) -> None:
        super().__init__(width, heads, dropout)
        self.window = window
        sizes = (None, None) if relative is None else relative
        self.rows, self.columns = (None if n is None else nn.Parameter(torch.zeros(2 * n - 1, width // heads)) for n in sizes)

    def mix(
        self,
        query: Float[Tensor, "B h T d"],
        key: Float[Tensor, "B h T d"],
        value: Float[Tensor, "B h T d"],
        *,
        allowed: Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | OnGrid | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """See `Attention.mix`. `bias` is an `OnGrid`; there are no masks."""
        if not isinstance(bias, OnGrid) or allowed is not None or causal:
            raise UnveilError("attention on a grid needs the rows and columns of its patches (OnGrid), and takes no masks")
        grid, scores = bias
        area = (self.window, self.window) if self.window else grid
        if self.window:
            # The projections of patches that are zero are the biases. Padding afterwards projects no patch in vain.
            of_key, of_value = self.query_key_value.bias.unflatten(0, (3, self.heads, -1))[1:]
            query, key, value = (
                to_windows(x, grid, self.window, fill) for x, fill in ((query, None), (key, of_key), (value, of_value))
            )
        if self.rows is not None and self.columns is not None:
            rows, columns = (
                offsets(table, side).to(query.dtype) for table, side in ((self.rows, area[0]), (self.columns, area[1]))
            )
            relative = decomposed(query, rows, columns)
            scores = relative if scores is None else relative + scores
        mixed = attend(query, key, value, bias=scores, dropout=self.dropout if self.training else 0.0)
        mixed = from_windows(mixed, grid, self.window) if self.window else mixed
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return out


def to_windows(
    x: Float[Tensor, "B h T d"], grid: Size, window: int, fill: Float[Tensor, "h d"] | None = None
) -> Float[Tensor, "V h W d"]:
    """Cuts a grid of patches into windows, image by image and row by row: (B, h, R * C, d) to (B * windows, h, w * w, d).

    Args:
        x: Patches, row by row.
        grid: R and C.
        window: w.
        fill: The value of patches that pad the grid to a multiple of w; zero by default.
    """
    below, beside = (-side % window for side in grid)
    x = x.unflatten(2, grid)  # (B, h, R, C, d)
    if below or beside:
        x = F.pad(x, (0, 0, 0, beside, 0, below))
        if fill is not None:
            inside = F.pad(torch.ones(grid, dtype=torch.bool, device=x.device), (0, beside, 0, below))
            x = torch.where(inside[:, :, None], x, fill.to(x.dtype)[:, None, None])
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))  # (B, h, windows down, w, windows across, w, d)
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def from_windows(windows: Float[Tensor, "V h W d"], grid: Size, window: int) -> Float[Tensor, "B h T d"]:
    """The inverse of `to_windows`, without the patches that pad the grid."""
    down, across = (-(-side // window) for side in grid)
    x = windows.unflatten(2, (window, window)).unflatten(0, (-1, down, across))  # (B, down, across, h, w, w, d)
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)  # (B, h, R and padding, C and padding, d)
    patches: Tensor = x[:, :, : grid[0], : grid[1]].flatten(2, 3)
    return patches


def resize_offsets(table: Float[Tensor, "O d"], side: int) -> Float[Tensor, "P d"]:
    """The table of all offsets between `side` rows or columns, 2 side - 1 of them, by linear interpolation as in ViTDet."""
    if len(table) == 2 * side - 1:
        return table
    resized = F.interpolate(table.float().t()[None], size=2 * side - 1, mode="linear", align_corners=False)
    return resized[0].t().to(table.dtype)


def offsets(table: Float[Tensor, "O d"], side: int) -> Float[Tensor, "{side} {side} d"]:
    """The vector of each pair of rows or columns, that attends first. Row 0 of the table is that of the most negative offset."""
    place = torch.arange(side, device=table.device)
    index = place[:, None] - place[None, :] + side - 1
    each: Tensor = resize_offsets(table, side).index_select(0, index.flatten()).unflatten(0, (side, side))
    return each


def decomposed(
    query: Float[Tensor, "B h T d"], rows: Float[Tensor, "R R d"], columns: Float[Tensor, "C C d"]
) -> Float[Tensor, "B h T T"]:
    """The products of each query with the vectors of the offsets of its row and of its column to each other patch, summed."""
    query = query.unflatten(2, (len(rows), len(columns)))  # (B, h, R, C, d)
    down = torch.einsum("bhrcd,rsd->bhrcs", query, rows)
    across = torch.einsum("bhrcd,ctd->bhrct", query, columns)
    return (down[..., :, None] + across[..., None, :]).flatten(4, 5).flatten(2, 3)
