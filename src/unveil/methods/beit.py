"""BEiT (Bao et al., 2021): BERT of images.

    image -> patches -> [mask tokens in 40 %, in blocks] -> encoder -> linear head -> visual token of each hidden patch

B images, C H W, N patches, M hidden, K tokens in the codebook, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.fast.recompute import Linear
from unveil.blocks.masks import Mask, as_bool, block_mask
from unveil.blocks.patches import gather
from unveil.blocks.stateless_random import uniform
from unveil.blocks.targets import TokenTarget
from unveil.blocks.transformer import xavier
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.learner import Method, Step
from unveil.models.visual_tokenizer import visual_tokenizer_from
from unveil.models.vit import ViT, ViTConfig

DEFAULTS = {"base_lr": 1.9e-4, "beta2": 0.98, "clip": 3.0}


@dataclass(frozen=True, kw_only=True)
class BEiTConfig:
    """The knobs of BEiT."""

    mask_ratio: float = 0.4
    """Share of patches that is hidden."""
    tokenizer: str = "kmeans"
    """Where visual tokens come from: kmeans of patches, fitted before the first step, or the run folder of a trained dVAE."""
    codebook: int = 512
    """Tokens of kmeans; a dVAE brings its own."""
    relative_bias: Literal["shared", "block", "none"] = "shared"
    """Learned biases of attention by offset: one table for all blocks, one for each, or none."""
    positions: Literal["none", "sincos", "learned"] = "none"
    """What tells a token its place beside the biases."""
    layer_scale: float | None = 0.1
    """Initial value of a learned factor on each branch."""
    drop_path: float = 0.1
    """Share of samples that skip a block, growing with depth."""


class BEiT(Method):
    """An encoder with mask tokens, and a linear layer from each token to the codebook.

    Args:
        encoder: What is trained.
        config: The knobs.
        augment: What is done to images; nothing by default.
        tokenizer: One of your own, in place of that which the config names.
    """

    Config = BEiTConfig
    encoder: ViT
    config: BEiTConfig

    def __init__(
        self, encoder: ViT, config: BEiTConfig, augment: Augment | None = None, tokenizer: VisualTokenizer | None = None
    ) -> None:
        super().__init__()
        vit = encoder.config
        self.encoder, self.augmentation = encoder, augment
        if tokenizer is None:
            tokenizer, written = visual_tokenizer_from(config.tokenizer, config.codebook, vit)
        else:
            written = "absent"
        self.config = replace(config, tokenizer=written, codebook=tokenizer.size)  # what stays when the folder is gone
        self.target = TokenTarget(tokenizer)
        self.mask_token = nn.Parameter(torch.randn(vit.width) * 0.02)
        self.head = Linear(vit.width, tokenizer.size)
        xavier(self.head)
        self.mask(torch.zeros(1, dtype=torch.int64))  # a ratio that cannot be hidden is refused now

    @classmethod
    def build(cls, vit: ViTConfig, config: BEiTConfig, augment: AugmentConfig) -> "BEiT":
        """An untrained learner; the config says what is special about the encoder."""
        vit = replace(
            vit,
            positions=config.positions,
            relative_bias=config.relative_bias,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
        )
        return cls(ViT(vit), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def augment(self, batch: Batch) -> Batch:
        """Crops, flips and normalises."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def prepare(self, batch: Batch) -> None:
        """Lets the tokenizer see a sample of images."""
        self.target.prepare(batch.images)

    def forward(self, batch: Batch) -> Step:
        """Hide, encode, name, compare."""
        _, hide = self.mask(batch.keys)
        return Step(self.target.loss(self.name(batch.images, hide), self.target(batch.images, hide)), {})

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """The patches to keep (B, V) and to hide (B, M) of the samples with these keys."""
        grid = self.encoder.config.grid
        smallest = max(1, round(16 * math.prod(grid) / 196))  # the paper's 16 of 196 patches
        return block_mask(uniform(keys, 4 * 64, stream=1), grid, self.config.mask_ratio, smallest)

    def name(self, images: Tensor, hide: Int[Tensor, "B M"]) -> Float[Tensor, "B M K"]:
        """A score of each visual token for the hidden patches."""
        tokens = self.encoder(images, hidden=as_bool(hide, math.prod(self.encoder.config.grid)), mask_token=self.mask_token)
        scores: Tensor = self.head(gather(tokens[:, 1:], hide))
        return scores

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """Cross-entropy of the hidden patches' tokens, and the share that is found."""
        keep, hide = self.mask(batch.keys)
        return self.target.errors(self.name(batch.images, hide), batch.images, keep, hide)
