"""Writes predicted class maps into a folder: masks that look like those of the training data, overlays, and a legend.

OUT/masks/street/7.png       the value, or the colour, of the class of each pixel, as in the training masks; with a palette
OUT/overlays/street/7.jpg    the image, with half of its colour from its classes
OUT/classes.csv              value,class,red,green,blue
"""

import colorsys
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unveil.atomic_files import replacing, write_text
from unveil.data.eval_transform import resize
from unveil.data.pixels import Pixels, under_centres
from unveil.plain_text import csv_cell

GOLDEN_RATIO = 0.618034
LARGEST_OVERLAY = 2048
"""The long side of an overlay in pixels, at most."""


def class_colours(count: int) -> UInt8[Tensor, "K 3"]:
    """A colour for each class. Hues in steps of the golden ratio differ well for any number of classes."""
    levels = ((0.85, 0.65), (0.55, 0.85), (0.95, 0.45))  # value and saturation, in turn
    hues = [(0.58 + GOLDEN_RATIO * i) % 1 for i in range(count)]
    found = [colorsys.hsv_to_rgb(hue, levels[i % 3][1], levels[i % 3][0]) for i, hue in enumerate(hues)]
    return (255 * torch.tensor(found).reshape(-1, 3)).round().to(torch.uint8)


def shown(image: Pixels) -> NDArray[np.uint8]:
    """An image (H, W, C) as RGB: the first channel as grey, or the first three as red, green and blue."""
    pixels: NDArray[np.uint8] = (image >> 8 if image.dtype == np.uint16 else image).astype(np.uint8)
    channels: NDArray[np.uint8] = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    return channels


class ClassMapWriter:
    """Writes one mask and one overlay for each image.

    Args:
        out: The folder.
        classes: The names of the classes.
        stored: The value of each class in the masks.
        colours: The colour (red, green, blue) of each class.
        in_colour: Whether masks are colours, and not values.
        overlays: Whether to write overlays.
    """

    def __init__(
        self,
        out: Path,
        *,
        classes: Sequence[str],
        stored: Sequence[int],
        colours: Sequence[Sequence[int]],
        in_colour: bool,
        overlays: bool,
    ) -> None:
        self.out, self.classes, self.in_colour, self.overlays = out, classes, in_colour, overlays
        self.stored, self.colours = np.array(stored, np.uint8), np.array(colours, np.uint8).reshape(-1, 3)

    def mask_path(self, name: str) -> Path:
        """The mask of an image; `name` is the relative path of the image without its ending."""
        return self.out / "masks" / f"{name}.png"

    def overlay_path(self, name: str) -> Path:
        """The overlay of an image."""
        return self.out / "overlays" / f"{name}.jpg"

    def has(self, name: str) -> bool:
        """Whether everything about an image was written. The mask is written last."""
        return self.mask_path(name).is_file()

    def add(self, name: str, image: Pixels, classes: NDArray[np.uint8], file: str = "") -> None:
        """Writes the mask and the overlay of an image (H, W, C), from the class (H, W) of each pixel."""
        if self.overlays:
            write_picture(self.overlay_path(name), Image.fromarray(self.overlay(image, classes)), quality=90)
        if self.in_colour:
            picture = Image.fromarray(self.colours[classes])
        else:
            picture = Image.fromarray(self.stored[classes])
            palette = np.zeros((256, 3), np.uint8)
            palette[self.stored] = self.colours
            picture.putpalette(palette.tobytes())  # the values stay
        write_picture(self.mask_path(name), picture)

    def overlay(self, image: Pixels, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image, half of whose colour is that of its classes, except for "background"; shrunk if it is very large."""
        height, width = classes.shape
        scale = min(1.0, LARGEST_OVERLAY / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        rows, columns = under_centres(height, size[0]), under_centres(width, size[1])
        small: Pixels = resize(shown(image), size)
        chosen = classes[rows[:, None], columns]
        mixed: NDArray[np.uint8] = ((small.astype(np.uint16) + self.colours[chosen] + 1) // 2).astype(np.uint8)
        plain = np.isin(chosen, [i for i, name in enumerate(self.classes) if name.lower() == "background"])
        return np.where(plain[:, :, None], small, mixed)

    def close(self) -> str:
        """Writes the legend. Returns no sentence."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["value", "class", "red", "green", "blue"])
        for value, name, colour in zip(self.stored.tolist(), self.classes, self.colours.tolist(), strict=True):
            writer.writerow([value, csv_cell(name), *colour])
        write_text(self.out / "classes.csv", stream.getvalue())
        return ""


def write_picture(path: Path, picture: Image.Image, quality: int = 75) -> None:
    """Writes a PNG or a JPEG by the ending of its name, atomically."""
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    with replacing(path) as fresh, fresh.open("wb") as file:
        picture.save(file, kind, quality=quality)
