"""Images to patches and back.

The values of a patch are in the order (row, column, channel). Letters: B images, C channels, H W pixels, N patches,
V visible patches, P values in a patch, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.errors import UnveilError

Size = tuple[int, int]  # (height, width)


def grid_size(image_size: Size, patch_size: Size) -> Size:
    """Rows and columns of patches. Raises `UnveilError` if the patches do not tile the image."""
    for side, patch in zip(image_size, patch_size, strict=True):
        if patch < 1 or side < patch or side % patch:
            lower = max(side // max(patch, 1), 1) * patch
            raise UnveilError(
                f"image side {side} is not a multiple of patch {patch}: use {lower} or {lower + patch}, or another patch size"
            )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def patchify(images: Float[Tensor, "B C H W"], patch_size: Size) -> Float[Tensor, "B N P"]:
    """Cuts images into patches, row by row."""
    b, c, h, w = images.shape
    (p, q), (rows, columns) = patch_size, grid_size((h, w), patch_size)
    return images.reshape(b, c, rows, p, columns, q).permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, p * q * c)


def unpatchify(patches: Float[Tensor, "B N P"], image_size: Size, patch_size: Size) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    (p, q), (rows, columns) = patch_size, grid_size(image_size, patch_size)
    b, c = patches.shape[0], patches.shape[2] // (p * q)
    return patches.reshape(b, rows, columns, p, q, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, *image_size)


def gather(tokens: Float[Tensor, "B N D"], index: Int[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
    """Selects tokens by their indices, which may differ between the rows of a batch."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def scatter(tokens: Float[Tensor, "B N D"], index: Int[Tensor, "B V"], new: Float[Tensor, "B V D"]) -> Float[Tensor, "B N D"]:
    """A copy of `tokens` with `new` at `index`."""
    return tokens.scatter(1, index[:, :, None].expand(-1, -1, tokens.shape[2]), new.to(tokens.dtype))


class PatchEmbed(nn.Linear):
    """A linear map of each patch (ViT, section 3.1). Equivalent to a convolution whose stride is its kernel size."""

    def __init__(self, patch_size: Size, channels: int, width: int) -> None:
        super().__init__(patch_size[0] * patch_size[1] * channels, width)
        self.patch_size = patch_size

    def forward(self, images: Float[Tensor, "B C H W"], keep: Int[Tensor, "B V"] | None = None) -> Float[Tensor, "B V D"]:
        """Embeds the patches at the indices `keep`, or all patches. Other patches are never read."""
        patches = patchify(images, self.patch_size)
        return super().forward(patches if keep is None else gather(patches, keep))

    @staticmethod
    def from_convolution(weight: Tensor) -> Tensor:
        """The weight of a convolution (D, C, p, q) in the layout of this layer, (D, P)."""
        return torch.flatten(weight.permute(0, 2, 3, 1), 1).contiguous()
