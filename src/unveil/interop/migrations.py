"""Reads the `config.json` of earlier versions. The header of an exported .safetensors file holds the same JSON.

| format_version | what changed |
| --- | --- |
| 1 | No key `format_version`. Written until unveil 0.1. |
| 2 | `reads` ("pictures" or "texts"; the oldest files lack it) is now `modality` ("images" or "text"). A top-level
      `"norm": false` is now the encoder's option `final_norm`, which is also false for fine-tuned image encoders. The task of a
      text classifier is now "text-classification", not "finetune". The options in `RENAMED` have new names. |
| 3 | SimMIM and DINO record the positions, biases, layer scale and drop path of their encoder, a partial fine-tuning its pooling,
      norm and regularisation, and MAE the width, depth and heads of its decoder, whose defaults have changed. Image
      encoders record `crop_pct` and `bit_depth`. |
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.blocks.attention import default_heads
from unveil.data.eval_transform import usual_crop_pct
from unveil.errors import UnveilError
from unveil.train.migration import NEW_METHOD_OPTIONS, NEW_TASK_OPTIONS

VERSION = 3
"""The format version that is written."""
RENAMED: dict[str, dict[str, str]] = {
    "encoder": {"recompute": "grad_checkpointing"},
    "options": {"tokenizer": "visual_tokenizer", "codebook": "codebook_size"},
    "augment": {"jitter": "color_jitter"},
}
"""Options that version 2 renamed, by the object of `config.json` that holds them: old name, new name."""
MODALITIES = {"pictures": "images", "texts": "text"}
"""Values of `reads` in version 1, and of `modality` in version 2."""


def migrated(config: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Migrates a `config.json` to the current format version.

    Raises:
        UnveilError: If it was written by a newer version of unveil.
    """
    version = config.get("format_version", 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UnveilError(
            f"{source} has format version {version!r}, but this version of unveil reads 1 to {VERSION}: upgrade unveil"
        )
    result = dict(config)
    for step in MIGRATIONS[version - 1 :]:
        result = step(result, source)
    return result


def from_version_1(config: dict[str, Any], source: str | Path) -> dict[str, Any]:
    reads = config.pop("reads", "pictures")
    if reads not in MODALITIES:
        raise UnveilError(f"{source} holds a model of {reads!r}, expected one of {', '.join(MODALITIES)}")
    config["modality"] = MODALITIES[reads]
    for key, names in RENAMED.items():
        if isinstance(config.get(key), Mapping):
            config[key] = {names.get(name, name): value for name, value in config[key].items()}
    without_norm = not config.pop("norm", True)
    if config.get("task") == "finetune":
        if config["modality"] == "text":
            config["task"] = "text-classification"
        else:
            without_norm = True  # the norm follows the pooling, as in timm's fc_norm
    if without_norm and isinstance(config.get("encoder"), Mapping):
        config["encoder"] = config["encoder"] | {"final_norm": False}
    return config | {"format_version": 2}


def from_version_2(config: dict[str, Any], source: str | Path) -> dict[str, Any]:
    options, encoder = config.get("options"), config.get("encoder")
    new = config | {"format_version": 3}
    if isinstance(encoder, Mapping) and config.get("modality") == "images" and "crop_pct" not in encoder:
        size = encoder.get("image_size")
        sides = [side for side in size if isinstance(side, int)] if isinstance(size, list | tuple) else []
        new["encoder"] = encoder = {**encoder, "crop_pct": usual_crop_pct((min(sides), min(sides))) if sides else 1.0}
    if not (isinstance(options, Mapping) and isinstance(encoder, Mapping)):
        return new
    added: dict[str, Any] = {}
    if config.get("method") in ("simmim", "dino"):
        added = {name: encoder[name] for name in NEW_METHOD_OPTIONS[config["method"]] if name in encoder}
    elif config.get("task") == "partial":
        added = NEW_TASK_OPTIONS["partial"] | {name: encoder[name] for name in ("drop_path",) if name in encoder}
    elif config.get("method") == "mae" and options.get("decoder_heads") is None:
        width = options.get("decoder_width") or min(512, encoder.get("width", 512))
        return new | {"options": {**options, "decoder_heads": default_heads(width)}}
    return new | {"options": {**added, **options}}


MIGRATIONS: tuple[Callable[[dict[str, Any], str | Path], dict[str, Any]], ...] = (from_version_1, from_version_2)
"""Functions that migrate each version to the next one."""
