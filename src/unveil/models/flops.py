"""FLOPs of the matrix products of a training step. A multiply-add is 2 FLOPs, as in `torch.utils.flop_counter`.

Norms, softmax, GELU and other elementwise operations are not counted. Letters: T tokens, D width, E decoder width.
"""

import math
from dataclasses import dataclass

from unveil.models.vit_config import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of the forward pass for one image."""

    embed: float
    """The patch embedding. Images need no gradient, so its backward pass costs the same as its forward pass, not twice as much."""
    encoder: float
    """The blocks of the encoder."""
    decoder: float = 0.0
    """The decoder, with its embedding and its head."""

    @property
    def forward(self) -> float:
        """The sum of all parts."""
        return self.embed + self.encoder + self.decoder

    @property
    def step(self) -> float:
        """Forward and backward pass. Each product has two more in the backward pass, for the gradients of its factors."""
        return 3 * self.forward - self.embed


def block_flops(
    tokens: int,
    width: int,
    mlp_ratio: float = 4.0,
    *,
    returned: int | None = None,
    queries: float | None = None,
    keys: float | None = None,
    gated: bool = False,
) -> float:
    """FLOPs of the forward pass of a block.

    Args:
        tokens: T, the number of tokens that are attended to.
        width: D.
        mlp_ratio: Width of the MLP, as a multiple of D.
        returned: Number of tokens that the block returns; all by default. Only they attend.
        queries: Number of tokens whose queries are computed; `returned` by default.
        keys: Number of tokens whose keys and values are computed; all by default.
        gated: Whether the MLP is a SwiGLU, whose first layer is twice as wide.
    """
    returned = tokens if returned is None else returned
    queries, keys = returned if queries is None else queries, tokens if keys is None else keys
    project = 2 * width**2 * (queries + 2 * keys + returned)  # query, key and value, output
    attend = 2 * 2 * returned * tokens * width
    return project + attend + (3 if gated else 2) * 2 * returned * width * int(width * mlp_ratio)


def vit_cost(vit: ViTConfig, visible: int | None = None) -> Cost:
    """FLOPs of the forward pass of an encoder; `visible` is the number of patches that it embeds, all by default."""
    patches = vit.grid[0] * vit.grid[1] if visible is None else visible
    embed = 2 * patches * vit.patch_size[0] * vit.patch_size[1] * vit.channels * vit.width
    tokens = vit.prefix_tokens + patches
    encoder = vit.depth * block_flops(tokens, vit.width, vit.mlp_ratio, gated=vit.mlp == "swiglu")
    if vit.window:  # a patch, also one that pads the grid, attends to a window
        windows = math.prod(-(-side // vit.window) for side in vit.grid)
        saved = tokens**2 - windows * vit.window**4
        encoder -= (vit.depth - len(vit.global_blocks)) * 2 * 2 * saved * vit.width
    return Cost(embed=embed, encoder=encoder)


def mae_cost(
    vit: ViTConfig,
    visible: int,
    *,
    width: int,
    depth: int,
    predicted: int,
    batch: int = 256,
    every: bool = False,
    plain: bool = False,
    mask_tokens_in_encoder: bool = False,
) -> Cost:
    """FLOPs of the forward pass of a masked autoencoder for one image.

    Args:
        vit: The encoder.
        visible: Number of visible patches.
        width: E.
        depth: Number of blocks of the decoder.
        predicted: Number of values that are predicted for a patch.
        batch: Number of images that share the first projections of the mask tokens.
        every: Whether all patches are predicted, instead of only the masked ones.
        plain: Whether to count the paper's pseudo-code, which also embeds masked patches, and whose decoder returns all tokens.
        mask_tokens_in_encoder: As in table 1c.
    """
    patches = vit.grid[0] * vit.grid[1]
    encoded = patches if mask_tokens_in_encoder else visible
    encoder = vit_cost(vit, encoded)
    leading = vit.prefix_tokens
    tokens, returned = leading + patches, patches if every else patches - visible
    decoder = 2.0 * (leading + encoded) * vit.width * width
    if plain:
        decoder += depth * block_flops(tokens, width) + 2 * patches * width * predicted
        return Cost(embed=vit_cost(vit).embed, encoder=encoder.encoder, decoder=decoder)
    projected = leading + visible + patches / batch  # tokens that the first block projects; a batch shares the mask tokens
    for i in range(depth):
        first = projected if i == 0 and not mask_tokens_in_encoder else None
        decoder += block_flops(tokens, width, returned=returned if i == depth - 1 else tokens, queries=first, keys=first)
    return Cost(embed=encoder.embed, encoder=encoder.encoder, decoder=decoder + 2 * returned * width * predicted)
