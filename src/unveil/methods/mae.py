"""Masked autoencoder (He et al., 2021).

    image -> patches -> [hide 75 %] -> visible patches -> encoder -> [mask tokens in the gaps] -> decoder -> hidden patches

B images, C H W, N patches, V visible, M hidden, P values in a patch, Q numbers predicted for a patch, D width, E decoder width.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.fast.recompute import Linear
from unveil.blocks.masks import Mask, as_bool, block_mask, given_mask, grid_mask, random_mask
from unveil.blocks.patches import gather, patchify, scatter
from unveil.blocks.positions import sincos_2d
from unveil.blocks.reconstruction import Reconstruction, reconstruction
from unveil.blocks.stateless_random import uniform
from unveil.blocks.targets import NormalisedTarget, PCATarget, PixelTarget, Target, TokenTarget
from unveil.blocks.transformer import Transformer, TransformerConfig, xavier
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Method, Step
from unveil.models.visual_tokenizer import visual_tokenizer_from
from unveil.models.vit import ViT, ViTConfig, heads_of


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """The knobs of MAE; each row of the paper's table 1 turns one of them."""

    mask_ratio: float = 0.75
    """Share of patches that is hidden (figure 5)."""
    sampling: Literal["random", "block", "grid"] = "random"
    """Which patches are hidden (table 1f)."""
    target: Literal["normalised", "pixel", "pca", "token"] = "normalised"
    """What is predicted: pixels normalised in each patch, raw pixels, 96 principal coefficients, or visual tokens (table 1d)."""
    tokenizer: str = "kmeans"
    """Where visual tokens come from: kmeans of patches, or the run folder of a trained dVAE."""
    codebook: int = 512
    """Visual tokens of kmeans; a dVAE brings its own."""
    mask_tokens_in_encoder: bool = False
    """The encoder sees mask tokens in place of the hidden patches, at 3.3 times the cost for ViT-L (table 1c)."""
    loss_on_all: bool = False
    """Compare all patches, not the hidden ones alone (section 4.1: half a point worse)."""
    decoder_width: int | None = None
    """Width of the decoder (table 1b): 512, or the encoder's where that is smaller."""
    decoder_depth: int | None = None
    """Blocks of the decoder (table 1a): 8, 4 for encoders narrower than 512, 2 for vit-nano."""
    decoder_heads: int | None = None
    """Heads of the decoder: by its width, 16 for 512."""


