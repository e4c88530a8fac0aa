"""The preprocessing of images in a transformers folder: `preprocessor_config.json`, for `AutoImageProcessor`.

`BitImageProcessor` resizes the short side and crops the centre, in transformers 4 and 5. With the backend "pil", its pixels are
those of `unveil embed`. By default, version 5 resizes by torch, whose results differ by a grey level in 1 to 2 % of the pixels. It
rounds the corner of the crop down, so the crops of some images that are not square begin one pixel earlier: see `same_crop`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from unveil.atomic_files import write_text
from unveil.blocks.patches import Size
from unveil.data.eval_transform import CROP_PCT, EvalTransform, usual_crop_pct
from unveil.interop.image_files import WHITE, sizes_to_try, transform_of
from unveil.interop.silence import silenced
from unveil.interop.verify_export import ImagePair, image_pair
from unveil.json_files import read_json
from unveil.models.vit_config import ViTConfig

NAME = "preprocessor_config.json"


def write_preprocessor(folder: Path, vit: ViTConfig) -> None:
    """Writes the preprocessing of a model for square images."""
    facts = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": vit.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": transform_of(vit).fitted[0]},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": vit.image_size[0], "width": vit.image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / WHITE[vit.bit_depth],
        "do_normalize": True,
        "image_mean": list(vit.mean),
        "image_std": list(vit.std),
    }
    write_text(folder / NAME, json.dumps(facts, indent=2) + "\n")


def preprocessing(folder: Path, image_size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """The options of a `ViTConfig` that a folder records. Says what our preprocessing does in another way."""
    path = folder / NAME
    facts = read_json(path) if path.is_file() else {}
    options: dict[str, Any] = {"crop_pct": usual_crop_pct(image_size)}
    if facts.get("image_mean") and facts.get("image_std"):
        options |= {"mean": tuple(facts["image_mean"]), "std": tuple(facts["image_std"])}
    if facts.get("do_rescale") and math.isclose(facts.get("rescale_factor", 0), 1 / 65535):
        options["bit_depth"] = 16
    size, unusual = facts.get("size"), []
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    if edge and facts.get("do_center_crop"):
        options["crop_pct"] = crop_pct_of(image_size, int(edge))
    elif facts.get("do_resize"):
        unusual.append("resizing to a square")
    if facts.get("resample", 3) != 3:
        unusual.append(f"the filter {facts['resample']}")
    if unusual:
        say(f"{folder} was made for {' and '.join(unusual)}; unveil resizes by a bicubic filter and crops the centre")
    return options


def crop_pct_of(image_size: Size, edge: int) -> float:
    """The share of the short side that a crop keeps after a resize to `edge`, such that `EvalTransform` resizes to `edge` too."""
    if EvalTransform(image_size, CROP_PCT).fitted[0] == edge:
        return CROP_PCT
    crop_pct = min(1.0, image_size[0] / edge)
    while EvalTransform(image_size, crop_pct).fitted[0] < edge and crop_pct < 1:
        crop_pct = math.nextafter(crop_pct, 0)
    return crop_pct


def same_crop(vit: ViTConfig, size: Size) -> bool:
    """Whether transformers crops an image of this size where torchvision and we do: a half is not rounded up."""
    resized = transform_of(vit).resized(*size)
    return all((side - crop) % 4 != 3 for side, crop in zip(resized, vit.image_size, strict=True))


def images_of_transformers(folder: Path, vit: ViTConfig) -> ImagePair:
    """Image files as we prepare them, and as transformers does."""
    import transformers

    # The backend "pil" is for 8 bits only. Version 4 has no backends: its slow processors are the same.
    modern = int(transformers.__version__.split(".")[0]) >= 5
    options: dict[str, Any] = {"backend": "torchvision" if vit.bit_depth == 16 else "pil"} if modern else {"use_fast": False}
    with silenced():
        auto: Any = transformers.AutoImageProcessor
        processor = auto.from_pretrained(folder, **options)

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    sizes = [size for size in sizes_to_try(vit) if same_crop(vit, size)]
    return image_pair(vit, prepare if modern or vit.bit_depth == 8 else None, sizes)
