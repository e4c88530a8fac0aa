"""The embedded data: scikit-learn's 1,797 scans of handwritten digits, as they are and on a canvas.

Raw pixels nearly solve the scans, so `digits` shows each at a random place, in a random size and colour, on a dark canvas of 16 px.
All chance is integer arithmetic and all resizing is Pillow's fixed-point filter, so the images are the same on every machine.
"""

from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image

from unveil.blocks.stateless_random import combine, sample_keys

SIDE = 16
COUNTS = {"train": 10_000, "test": 2_000}


@cache
def scans(split: Literal["train", "test"], fold: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The scans (n, 8, 8) uint8 from 0 to 255 and their digits: every fifth scan is a test scan, beginning with scan `fold`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    test = np.arange(len(data.target)) % 5 == fold
    chosen = test if split == "test" else ~test
    return np.round(data.images[chosen] * (255 / 16)).astype(np.uint8), data.target[chosen].astype(np.int64)


def digits(split: Literal["train", "test"], *, plain: bool = False, fold: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W, C) uint8 and their digits; `plain`: the scans themselves, grey, 8 px; `fold` as in `scans`."""
    images, labels = scans(split, fold)
    if plain:
        return images[..., None], labels
    count = COUNTS[split]
    keys = sample_keys(1797, 0 if split == "train" else 10**6, count)
    draws = torch.stack([combine(keys, i) for i in range(12)], dim=1).numpy()  # (count, 12), integers below 2**32
    chosen = draws[:, 0] % len(images)
    return np.stack([canvas(images[i], draw) for i, draw in zip(chosen, draws, strict=True)]), labels[chosen]


def canvas(scan: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """One scan (8, 8) on a dark canvas (16, 16, 3); `draw` holds 12 random integers."""
    side = 9 + int(draw[1]) % 6  # 9 to 14 px
    top, left = int(draw[2]) % (SIDE - side + 1), int(draw[3]) % (SIDE - side + 1)
    ink = np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int64)
    colour, ground = 112 + draw[4:7] % 144, draw[7:10] % 32  # 112 to 255, and 0 to 31
    image = np.empty((SIDE, SIDE, 3), dtype=np.int64)
    image[:] = ground
    patch = image[top : top + side, left : left + side]
    patch += (colour - patch) * ink[..., None] // 255
    return image.astype(np.uint8)
