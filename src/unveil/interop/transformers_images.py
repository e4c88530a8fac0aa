"""The preprocessing of images in a transformers folder: `preprocessor_config.json`, for `AutoImageProcessor`.

`BitImageProcessor` resizes the short side and crops the centre, in transformers 4 and 5. With the backend "pil", its pixels are
those of `unveil embed`. By default, version 5 resizes by torch, whose results differ by a grey level in 1 to 2 % of the pixels. It
rounds the corner of the crop down, so the crops of some images that are not square begin one pixel earlier: see `same_crop`. Models
that come from transformers do the same here ("center_floor").
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from unveil.atomic_files import write_text
from unveil.blocks.patches import Size
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD
from unveil.data.eval_transform import CROP_PCT, EvalTransform, usual_crop_pct
from unveil.interop.files import write_tensors
from unveil.interop.image_files import WHITE, sizes_to_try, transform_of
from unveil.interop.silence import silenced
from unveil.interop.verify_export import ImagePair, image_pair
from unveil.json_files import read_json
from unveil.models.vit_config import Interpolation, ViTConfig
from unveil.models.weights import CHECKSUM, read_metadata
from unveil.train.checkpoint import Tensors

NAME = "preprocessor_config.json"
OWN_CROP = "unveil_crop_mode"
"""An entry of folders that unveil wrote, of models whose crop is rounded as in transformers."""
NOTE = 'AutoImageProcessor.from_pretrained(..., backend="pil") has the same pixels'
"""For the user: by default, transformers 5 resizes by torch."""
FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters, which configs record."""
WITHOUT_FILE: dict[str, dict[str, Any]] = {
    "vit": {"do_resize": True, "size": 224, "resample": 2, "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
    "beit": {"do_resize": True, "size": 224, "resample": 3, "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
}
"""The defaults of the image processors of a model, for folders without preprocessor_config.json."""
SQUARE = ("ViT", "Beit", "Deit")
"""Beginnings of the names of processors for which one number as `size` means a square."""


def write_folder(folder: str | Path, state: Tensors, config: Mapping[str, Any], vit: ViTConfig) -> Path:
    """Writes `model.safetensors`, `config.json`, and `preprocessor_config.json` with the preprocessing of images."""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", state)
    write_preprocessor(folder, vit)
    write_text(folder / "config.json", json.dumps(dict(config), indent=2) + "\n")
    return folder


def shape_json(vit: ViTConfig) -> dict[str, Any]:
    """What the configs of all image models of transformers say about their shape."""
    return {
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": vit.eps,
        "image_size": vit.image_size[0],
        "patch_size": vit.patch_size[0],
        "num_channels": vit.channels,
        "dtype": "float32",
    }


def write_preprocessor(folder: Path, vit: ViTConfig) -> None:
    """Writes the preprocessing of a model for square images."""
    edge, squash = transform_of(vit).fitted[0], vit.crop_mode == "squash"
    facts = {
        "image_processor_type": "ViTImageProcessor" if squash else "BitImageProcessor",
        "do_convert_rgb": vit.channels == 3,
        "do_resize": True,
        "size": {"height": edge, "width": edge} if squash else {"shortest_edge": edge},
        "resample": next(number for number, name in FILTERS.items() if name == vit.interpolation),
        "do_center_crop": not squash or edge != vit.image_size[0],
        "crop_size": {"height": vit.image_size[0], "width": vit.image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / WHITE[vit.bit_depth],
        "do_normalize": True,
        "image_mean": list(vit.mean),
        "image_std": list(vit.std),
    }
    if vit.crop_mode == "center_floor":
        facts[OWN_CROP] = vit.crop_mode
    write_text(folder / NAME, json.dumps(facts, indent=2) + "\n")


def preprocessing(folder: Path, image_size: Size, say: Callable[[str], None], kind: str = "") -> dict[str, Any]:
    """The options of a `ViTConfig` that a folder records. Says what our preprocessing does in another way.

    Args:
        folder: The folder.
        image_size: The size of the model.
        say: Receives log lines.
        kind: The `model_type`, whose defaults are assumed if the folder does not say how images are prepared.
    """
    path = folder / NAME
    facts = read_json(path) if path.is_file() else WITHOUT_FILE.get(kind, {})
    if not path.is_file() and kind:
        say(f"{folder} has no {NAME}: images are prepared by the defaults of transformers for {kind}, or else of ImageNet")
    options: dict[str, Any] = {"crop_pct": usual_crop_pct(image_size)}
    if facts.get("do_normalize", True) and facts.get("image_mean") and facts.get("image_std"):
        options |= {"mean": tuple(facts["image_mean"]), "std": tuple(facts["image_std"])}
    elif not path.is_file() and kind:
        options |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if facts.get("do_rescale") and math.isclose(facts.get("rescale_factor", 0), 1 / 65535):
        options["bit_depth"] = 16
    resample = facts.get("resample", 3)
    options["interpolation"] = FILTERS.get(resample, "bicubic")
    unusual = [] if resample in FILTERS else [f"Pillow's filter {resample}"]
    edge, square = edges_of(facts)
    if edge and facts.get("do_resize", True):
        crops = bool(facts.get("do_center_crop"))
        options["crop_pct"] = crop_pct_of(image_size, edge) if crops or square else 1.0
        options["crop_mode"] = "squash" if square else facts.get(OWN_CROP, "center") if is_ours(folder) else "center_floor"
        if square and not crops and edge != image_size[0]:
            unusual.append(f"images of {edge} px")
    if unusual:
        say(f"{folder} was made for {' and '.join(unusual)}, which unveil does not do: it has the filters bicubic and bilinear")
    return options


def is_ours(folder: Path) -> bool:
    """Whether unveil wrote a folder, whose crop may be rounded as in torchvision."""
    weights = folder / "model.safetensors"
    return weights.is_file() and CHECKSUM in read_metadata(weights)


def edges_of(facts: dict[str, Any]) -> tuple[int | None, bool]:
    """The side to which images are resized, and whether both sides are; None if they are not resized."""
    size = facts.get("size")
    if isinstance(size, dict):
        edge, square = size.get("shortest_edge"), "height" in size
        return (int(size["height"]), True) if square else (None if edge is None else int(edge), False)
    name = str(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "ViT")
    return (int(size), name.startswith(SQUARE)) if isinstance(size, int | float) else (None, False)


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
    if vit.crop_mode == "center_floor" or resized == vit.image_size:
        return True
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
    return image_pair(vit, prepare if sizes and (modern or vit.bit_depth == 8) else None, sizes)
