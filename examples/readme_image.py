"""Draws docs/images/reconstruction.png, in two minutes on two cores: an MAE trained on four images of scikit-image.

python examples/readme_image.py docs/images/reconstruction.png
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from skimage import data

import unveil

SIDE = 96
SQUARES = {"astronaut": (60, 0, 360), "cat": (75, 0, 300), "coffee": (100, 0, 400), "rocket": (156, 0, 427)}  # left, top, side
MODEL = {"model": "vit-nano", "image_size": (SIDE,), "patch_size": (8,), "decoder_width": 192}
TASK = {"target": "pixel", "loss_on_all": True, "crop_scale": 0.8, "flip": False}
TRAINING = {"epochs": 4400, "batch_size": 16, "base_lr": 3e-2, "clip_grad": 1.0, "log_every": 100}


def main(out: str) -> None:
    """Trains on random crops of the four images, then draws the whole images."""
    with tempfile.TemporaryDirectory() as scratch:
        photos, run = Path(scratch) / "photos", Path(scratch) / "run"
        photos.mkdir()
        for name, (left, top, side) in SQUARES.items():
            square = Image.fromarray(getattr(data, name)()).crop((left, top, left + side, top + side))
            square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(photos / f"{name}.png")
        unveil.pretrain(photos, out=run, **MODEL, **TASK, **TRAINING)
        unveil.reconstruct(run, out=out, ratios=(0.5, 0.75), count=4)


if __name__ == "__main__":
    main(sys.argv[1])
