"""Fine-tuning of the whole encoder with the recipe of BEiT and MAE (appendix A.1, table 9)."""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from unveil.data.augment import Augment, AugmentConfig, normalise
from unveil.data.batch import Batch
from unveil.data.resize import FULL
from unveil.errors import UnveilError
from unveil.learner import Step, Task
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The paper's regularisation; all of it is the same with and without pre-training."""

    drop_path: float = 0.1
    """Share of samples that skip a block, growing with depth (0.2 to 0.3 for ViT-H)."""
    mixup: float = 0.8
    """Blends two pictures; the alpha of the beta distribution."""
    cutmix: float = 1.0
    """Pastes a piece of another picture; the alpha of the beta distribution."""
    smoothing: float = 0.1
    """Label smoothing."""
    randaugment: int = 9
    """Magnitude of RandAugment, 0 for none; for pictures with 3 channels of 8 bit."""
    erasing: float = 0.25
    """Probability of random erasing."""


class Finetune(Task):
    """An encoder, the mean of its patch tokens, a norm, and a linear layer, all trained."""

    def __init__(self, encoder: ViT, classes: int, config: FinetuneConfig, augment: AugmentConfig) -> None:
        super().__init__()
        vit = encoder.config
        tuned = ViT(replace(vit, drop_path=config.drop_path, positions="learned"))
        tuned.load_state_dict(encoder.state_dict())
        tuned.transformer.norm = nn.Identity()                                 # its place is after the mean
        self.encoder, self.config = tuned, config
        self.norm = nn.LayerNorm(vit.width, eps=vit.eps)
        self.head = nn.Linear(vit.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.crop = Augment(augment, vit.image_size, (0.0,) * vit.channels, (1.0,) * vit.channels)
        colour = vit.channels == 3 and config.randaugment > 0
        fill = tuple(round(255 * x) for x in vit.mean)
        hints = {"img_mean": fill, "magnitude_max": 9.99}                      # at 10, posterize keeps 0 bits: an error
        self.policy = rand_augment_transform(f"rand-m{config.randaugment}-mstd0.5-inc1", hints) if colour else None
        self.erase = RandomErasing(config.erasing, mode="pixel", device="cpu") if config.erasing else None
        mixes = config.mixup > 0 or config.cutmix > 0
        self.mix = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=classes) if mixes else None

    def augment(self, batch: Batch) -> Batch:
        """Crop and flip, RandAugment, normalise, erase, mix."""
        deep = batch.images.dtype == torch.uint16
        batch = self.crop(batch)
        images = batch.images
        if self.policy is not None and not deep:
            bytes_ = (images * FULL[torch.uint8]).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            changed = [self.randaugment(x, key) for x, key in zip(bytes_, batch.keys.tolist(), strict=True)]
            images = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(images.device)
        images = normalise(images, self.encoder.config.mean, self.encoder.config.std)
        if self.erase is not None:
            images = self.erase(images)
        labels = batch.labels
        if self.mix is not None:
            if len(images) % 2:
                raise UnveilError(f"mixing needs an even batch, found {len(images)}: change --batch-size, or --mixup 0 --cutmix 0")
            images, labels = self.mix(images, labels)
        return batch._replace(images=images, labels=labels)

    def randaugment(self, image: np.ndarray, key: int) -> np.ndarray:
        """One picture (H, W, 3) uint8, changed as its key says."""
        assert self.policy is not None
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        return np.asarray(self.policy(Image.fromarray(image)))

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy with the mixed and smoothed classes."""
        assert batch.labels is not None
        smoothing = self.config.smoothing if batch.labels.ndim == 1 else 0.0   # mixed classes are smooth already
        return Step(F.cross_entropy(self.predict(batch.images).float(), batch.labels, label_smoothing=smoothing), {})

    def predict(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """A score for each class; images are normalised."""
        scores: Tensor = self.head(self.norm(self.encoder.features(images)))
        return scores

    def layer_of(self, name: str) -> int:
        """0 for the embedding, 1 to depth for the blocks, depth + 1 for what comes after (BEiT's layer-wise decay)."""
        if name.startswith("encoder.transformer.blocks."):
            return int(name.split(".")[3]) + 1
        return 0 if name.startswith("encoder.") else self.encoder.config.depth + 1
