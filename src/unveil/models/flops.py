"""What a step costs, in FLOPs of matrix products: 2 for a multiplication and an addition, as `torch.utils.flop_counter` counts.

Norms, softmax, GELU and the like take time but no matrix unit, and are left out. Letters: T tokens, D width, E decoder width.
"""

from dataclasses import dataclass

from unveil.models.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of the forward pass of one image."""

    embed: float
    """The patch embedding; the images need no gradient, so going back costs it once and not twice."""
    encoder: float
    """The encoder's blocks."""
    decoder: float = 0.0
    """Decoder, with its embedding and its head."""

    @property
    def forward(self) -> float:
        """All of it."""
        return self.embed + self.encoder + self.decoder

    @property
    def step(self) -> float:
        """Forward and backward: each product again for the gradient of either factor."""
        return 3 * self.forward - self.embed


def block_flops(
    tokens: int,
    width: int,
    mlp_ratio: float = 4.0,
    *,
    asking: int | None = None,
    queries: float | None = None,
    projected: float | None = None,
) -> float:
    """A block's forward pass.

    Args:
        tokens: T, those that are looked at.
        width: D.
        mlp_ratio: Width of the MLP, as a multiple.
        asking: Tokens that look, and come back; all by default.
        queries: Tokens that a query is computed of; those that look, by default.
        projected: Tokens that a key and a value are computed of; all by default.
    """
    asking = tokens if asking is None else asking
    queries, projected = asking if queries is None else queries, tokens if projected is None else projected
    project = 2 * width**2 * (queries + 2 * projected + asking)  # query, key, value, and the way out
    attend = 2 * 2 * asking * tokens * width
    return project + attend + 2 * 2 * asking * width * int(width * mlp_ratio)


def vit_cost(vit: ViTConfig, visible: int | None = None) -> Cost:
    """An encoder's forward pass; `visible` is how many patches it embeds, all by default."""
    patches = vit.grid[0] * vit.grid[1] if visible is None else visible
    embed = 2 * patches * vit.patch_size[0] * vit.patch_size[1] * vit.channels * vit.width
    return Cost(embed=embed, encoder=vit.depth * block_flops(1 + patches, vit.width, vit.mlp_ratio))


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
    """A masked autoencoder's forward pass for one image.

    Args:
        vit: The encoder.
        visible: Patches that are seen.
        width: E.
        depth: Blocks of the decoder.
        predicted: Numbers that are predicted for a patch.
        batch: Images that share the first projections of the mask tokens.
        every: All patches are predicted, not the hidden ones alone.
        plain: As the paper's pseudo-code does it: hidden patches are embedded too, and the decoder answers for all tokens.
        mask_tokens_in_encoder: Ablation 1c.
    """
    patches = vit.grid[0] * vit.grid[1]
    seen = patches if mask_tokens_in_encoder else visible
    encoder = vit_cost(vit, seen)
    tokens, asking = 1 + patches, patches if every else patches - visible
    decoder = 2.0 * (1 + seen) * vit.width * width
    if plain:
        decoder += depth * block_flops(tokens, width) + 2 * patches * width * predicted
        return Cost(embed=vit_cost(vit).embed, encoder=encoder.encoder, decoder=decoder)
    first = tokens if mask_tokens_in_encoder else 1 + visible + patches / batch
    for i in range(depth):
        begins, ends = i == 0 and not mask_tokens_in_encoder, i == depth - 1
        looking = asking if ends else tokens
        known = {"queries": first, "projected": first} if begins else {}
        decoder += block_flops(tokens, width, asking=looking, **known)
    return Cost(embed=encoder.embed, encoder=encoder.encoder, decoder=decoder + 2 * asking * width * predicted)
