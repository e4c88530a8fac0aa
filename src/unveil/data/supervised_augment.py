"""Augmentation for training with labels (MAE, appendix A.1): crop and flip, RandAugment, random erasing, mixup and CutMix."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import Augment, AugmentConfig, standardise
from unveil.data.batch import Batch
from unveil.data.resize import MAX_VALUE
from unveil.data.targets import ClassTargets, Draw
from unveil.errors import UnveilError
from unveil.ranges import NonNegative, Range, Share, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class RegularisationConfig:
    """Regularisation for training with labels."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("erasing",)
    drop_path: ShareBelowOne = 0.1
    """Probability that a sample skips a block, in the last block; it grows linearly with depth. Use 0.2 to 0.3 for ViT-H."""
    mixup: NonNegative = 0.8
    """Alpha of the beta distribution for mixup, which blends two images; 0 turns it off."""
    cutmix: NonNegative = 1.0
    """Alpha of the beta distribution for CutMix, which pastes a piece of another image; 0 turns it off."""
    smoothing: ShareBelowOne = 0.1
    """Label smoothing."""
    randaugment: Annotated[int, Range(0, 10)] = 9
    """Magnitude of RandAugment; 0 turns it off. It needs 8-bit images with 3 channels."""
    erasing: Share = 0.25
    """Probability of random erasing."""


class SupervisedAugment:
    """Converts a batch of uint8 or uint16 canvases to normalised images. Labels are mixed if mixup or CutMix is on.

    RandAugment depends on the keys of the samples. Erasing and mixing use the global generators of numpy and `random`, as timm
    does. Mixing pairs the samples of a batch, so it cannot depend on single keys anyway.
    """

    own: Callable[[Tensor], Tensor] | None = None
    """See `Augment`; it follows RandAugment."""

    def __init__(
        self,
        options: RegularisationConfig,
        config: AugmentConfig,
        classes: int,
        image_size: Size,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        from timm.data.auto_augment import rand_augment_transform  # takes a second to import, and is rarely needed
        from timm.data.mixup import Mixup
        from timm.data.random_erasing import RandomErasing

        self.config, self.mean, self.std = config, mean, std
        self.crop = Augment(config, image_size, (0.0,) * len(mean), (1.0,) * len(mean))
        colour = len(mean) == 3 and options.randaugment > 0
        # As timm's `create_transform` does for the public code. At a magnitude of 10, posterize would keep 0 bits and fail.
        hints = {"img_mean": tuple(round(255 * x) for x in mean), "interpolation": Image.Resampling.BICUBIC, "magnitude_max": 9.99}
        self.policy = rand_augment_transform(f"rand-m{options.randaugment}-mstd0.5-inc1", hints) if colour else None
        self.erase = RandomErasing(options.erasing, mode="pixel", device="cpu") if options.erasing else None
        mixes = options.mixup > 0 or options.cutmix > 0
        self.mix = Mixup(options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=classes) if mixes else None

    @property
    def draw_early(self) -> Draw | None:
        """See `Augment.draw_early`."""
        return self.crop.draw_early

    def __call__(self, batch: Batch) -> Batch:
        """Crop and flip, RandAugment, normalise, erase, mix."""
        if batch.targets is not None and not isinstance(batch.targets, ClassTargets) and (self.policy or self.mix):
            raise UnveilError(
                "RandAugment, mixup and CutMix move pixels without moving maps or boxes: use --randaugment 0 --mixup 0 --cutmix 0"
            )
        if self.policy is None or batch.images.dtype == torch.uint16:
            batch = self.crop(batch)
            return self.erase_and_mix(self.normalised(batch.images, batch))
        with preserved_random_state():  # RandAugment sets seeds; erasing and mixing continue from the last one
            batch = self.crop(batch)
            pixels = (batch.images * MAX_VALUE[torch.uint8]).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            changed = [self.randaugment(x, key) for x, key in zip(pixels, batch.keys.tolist(), strict=True)]
            images = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(batch.images.device)
            return self.erase_and_mix(self.normalised(images, batch))

    def normalised(self, images: Tensor, batch: Batch) -> Batch:
        """A batch with these images (B, C, S, T), uint8 or floats from 0 to 1, after the function of the user, normalised."""
        images = images if self.own is None else self.own(images)
        return Batch(standardise(images, self.mean, self.std), batch.sizes, batch.keys, batch.targets)

    def randaugment(self, image: np.ndarray, key: int) -> np.ndarray:
        """RandAugment of one image (H, W, 3) uint8. It sets the global seeds of numpy and `random` to the key."""
        assert self.policy is not None
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        return np.asarray(self.policy(Image.fromarray(image)))

    def erase_and_mix(self, batch: Batch) -> Batch:
        """Random erasing, then mixup or CutMix, after which labels are (B, K) shares of the classes."""
        images, targets = batch.images, batch.targets
        if self.erase is not None:
            images = self.erase(images)
        if self.mix is not None:
            if len(images) % 2:
                found = f"found {len(images)} images"
                raise UnveilError(f"mixup and CutMix need an even batch, {found}: change --batch-size, or use --mixup 0 --cutmix 0")
            assert isinstance(targets, ClassTargets)
            images, labels = self.mix(images, targets.labels)
            targets = ClassTargets(labels)
        return Batch(images, batch.sizes, batch.keys, targets)


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restores the global generators of numpy and `random` at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
