"""Masked autoencoder (He et al., 2021).

    image -> patches -> [mask 75 %] -> visible patches -> encoder -> [add mask tokens] -> decoder -> masked patches

B images, C H W, N patches, V visible, M masked, P values in a patch, Q numbers predicted for a patch, D width, E decoder width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.attention import decoder_heads
from unveil.blocks.block_masks import BLOCK_NOISE, block_mask, grid_mask
from unveil.blocks.init import xavier
from unveil.blocks.masks import Mask, as_bool, given_mask, random_mask
from unveil.blocks.patches import patchify, scatter
from unveil.blocks.positions import sincos_2d
from unveil.blocks.predictor import predict_tokens
from unveil.blocks.reconstruction import Reconstruction, reconstruction
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.targets import PIXEL_TARGETS, Target, TokenTarget
from unveil.blocks.transformer import Transformer, TransformerConfig
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Method, Step
from unveil.models.visual_tokenizer import visual_tokenizer_from
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.ranges import Depth, Range, Share, Width


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """The options of MAE; each row of the paper's table 1 varies one of them."""

    HIDDEN = ("visual_tokenizer", "codebook_size", "mask_tokens_in_encoder", "loss_on_all", "decoder_heads")
    mask_ratio: Share = 0.75
    """Share of the patches that is masked (figure 5)."""
    sampling: Literal["random", "block", "grid"] = "random"
    """How masked patches are chosen: at random, in blocks, or on a regular grid (table 1f)."""
    target: Literal["normalised", "pixel", "pca", "token"] = "normalised"
    """Prediction target: pixels normalised in each patch, raw pixels, 96 principal components, or visual tokens (table 1d)."""
    visual_tokenizer: str = "kmeans"
    """Source of the visual tokens: "kmeans" of patches, or the run folder of a trained dVAE."""
    codebook_size: Annotated[int, Range(2, 2**20)] = 512
    """Number of visual tokens for k-means; a dVAE has its own."""
    mask_tokens_in_encoder: bool = False
    """Give the encoder mask tokens instead of leaving out masked patches, at 3.3 times the cost for ViT-L (table 1c)."""
    loss_on_all: bool = False
    """Compute the loss on all patches instead of the masked ones only (section 4.1: half a point worse)."""
    decoder_width: Width | None = None
    """Width of the decoder (table 1b); by default 512, or that of the encoder if it is smaller."""
    decoder_depth: Depth | None = None
    """Blocks of the decoder (table 1a); by default 8, or 4 for encoders narrower than 512, or 2 for vit-nano."""
    decoder_heads: Annotated[int, Range(1, 1024)] | None = None
    """Attention heads of the decoder; by default 16 as in the public code, but 3, 3 and 6 for a width of 96, 192 and 384."""


