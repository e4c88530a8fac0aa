"""Masks of patches. A mask hides the same number of patches in each image of a batch, so that tensors stay rectangular.

A mask is a pair of index tensors: `keep` (B, V) and `hide` (B, M), with V = int(N x (1 - ratio)) as in the public MAE code.
Masks made of rectangles are in `unveil.blocks.block_masks`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.errors import UnveilError

Mask = tuple[Int[Tensor, "B V"], Int[Tensor, "B M"]]


def visible_count(patches: int, ratio: float) -> int:
    """The number of visible patches. Raises `UnveilError` if there would be none."""
    if not 0 <= ratio < 1:
        raise UnveilError(f"mask ratio {ratio} is outside 0 to 1: use for example 0.75")
    visible = int(patches * (1 - ratio))
    if visible < 1:
        raise UnveilError(f"mask ratio {ratio} masks all of {patches} patches: use a smaller ratio or smaller patches")
    return visible


def hide_lowest(score: Float[Tensor, "B N"], visible: int, ties: Int[Tensor, "B N"] | None = None) -> Mask:
    """Masks the patches with the lowest scores. Of patches with equal scores, those with the lowest `ties` come first.

    By default, the ties of a patch are its index.
    """
    if ties is None:
        order = score.argsort(dim=1, stable=True)
    else:
        first = ties.argsort(dim=1)
        order = first.gather(1, score.gather(1, first).argsort(dim=1, stable=True))
    hidden = score.shape[1] - visible
    return order[:, hidden:], order[:, :hidden]


def random_mask(noise: Float[Tensor, "B N"], ratio: float) -> Mask:
    """Masks patches uniformly at random (MAE, section 3), given noise in [0, 1)."""
    return hide_lowest(noise, visible_count(noise.shape[1], ratio))


def given_mask(hidden: Bool[Tensor, "B N"], images: int, patches: int) -> Mask:
    """Converts the bool tensor of a user to a mask. Raises `UnveilError` for a wrong shape, or different counts in the rows."""
    expected, counts = (images, patches), sorted(set(hidden.sum(1).tolist()))
    if hidden.shape != expected or len(counts) > 1:
        found = f"`hidden` is {tuple(hidden.shape)} with {counts[:5]} patches masked in a row"
        raise UnveilError(f"{found}: give {expected} bool, the same count in each row")
    return split(hidden.bool())


def split(hidden: Bool[Tensor, "B N"]) -> Mask:
    """Converts a bool tensor to a mask. It is True where a patch is masked, the same count in each row."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    visible = int((~hidden[0]).sum())
    return order[:, :visible], order[:, visible:]


def as_bool(hide: Int[Tensor, "B M"], patches: int) -> Bool[Tensor, "B N"]:
    """True where a patch is masked: the inverse of `split`."""
    hidden = torch.zeros(hide.shape[0], patches, dtype=torch.bool, device=hide.device)
    return hidden.scatter(1, hide, torch.ones_like(hide, dtype=torch.bool))
