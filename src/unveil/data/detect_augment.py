"""Augmentation for boxes and masks: large-scale jitter, a flip, and photometric distortion."""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.resize import MAX_VALUE
from unveil.data.scale_jitter import Fit, ScaleJitter
from unveil.data.segment_augment import photometric_distortion
from unveil.errors import UnveilError


class DetectAugment:
    """Turns a batch of uint8 or uint16 canvases and their objects into normalised images of one size and the objects on them.

    Args:
        config: `crop` "resized" draws a scale and a place, "fixed" a place, "none" nothing; `flip`; `color_jitter` is the strength
            of the distortion (0.5 is usual). `crop_scale` is not used.
        image_size: Height and width of the result.
        mean: For the normalisation.
        std: For the normalisation.
        scales: The smallest and the largest scale.
        fit: What scale 1 is.

    Raises:
        UnveilError: If `crop` is "clipped".
    """

    own: Callable[[Tensor], Tensor] | None = None
    """See `unveil.data.augment.Augment`."""

    def __init__(
        self,
        config: AugmentConfig,
        image_size: Size,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        scales: tuple[float, float],
        fit: Fit,
    ) -> None:
        refuse_clipped(config)
        self.config = config
        self.jitter = ScaleJitter(
            image_size=image_size,
            mean=mean,
            std=std,
            scales=scales if config.crop == "resized" else (1.0, 1.0),
            fit=fit,
            flip=config.flip and config.crop != "none",
            change=self.changed,
        )

    def __call__(self, batch: Batch) -> Batch:
        """Returns normalised images (B, C, S, T), the `sizes` of what is not padding, and the objects."""
        return self.jitter(batch)

    def changed(self, images: Tensor, keys: Int[Tensor, " B"]) -> Tensor:
        """The distortion, and the augmentation of one's own."""
        if self.config.color_jitter:
            images = photometric_distortion(images, keys, self.config.color_jitter)
        if self.own is not None:
            images = images if images.is_floating_point() else images.float() / MAX_VALUE[images.dtype]
            images = self.own(images)
        return images


def refuse_clipped(config: AugmentConfig) -> None:
    """Raises `UnveilError` for crops that are drawn without a look at the image."""
    if config.crop == "clipped":
        raise UnveilError("crop clipped is for linear probes: to detect, use crop resized, fixed or none")