class MAE(Method):
    """An encoder of the visible patches, and a light decoder that reconstructs the masked patches."""

    Config = MAEConfig
    encoder: ViT
    config: MAEConfig

    def __init__(self, encoder: ViT, config: MAEConfig, augment: Augment | None = None, target: Target | None = None) -> None:
        super().__init__()
        vit = encoder.config
        self.patches = vit.grid[0] * vit.grid[1]  # N
        width = config.decoder_width or min(512, vit.width)
        depth = config.decoder_depth if config.decoder_depth is not None else (8 if vit.width >= 512 else min(4, vit.depth // 2))
        heads = config.decoder_heads or decoder_heads(width)
        config = replace(config, decoder_width=width, decoder_depth=depth, decoder_heads=heads)  # since defaults may change
        if target is None and config.target == "token":
            tokenizer, recorded = visual_tokenizer_from(config.visual_tokenizer, config.codebook_size, vit)
            target, config = TokenTarget(tokenizer), replace(config, visual_tokenizer=recorded, codebook_size=tokenizer.size)
        self.config, self.encoder, self.augmentation = config, encoder, augment
        self.target = target or PIXEL_TARGETS[config.target](vit.patch_size, vit.channels)
        self.mask_token = nn.Parameter(torch.randn(vit.width if config.mask_tokens_in_encoder else width) * 0.02)
        self.decoder_embed = nn.Linear(vit.width, width)
        positions = torch.cat([torch.zeros(vit.prefix_tokens, width), sincos_2d(vit.grid, width)])
        self.decoder_positions = nn.Parameter(positions, requires_grad=False)  # (L + N, E), for L leading tokens
        again = vit.grad_checkpointing
        self.decoder = Transformer(TransformerConfig(width=width, depth=depth, heads=heads, eps=vit.eps, grad_checkpointing=again))
        self.head = nn.Linear(width, self.target.size)
        xavier(self.decoder_embed)
        xavier(self.head)
        _, hide = self.mask(torch.zeros(1, dtype=torch.int64))  # fails now, not during training, if the ratio is impossible
        if not (hide.shape[1] or config.loss_on_all):
            raise UnveilError(f"mask ratio {config.mask_ratio} masks none of {self.patches} patches: use 0.75, or --loss-on-all")

    @classmethod
    def build(cls, vit: ViTConfig, config: MAEConfig, augment: AugmentConfig) -> "MAE":
        return cls(ViT(vit), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def prepare(self, batch: Batch) -> None:
        self.target.prepare(batch.images)

    def forward(self, batch: Batch) -> Step:
        """Masks patches, encodes the visible ones, predicts the masked ones, and computes the loss."""
        return Step(self.masked_loss(batch.images, *self.mask(batch.keys)), {})

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """Indices of the patches to keep (B, V) and to hide (B, M), for the samples with these keys."""
        grid, ratio = self.encoder.config.grid, self.config.mask_ratio
        if self.config.sampling == "grid":
            return grid_mask(len(keys), grid, ratio, keys.device)
        if self.config.sampling == "block":
            return block_mask(uniform(keys, BLOCK_NOISE, Stream.MASK), grid, ratio)
        return random_mask(uniform(keys, grid[0] * grid[1], Stream.MASK), ratio)

    def masked_loss(self, images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]) -> Float[Tensor, ""]:
        """The loss on the patches `hide`, given the patches `keep`."""
        predicted = self.decode(self.encode(images, keep, hide), keep, hide, self.config.loss_on_all)  # (B, M, Q), or (B, N, Q)
        compared = torch.cat([keep, hide], dim=1) if self.config.loss_on_all else hide
        return self.target.loss(predicted, self.target(images, compared))

    def encode(self, images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B T D"]:
        """The leading tokens and the visible patches; in table 1c, all patches, with mask tokens for the masked ones."""
        if self.config.mask_tokens_in_encoder:
            encoded: Tensor = self.encoder(images, hidden=as_bool(hide, self.patches), mask_token=self.mask_token)
        else:
            encoded = self.encoder(images, keep)
        return encoded

    def decode(
        self, encoded: Float[Tensor, "B T D"], keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"], every: bool = False
    ) -> Float[Tensor, "B _ Q"]:
        """Predicts the masked patches, or with `every` all patches, the visible ones first."""
        mask_token = None if self.config.mask_tokens_in_encoder else self.mask_token
        embed, positions = self.decoder_embed, self.decoder_positions
        tokens = predict_tokens(
            encoded, keep, hide, embed=embed, positions=positions, mask_token=mask_token, decoder=self.decoder, every=every
        )
        predicted: Tensor = self.head(tokens)
        return predicted

    def predict_patches(self, images: Tensor, keep: Int[Tensor, "B V"], hide: Int[Tensor, "B M"]) -> Float[Tensor, "B N Q"]:
        """Predictions for all patches, in their order in the image."""
        predicted = self.decode(self.encode(images, keep, hide), keep, hide, every=True)
        return scatter(torch.empty_like(predicted), torch.cat([keep, hide], dim=1), predicted)

    def loss(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, ""]:
        """The loss of normalised images; `hidden` is True where a patch is masked, the same count in each row."""
        return self.masked_loss(images, *self.given_or_random_mask(images, hidden))

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"] | None = None) -> Reconstruction:
        """Reconstructs normalised images. A normalised target needs the true mean and standard deviation of each patch."""
        (keep, hide), patch_size = self.given_or_random_mask(images, hidden), self.encoder.config.patch_size
        predicted = self.predict_patches(images, keep, hide).float()
        pixels = self.target.pixels(predicted, patchify(images, patch_size))
        return reconstruction(images, pixels, as_bool(hide, self.patches), patch_size)

    def given_or_random_mask(self, images: Tensor, hidden: Bool[Tensor, "B N"] | None) -> Mask:
        """The mask of `hidden`, or a random one from torch's generator."""
        if hidden is None:
            return self.mask(torch.randint(2**62, (len(images),), device=images.device))
        return given_mask(hidden, len(images), self.patches)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """The metrics of the target for the masked patches, such as the squared error in normalised pixels."""
        keep, hide = self.mask(batch.keys)
        every = not hide.shape[1]  # with a mask ratio of 0, the loss is that of all patches
        predicted = self.decode(self.encode(batch.images, keep, hide), keep, hide, every)
        return self.target.metrics(predicted, batch.images, keep, keep if every else hide)

    def figure_facts(self) -> Mapping[str, Any]:
        return {
            "mask_ratio": self.config.mask_ratio,
            "sampling": self.config.sampling,
            "target": self.config.target,
            "loss_on_all": self.config.loss_on_all,
            "uses_true_patch_statistics": self.target.uses_true_statistics,
        }
