"""Reads the `config.json` of earlier versions. The header of an exported .safetensors file holds the same JSON.

| format_version | what changed |
| --- | --- |
| 1 | No key `format_version`. Written until unveil 0.1. |
| 2 | `reads` ("pictures" or "texts"; the oldest files lack it) is now `modality` ("images" or "text"). A top-level
      `"norm": false` is now the encoder's option `final_norm`, which is also false for fine-tuned image encoders. The task of a
      text classifier is now "text-classification", not "finetune". The options in `RENAMED` have new names. |
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError

VERSION = 2
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


MIGRATIONS: tuple[Callable[[dict[str, Any], str | Path], dict[str, Any]], ...] = (from_version_1,)
"""Functions that migrate each version to the next one."""
