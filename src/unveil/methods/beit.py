"""BEiT (Bao et al., 2021): BERT for images.

    image -> patches -> [mask tokens in 40 %, in blocks] -> encoder -> linear head -> visual tokens of the masked patches

B images, C H W, N patches, V visible, M masked, K tokens in the codebook, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.block_masks import BLOCK_NOISE, block_mask
from unveil.blocks.init import xavier
from unveil.blocks.masks import Mask, as_bool
from unveil.blocks.patches import gather
from unveil.blocks.stateless_random import Stream, uniform
from unveil.blocks.targets import TokenTarget
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.learner import Method, Step
from unveil.models.visual_tokenizer import visual_tokenizer_from
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.ranges import Positive, Range, Share, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class BEiTConfig:
    """The options of BEiT."""

    HIDDEN = ("positions", "layer_scale")
    mask_ratio: Share = 0.4
    """Share of the patches that is masked."""
    visual_tokenizer: str = "kmeans"
    """Source of the visual tokens: "kmeans" of patches, fitted before the first step, or the run folder of a trained dVAE."""
    codebook_size: Annotated[int, Range(2, 2**20)] = 512
    """Number of visual tokens for k-means; a dVAE has its own."""
    relative_bias: Literal["shared", "block", "none"] = "shared"
    """Learned attention biases by relative position: one table for all blocks, one per block, or none."""
    positions: Literal["none", "sincos", "learned"] = "none"
    """Position embeddings, in addition to the relative biases."""
    layer_scale: Positive | None = 0.1
    """Initial value of LayerScale, a learned factor on each branch."""
    drop_path: ShareBelowOne = 0.1
    """Probability that a sample skips a block, in the last block; it grows linearly with depth."""


class BEiT(Method):
    """An encoder with mask tokens, and a linear layer from each token to the codebook.

    Args:
        encoder: The encoder to train.
        config: The options.
        augment: The augmentation; none by default.
        tokenizer: A visual tokenizer to use instead of the one that the config names.
    """

    Config = BEiTConfig
    DEFAULTS = {
        "base_lr": 1.875e-4,  # 1.5e-3 for a batch of 2048
        "min_lr": 1e-5,
        "warmup_ratio": 0.0125,  # 10 of 800 epochs
        "beta2": 0.98,
        "clip_grad": 3.0,
        "crop_scale": 0.08,
    }
    encoder: ViT
    config: BEiTConfig

    def __init__(
        self, encoder: ViT, config: BEiTConfig, augment: Augment | None = None, tokenizer: VisualTokenizer | None = None
    ) -> None:
        super().__init__()
        vit = encoder.config
        self.encoder, self.augmentation = encoder, augment
        if tokenizer is None:
            tokenizer, recorded = visual_tokenizer_from(config.visual_tokenizer, config.codebook_size, vit)
        else:
            recorded = "absent"
        self.config = replace(config, visual_tokenizer=recorded, codebook_size=tokenizer.size)  # does not need the dVAE's folder
        self.target = TokenTarget(tokenizer)
        self.mask_token = nn.Parameter(torch.randn(vit.width) * 0.02)
        self.head = nn.Linear(vit.width, tokenizer.size)
        xavier(self.head)
        self.mask(torch.zeros(1, dtype=torch.int64))  # fails now, not during training, if the ratio is impossible

    @classmethod
    def build(cls, vit: ViTConfig, config: BEiTConfig, augment: AugmentConfig) -> "BEiT":
        """An untrained learner. The options set the positions, relative biases, layer scale and drop path of its encoder."""
        vit = replace(
            vit,
            positions=config.positions,
            relative_bias=config.relative_bias,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
        )
        return cls(ViT(vit), config, Augment(augment, vit.image_size, vit.mean, vit.std))

    def prepare(self, batch: Batch) -> None:
        self.target.prepare(batch.images)

    def forward(self, batch: Batch) -> Step:
        """Masks patches, encodes the image, predicts the visual tokens of the masked patches, and computes the loss."""
        _, hide = self.mask(batch.keys)
        return Step(self.target.loss(self.predict_visual_tokens(batch.images, hide), self.target(batch.images, hide)), {})

    def mask(self, keys: Int[Tensor, " B"]) -> Mask:
        """Indices of the patches to keep (B, V) and to hide (B, M), for the samples with these keys."""
        grid = self.encoder.config.grid
        smallest = max(1, round(16 * math.prod(grid) / 196))  # the paper's 16 of 196 patches
        return block_mask(uniform(keys, BLOCK_NOISE, Stream.MASK), grid, self.config.mask_ratio, smallest)

    def predict_visual_tokens(self, images: Tensor, hide: Int[Tensor, "B M"]) -> Float[Tensor, "B M K"]:
        """Logits over the visual tokens for the masked patches."""
        tokens = self.encoder(images, hidden=as_bool(hide, math.prod(self.encoder.config.grid)), mask_token=self.mask_token)
        scores: Tensor = self.head(gather(tokens[:, self.encoder.config.prefix_tokens :], hide))
        return scores

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> dict[str, float]:
        """Cross-entropy and accuracy of the predicted visual tokens of the masked patches."""
        keep, hide = self.mask(batch.keys)
        return self.target.metrics(self.predict_visual_tokens(batch.images, hide), batch.images, keep, hide)
