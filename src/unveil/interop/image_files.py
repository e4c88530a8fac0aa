"""Image files for verifying exports, and what a model gets of them: comparisons begin at the file, so preprocessing is included."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import normalise
from unveil.data.eval_transform import EvalTransform, resize
from unveil.data.images import read_image
from unveil.models.vit_config import ViTConfig

WHITE = {8: 255, 16: 65535}
"""The value of white, by bits."""


def transform_of(config: ViTConfig) -> EvalTransform:
    """The preprocessing of a model in evaluations."""
    return EvalTransform.of(config)


def sizes_to_try(config: ViTConfig) -> list[Size]:
    """The model's own size, larger and smaller ones, and other aspect ratios."""
    height, width = config.image_size
    larger, smaller = (2 * height + 5, 2 * width + 2), (height // 2 + 1, width // 2 + 3)
    return [(height, width), larger, smaller, (height, 3 * width), (3 * height, width + 9)]


@contextmanager
def image_files(config: ViTConfig, sizes: Sequence[Size]) -> Iterator[list[Path]]:
    """PNG files of these sizes for a model; none if PNG has no images of its channels and bits. They are the same at every call."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        if config.channels == 1 or (config.channels in (3, 4) and config.bit_depth == 8):
            for i, size in enumerate(sizes):
                paths.append(Path(folder) / f"{i}.png")
                noise_image(size, config.channels, config.bit_depth, i).save(paths[-1])
        yield paths


def noise_image(size: Size, channels: int, bits: int, seed: int) -> Image.Image:
    """An image of smooth noise, without transparency.

    It is neither black nor white, where bicubic filters overshoot: transformers does not clip 16-bit values.
    """
    generator, white = np.random.default_rng(seed), WHITE[bits]
    kind: Any = np.uint16 if bits == 16 else np.uint8
    shape = (size[0] // 4 + 2, size[1] // 4 + 2, channels)
    coarse = generator.integers(white // 4, white - white // 4, shape).astype(kind)
    if channels == 4:
        coarse[:, :, 3] = 255
    pixels = resize(coarse, size)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))


def read_prepared(paths: Sequence[Path | Image.Image], config: ViTConfig) -> Float[Tensor, "B C H W"]:
    """Normalised images, as `unveil embed` prepares them."""
    transform = transform_of(config)
    pixels = [transform(read_image(path, channels=config.channels)) for path in paths]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return normalise(images, config.mean, config.std)
