"""The embedded dataset: scikit-learn's 1,797 scans of handwritten digits, plain or on a larger canvas.

The plain scans are too easy: a classifier on raw pixels is nearly perfect. So `digits` draws each scan at a random position, size
and colour on a dark canvas of 16 px. The random numbers use integer arithmetic and the resize is Pillow's fixed-point filter, so
the images are the same on every machine.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from unveil.blocks.stateless_random import combine, sample_keys

SIDE = 16
COUNTS = {"train": 10_000, "test": 2_000}


@cache
def scans(split: Literal["train", "test"], fold: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The scans (n, 8, 8) uint8 from 0 to 255, and their labels. Every fifth scan, starting with `fold`, is in the test set."""
    table = sklearn_table()
    test = np.arange(len(table)) % 5 == fold
    members = table[test if split == "test" else ~test]
    images, labels = members[:, :-1].reshape(-1, 8, 8), members[:, -1]
    return np.round(images * (255 / 16)).astype(np.uint8), labels.astype(np.int64)


def sklearn_table() -> np.ndarray:
    """The digits that scikit-learn ships, (1797, 65): 64 pixels from 0 to 16, and the label.

    The file is read directly, since importing scikit-learn for it would take longer than everything else before the first step.
    """
    spec = find_spec("sklearn")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders]
    if files and files[0].is_file():
        return np.loadtxt(files[0], delimiter=",")
    from sklearn.datasets import load_digits  # for a release that keeps the file elsewhere

    data = load_digits()
    return np.column_stack([data.data, data.target])


def digits(split: Literal["train", "test"], *, plain: bool = False, fold: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W, C) uint8 and their labels. With `plain`, these are the grey scans of 8 px. For `fold` see `scans`."""
    images, labels = scans(split, fold)
    if plain:
        return images[..., None], labels
    draws = random_draws(split)
    indices = draws[:, 0] % len(images)
    inks: dict[tuple[int, int], np.ndarray] = {}  # each scan is resized once to each side
    canvases = []
    for i, draw in zip(indices.tolist(), draws, strict=True):
        side = 9 + int(draw[1]) % 6  # 9 to 14 px
        if (i, side) not in inks:
            inks[i, side] = resized_ink(images[i], side)
        canvases.append(canvas(inks[i, side], draw))
    return np.stack(canvases), labels[indices]


def originals(split: Literal["train", "test"]) -> np.ndarray:
    """The number of the scan from which each image of `digits` is drawn (n,)."""
    numbers: np.ndarray = random_draws(split)[:, 0] % len(scans(split)[0])
    return numbers


def random_draws(split: Literal["train", "test"]) -> np.ndarray:
    """12 random integers below 2**32 for each image (n, 12)."""
    keys = sample_keys(1797, 0 if split == "train" else 10**6, COUNTS[split])
    return torch.stack([combine(keys, i) for i in range(12)], dim=1).numpy()


def resized_ink(scan: np.ndarray, side: int) -> np.ndarray:
    """A scan (8, 8) as ink (side, side) from 0 to 255."""
    return np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int64)


def canvas(ink: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Draws ink (side, side) on a dark canvas (16, 16, 3); `draw` holds 12 random integers."""
    side = len(ink)
    top, left = int(draw[2]) % (SIDE - side + 1), int(draw[3]) % (SIDE - side + 1)
    colour, background = 112 + draw[4:7] % 144, draw[7:10] % 32  # 112 to 255, and 0 to 31
    image = np.empty((SIDE, SIDE, 3), dtype=np.int64)
    image[:] = background
    patch = image[top : top + side, left : left + side]
    patch += (colour - patch) * ink[..., None] // 255
    return image.astype(np.uint8)