class MAE(Method):
    """An encoder that sees the visible patches only, and a light decoder that rebuilds the rest."""

    Config = MAEConfig
    encoder: ViT
    config: MAEConfig

    def __init__(self, encoder: ViT, config: MAEConfig, augment: Augment | None = None, target: Target | None = None) -> None:
        super().__init__()
        vit = encoder.config
        self.patches = vit.grid[0] * vit.grid[1]  # N
        width = config.decoder_width or min(512, vit.width)
        depth = config.decoder_depth if config.decoder_depth is not None else (8 if vit.width >= 512 else min(4, vit.depth // 2))
        if target is None and config.target == "token":
            tokenizer, written = visual_tokenizer_from(config.tokenizer, config.codebook, vit)
            target, config = TokenTarget(tokenizer), replace(config, tokenizer=written, codebook=tokenizer.size)
        self.config, self.encoder, self.augmentation = config, encoder, augment
        self.target = target or TARGETS[config.target](vit.patch_size, vit.channels)
        self.mask_token = nn.Parameter(torch.randn(vit.width if config.mask_tokens_in_encoder else width) * 0.02)
        self.decoder_embed = Linear(vit.width, width)
        places = torch.cat([torch.zeros(1, width), sincos_2d(vit.grid, width)])
        self.decoder_positions = nn.Parameter(places, requires_grad=False)  # (1 + N, E)
        heads = config.decoder_heads or heads_of(width)
        self.decoder = Transformer(TransformerConfig(width=width, depth=depth, heads=heads, eps=vit.eps, recompute=vit.recompute))
        self.head = Linear(width, self.target.size)
        xavier(self.decoder_embed)
        xavier(self.head)
        _, hide = self.mask(torch.zeros(1, dtype=torch.int64))  # a ratio that cannot be hidden is refused now
        if not (hide.shape[1] or config.loss_on_all):
            raise UnveilError(f"mask ratio {config.mask_ratio} hides none of {self.patches} patches: use 0.75, or --loss-on-all")

    @classmethod
    def build(cls, vit: ViTConfig, config: MAEConfig, augment: AugmentConfig) -> "MAE":
        """An untrained masked autoencoder."""
        return cls(ViT(vit), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def augment(self, batch: Batch) -> Batch:
        """Crops, flips and normalises."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def prepare(self, batch: Batch) -> None:
        """Lets the target see a sample of images."""
        self.target.prepare(batch.images)

    def forward(self, batch: Batch) -> Step:
        """Hide, encode, paint, compare."""
        return Step(self.compare(batch.images, *self.mask(batch.keys)), {})

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """The patches to keep (B, V) and to hide (B, M) of the samples with these keys."""
        grid, ratio = self.encoder.config.grid, self.config.mask_ratio
        if self.config.sampling == "grid":
            return grid_mask(len(keys), grid, ratio, keys.device)
        if self.config.sampling == "block":
            return block_mask(uniform(keys, 4 * 64, stream=1), grid, ratio)
        return random_mask(uniform(keys, grid[0] * grid[1], stream=1), ratio)

    def compare(self, images: Float[Tensor, "B C H W"], keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]) -> Tensor:
        """The loss of the patches `hide` when only the patches `keep` are seen."""
        painted = self.decode(self.encode(images, keep, hide), keep, hide, self.config.loss_on_all)  # (B, M, Q), or (B, N, Q)
        compared = torch.cat([keep, hide], dim=1) if self.config.loss_on_all else hide
        return self.target.loss(painted, self.target(images, compared))

    def encode(self, images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B T D"]:
        """The class token and the visible patches; with the ablation 1c, all patches, the hidden ones as mask tokens."""
        masked = self.config.mask_tokens_in_encoder
        stand_in = {"hidden": as_bool(hide, self.patches), "mask_token": self.mask_token} if masked else {"keep": keep}
        seen: Tensor = self.encoder(images, **stand_in)
        return seen

    def decode(
        self, seen: Float[Tensor, "B T D"], keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"], every: bool = False
    ) -> Float[Tensor, "B _ Q"]:
        """Puts mask tokens behind what was seen, and predicts the hidden patches; or every one, the visible ones first."""
        x, places, wanted = self.decoder_embed(seen), self.decoder_positions, hide.shape[1] + every * keep.shape[1]
        order = torch.cat([torch.zeros_like(keep[:, :1]), 1 + keep], dim=1)  # (B, 1 + V): the class token, the visible patches
        if self.config.mask_tokens_in_encoder:  # all are there, each in its place
            x = self.decoder(gather(x + places.to(x.dtype), torch.cat([order, 1 + hide], dim=1)), last=wanted)
        else:
            x = self.decoder(x + places[order].to(x.dtype), gaps=(self.mask_token + places[1:], hide), last=wanted)
        painted: Tensor = self.head(x)
        return painted

    def paint(self, images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B N Q"]:
        """Predicts every patch, each in its place."""
        painted = self.decode(self.encode(images, keep, hide), keep, hide, every=True)
        return scatter(torch.empty_like(painted), torch.cat([keep, hide], dim=1), painted)

    def loss(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, ""]:
        """The loss of normalised images; `hidden` is True where a patch is hidden, the same count in each row."""
        return self.compare(images, *self.choose(images, hidden))

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """Rebuilds normalised images; a normalised target borrows the true mean and deviation of each patch."""
        (keep, hide), vit = self.choose(images, hidden), self.encoder.config
        painted = self.paint(images, keep, hide).float()
        pixels = self.target.pixels(painted, patchify(images, vit.patch_size))
        return reconstruction(images, pixels, as_bool(hide, self.patches), vit.patch_size)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """What the target says of the hidden patches: squared error in normalised pixels, or tokens that were found."""
        keep, hide = self.mask(batch.keys)
        return self.target.errors(self.decode(self.encode(batch.images, keep, hide), keep, hide), batch.images, keep, hide)

    def choose(self, images: Tensor, hidden: Bool[Tensor, "B N"] | None) -> Mask:
        """The given mask, or a new one from torch's generator."""
        if hidden is None:
            return self.mask(torch.randint(2**62, (len(images),), device=images.device))
        return given_mask(hidden, len(images), self.patches)


TARGETS: dict[str, type[PixelTarget]] = {"pixel": PixelTarget, "normalised": NormalisedTarget, "pca": PCATarget}
