"""Scores of large images from overlapping windows, and the class of each pixel of the original, in bounded memory.

    windows of S x T, by a stride      scores (K, S, T) each
    averaged where windows overlap     (K, rows, W): a band of rows as soon as no further window reaches it
    resized to the original            argmax of a few rows at a time: (h, w)

Letters: K classes, H W sides of the image that the windows are cut from, h w sides of the original.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unveil.blocks.patches import Size

MAX_SCORES = 2**24
"""Scores that are resized at once: 64 MiB."""
Cut = Callable[[int, int], Float[Tensor, "C S T"]]
"""The normalised window whose upper left corner is at this row and column."""
Score = Callable[[Float[Tensor, "B C S T"]], Float[Tensor, "B K S T"]]
"""The scores of windows."""


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: one after each stride, and the last one at the end. `length` is at least that of a window."""
    return [*range(0, length - window, stride), length - window]


def averaged_bands(
    cut: Cut, score: Score, size: Size, window: Size, stride: Size, at_once: int = 4
) -> Iterator[Float[Tensor, "K _ W"]]:
    """The mean of the scores of all windows that have a pixel, for a band of rows after the other.

    Args:
        cut: Cuts a window.
        score: Computes the scores of windows.
        size: H and W, at least those of a window.
        window: S and T.
        stride: How far the next window is below, and to the right.
        at_once: The number of windows that are scored together.
    """
    tops, lefts = starts(size[0], window[0], stride[0]), starts(size[1], window[1], stride[1])
    sums: Tensor | None = None
    counts = torch.zeros(window[0], size[1])
    for top, following in zip(tops, [*tops[1:], size[0]], strict=True):
        for first in range(0, len(lefts), at_once):
            some = lefts[first : first + at_once]
            scores = score(torch.stack([cut(top, left) for left in some])).float()
            if sums is None:
                sums, counts = scores.new_zeros(scores.shape[1], window[0], size[1]), counts.to(scores.device)
            for left, each in zip(some, scores, strict=True):
                sums[:, :, left : left + window[1]] += each
                counts[:, left : left + window[1]] += 1
        assert sums is not None
        done = following - top
        yield sums[:, :done] / counts[:done]
        sums, counts = (torch.cat([x[..., done:, :], torch.zeros_like(x[..., :done, :])], dim=-2) for x in (sums, counts))


def classes_of_bands(bands: Iterable[Float[Tensor, "K _ _"]], size: Size, original: Size) -> UInt8[Tensor, "h w"]:
    """The class of the highest score of each pixel of the original.

    Scores are resized as `F.interpolate(mode="bilinear")` does, but some rows at a time.

    Args:
        bands: The scores of rows, from the first on. Those outside of `size` belong to padding.
        size: H and W.
        original: h and w.
    """
    kept: Tensor | None = None  # the rows from `first` on that are still needed
    first, written = 0, 0
    result = torch.empty(0, dtype=torch.uint8)
    rows = Between(size[0], original[0])
    for band in bands:
        band = band[:, : size[0], : size[1]]
        if kept is None:
            result = torch.empty(original, dtype=torch.uint8, device=band.device)
            columns = Between(size[1], original[1], band.device)
        kept = band if kept is None else torch.cat([kept, band], dim=1)
        end = min(first + kept.shape[1], size[0])
        ready = original[0] if end == size[0] else int((rows.after < end).sum())
        step = max(1, MAX_SCORES // (band.shape[0] * max(size[1], original[1])))
        for start in range(written, ready, step):
            stop = min(start + step, ready)
            some = rows.of(kept, slice(start, stop), first, dim=1)
            result[start:stop] = columns.of(some, slice(None), 0, dim=2).argmax(dim=0).to(torch.uint8)
        written = ready
        needed = min(int(rows.before[written]), end) if written < original[0] else end
        kept, first = kept[:, needed - first :], needed
    return result


class Between:
    """A linear interpolation of `count` values from `length` values: for each the values before and after it, and its place.

    It is that of `F.interpolate` with `align_corners=False`.
    """

    def __init__(self, length: int, count: int, device: torch.device | None = None) -> None:
        place = ((torch.arange(count, device=device, dtype=torch.float64) + 0.5) * (length / count) - 0.5).clamp(min=0)
        self.same = length == count
        self.before = place.long().clamp(max=length - 1)
        self.after = (self.before + 1).clamp(max=length - 1)
        self.share = (place - self.before).clamp(0, 1).float()

    def of(self, values: Tensor, chosen: slice, first: int, dim: int) -> Tensor:
        """Some of the interpolated values along a dimension, which begins with the value `first`."""
        before, after, share = (x[chosen].to(values.device) for x in (self.before, self.after, self.share))
        if self.same:
            return values.index_select(dim, before - first)
        share = share.reshape([-1 if i == dim else 1 for i in range(values.ndim)])
        return values.index_select(dim, before - first).lerp(values.index_select(dim, after - first), share)
