"""Tiny images, and the options of tiny runs on them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TINY: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (8,),
    "batch_size": 8,
    "epochs": 1.0,
    "device": "cpu",
    "precision": "float32",
    "num_evals": 1,
}
OPTIONS = {key: value for key, value in TINY.items() if key != "model"}
FINETUNE = {key: TINY[key] for key in ("batch_size", "epochs", "device", "precision", "num_evals")}


def write(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Uncompressed images, so that any two of them have the same number of bytes."""
    chance = np.random.default_rng(seed)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / folder / f"{index}.bmp")
    return root
