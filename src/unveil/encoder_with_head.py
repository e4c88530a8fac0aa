"""What the tasks of fine-tuning share: an encoder and a linear layer on its features, all trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.masked_reconstruction import MaskedReconstruction
from unveil.data.batch import Batch
from unveil.learner import Step, Task
from unveil.models.vit import ViT
from unveil.ranges import NonNegative, ShareBelowOne

BUDGET = 200_000
"""Images that a run sees by default, in 20 to 100 epochs."""
WIDE, LARGE_SET = 384, 20_000
"""Width from which an encoder needs drop path, and number of labels from which batches are large."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What fine-tuning starts from, and its regularisation."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("start", "fc_norm", "pool")
    drop_path: ShareBelowOne = 0.0
    """Probability that a sample skips a block, in the last block; it grows linearly with depth."""
    start: Literal["probe", "random"] = "probe"
    """Initial head: that of a linear probe of the encoder on the same labels (LP-FT), or a random one."""
    fc_norm: bool = False
    """Normalise the mean of the tokens, and not each token before the mean, as in pre-training."""
    pool: Literal["mean", "class"] | None = None
    """Features for the head: the mean of the patch tokens, or the class token; by default the one that suits the method."""
    mae_loss: NonNegative = 0.0
    """Weight of MAE's reconstruction loss on the same images, as a regulariser for few labels (SSAT); 0 leaves it out."""


class EncoderWithHead(Task):
    """An encoder and a linear layer on its features, all trained.

    Args:
        encoder: The trained encoder, which is copied.
        outputs: Number of outputs of the linear layer.
        config: A `HeadConfig`, or other options with its fields.
    """

    def __init__(self, encoder: ViT, outputs: int, config: Any) -> None:
        super().__init__()
        vit = encoder.config
        positions: Literal["learned", "none"] = "none" if vit.positions == "none" else "learned"
        # A norm after the mean (fc_norm in timm) replaces the norms of the encoder.
        fc_norm = config.fc_norm or not (vit.final_norm or vit.norm_after_pooling)
        shape = replace(vit, drop_path=config.drop_path, positions=positions)
        finetuned = ViT(replace(shape, final_norm=False, norm_after_pooling=False) if fc_norm else shape)
        kept = finetuned.state_dict().keys()
        finetuned.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in kept})
        self.encoder, self.config = finetuned, config
        self.pool = config.pool or "mean"
        self.norm = nn.LayerNorm(vit.width, eps=vit.eps) if fc_norm else nn.Identity()
        self.head = nn.Linear(vit.width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.reconstruction = masked_reconstruction(vit) if config.mae_loss else None

    @classmethod
    def settings_for(cls, width: int, samples: int) -> Mapping[str, Any]:
        """Larger models learn at lower rates, and only they need drop path."""
        epochs = float(min(100, max(20, round(BUDGET / samples))))
        found = {"base_lr": 1e-3 * (768 / width) ** (4 / 3), "epochs": epochs, "batch_size": 64 if samples < LARGE_SET else 256}
        return found | ({"drop_path": 0.1} if width >= WIDE else {})

    @property
    def starts_from_probe(self) -> bool:
        return bool(self.config.start == "probe")

    @torch.no_grad()
    def set_head(self, weight: Float[Tensor, "K D"], bias: Float[Tensor, " K"]) -> None:
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)

    def step(self, loss: Float[Tensor, ""], name: str, batch: Batch) -> Step:
        """The loss of a task plus that of MAE, if it has a weight; both are then logged, that of the task by its name."""
        if self.reconstruction is None:
            return Step(loss, {})
        error = self.reconstruction(self.encoder, batch.images, batch.keys)
        return Step(loss + self.config.mae_loss * error, {name: loss, "mae_loss": error})

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean", "class"] | None = None) -> Float[Tensor, "B D"]:
        """What the head sees. A norm after the pooling, as in timm, is for the features that were trained only."""
        found: Tensor = self.encoder.features(images, pool=pool or self.pool)
        return self.norm(found) if pool in (None, self.pool) else found

    def feature_norm(self, pool: str) -> nn.Module | None:
        return {"mean": self.norm, "class": nn.Identity()}.get(pool)

    def outputs(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The outputs of the linear layer for normalised images."""
        found: Tensor = self.head(self.features(images))
        return found

    def set_decoder(self, state: Mapping[str, Tensor]) -> None:
        """Starts MAE's loss with the decoder of the run, if its shape is the default one."""
        if self.reconstruction is not None:
            self.reconstruction.load(state)

    def drop_training_parts(self) -> None:
        """Removes the decoder of MAE's loss."""
        self.reconstruction, self.config = None, replace(self.config, mae_loss=0.0)


def masked_reconstruction(vit: Any) -> MaskedReconstruction:
    """The decoder for an encoder of this shape. It is that of an MAE with default options, so that its weights fit."""
    width, depth = min(512, vit.width), 8 if vit.width >= 512 else min(4, vit.depth // 2)
    return MaskedReconstruction(vit.grid, vit.patch_size, vit.channels, vit.width, width=width, depth=depth)
