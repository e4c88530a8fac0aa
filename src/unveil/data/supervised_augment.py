"""What labelled images go through in training (MAE, appendix A.1): crop and flip, RandAugment, erasing, mixing."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from unveil.blocks.patches import Size
from unveil.data.augment import Augment, AugmentConfig, normalise
from unveil.data.batch import Batch
from unveil.data.resize import FULL
from unveil.errors import UnveilError


@dataclass(frozen=True, kw_only=True)
class StrengthConfig:
    """The regularisation of a recipe that learns from labels."""

    drop_path: float = 0.1
    """Share of samples that skip a block, growing with depth (0.2 to 0.3 for ViT-H)."""
    mixup: float = 0.8
    """Blends two images; the alpha of the beta distribution."""
    cutmix: float = 1.0
    """Pastes a piece of another image; the alpha of the beta distribution."""
    smoothing: float = 0.1
    """Label smoothing."""
    randaugment: int = 9
    """Magnitude of RandAugment, 0 for none; for images with 3 channels of 8 bit."""
    erasing: float = 0.25
    """Probability of random erasing."""


class StrongAugment:
    """Makes normalised images and perhaps mixed labels from a batch of uint8 or uint16 canvases.

    RandAugment draws from the samples' keys; erasing and mixing, which pairs samples of a batch, from the generators of a step.
    """

    def __init__(
        self,
        knobs: StrengthConfig,
        config: AugmentConfig,
        classes: int,
        image_size: Size,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        from timm.data.auto_augment import rand_augment_transform  # a second that only learning from labels needs
        from timm.data.mixup import Mixup
        from timm.data.random_erasing import RandomErasing

        self.config, self.mean, self.std = config, mean, std
        self.crop = Augment(config, image_size, (0.0,) * len(mean), (1.0,) * len(mean))
        colour = len(mean) == 3 and knobs.randaugment > 0
        hints = {"img_mean": tuple(round(255 * x) for x in mean), "magnitude_max": 9.99}  # at 10, posterize keeps 0 bits: an error
        self.policy = rand_augment_transform(f"rand-m{knobs.randaugment}-mstd0.5-inc1", hints) if colour else None
        self.erase = RandomErasing(knobs.erasing, mode="pixel", device="cpu") if knobs.erasing else None
        mixes = knobs.mixup > 0 or knobs.cutmix > 0
        self.mix = Mixup(knobs.mixup, knobs.cutmix, label_smoothing=knobs.smoothing, num_classes=classes) if mixes else None

    def __call__(self, batch: Batch) -> Batch:
        """Crop and flip, RandAugment, normalise, erase, mix."""
        deep = batch.images.dtype == torch.uint16
        batch = self.crop(batch)
        images = batch.images
        if self.policy is not None and not deep:
            bytes_ = (images * FULL[torch.uint8]).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            changed = [self.randaugment(x, key) for x, key in zip(bytes_, batch.keys.tolist(), strict=True)]
            images = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(images.device)
        images = normalise(images, self.mean, self.std)
        if self.erase is not None:
            images = self.erase(images)
        labels = batch.labels
        if self.mix is not None:
            if len(images) % 2:
                raise UnveilError(f"mixing needs an even batch, found {len(images)}: change --batch-size, or --mixup 0 --cutmix 0")
            images, labels = self.mix(images, labels)
        return batch._replace(images=images, labels=labels)

    def randaugment(self, image: np.ndarray, key: int) -> np.ndarray:
        """One image (H, W, 3) uint8, changed as its key says."""
        assert self.policy is not None
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        return np.asarray(self.policy(Image.fromarray(image)))
