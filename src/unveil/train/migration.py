"""Converts run folders of earlier versions of unveil to the names of this version, when they are read.

A run folder records its format in `run.json`; the first format has no such entry. Files are migrated when they are read, and never
rewritten: a resumed run keeps its old `run.json`, and its log may contain lines of both formats.
"""

from collections.abc import Mapping
from typing import Any

from unveil.blocks.attention import decoder_heads, default_heads

RUN_FORMAT = 7
"""The format that this version writes. Version 2 renamed options and results, version 3 changed defaults, version 4 takes random
crops from the original image, version 5 changed the settings of the digits, version 6 fine-tunes with a validation set, images from
a linear probe, and version 7 leaves out training images that are copies of held-out ones."""

CONFIG_KEYS = {
    "recompute": "grad_checkpointing",
    "clip": "clip_grad",
    "accumulate": "accum_steps",
    "warmup": "warmup_ratio",
    "keep": "keep_checkpoints",
    "monitor_times": "num_evals",
    "epsilon": "eps",
    "last_weight_decay": "weight_decay_end",
    "pixel_limit": "max_pixels",
    "jitter": "color_jitter",
    "tokenizer": "visual_tokenizer",
    "codebook": "codebook_size",
    "vocabulary": "vocabulary_size",
    "longest": "max_length",
    "length": "max_length",
}
"""Renamed options in `config` of run.json and plan.json."""
CONFIG_VALUES = {"schedule": {"line": "linear", "root": "inverse_sqrt"}}
"""Renamed values of options, by the new name of the option."""
NEW_OPTIONS: dict[str, Any] = {"warmup_epochs": None, "max_skipped_steps": 10, "min_lr": 0.0, "clip_mode": "global"}
"""Options that older runs do not have, with the values that correspond to them."""
NEW_METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "simmim": {"relative_bias": "none", "positions": "sincos", "layer_scale": None, "drop_path": 0.0},
    "dino": {"drop_path": 0.0, "positions": "sincos"},
}
"""Options of methods that version 2 does not have, with the values that correspond to it."""
NEW_TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "partial": {
        "pool": "mean",
        "batch_norm": True,
        **dict.fromkeys(("drop_path", "mixup", "cutmix", "smoothing", "erasing"), 0.0),
        "randaugment": 0,
    }
}
"""The same for tasks."""
FINETUNE_OPTIONS: dict[str, Any] = {"validation": 0.0, "patience": 0}
"""Options of fine-tuning that version 5 does not have, with the values that correspond to it."""
FINETUNE_IMAGE_OPTIONS: dict[str, Any] = {
    "recipe": "paper",
    "start": "random",
    "fc_norm": True,
    "pool": "mean",
    "balance": False,
    "mae_loss": 0.0,
}
"""The same for the task "finetune", which a run does not record."""
RECORD_KEYS = {"picture_mean_error": "image_mean_error"}
"""Renamed entries of a line of log.jsonl, and of `held_out` in results.json."""
RESULT_KEYS = {"pictures": "images", "pictures_seen": "images_seen"}
"""Renamed entries of results.json."""
RESULT_VALUES = {"samples": {"pictures": "images"}}
"""Renamed values in results.json."""


def renamed(
    old: Mapping[str, Any], keys: Mapping[str, str], values: Mapping[str, Mapping[Any, Any]] | None = None
) -> dict[str, Any]:
    """A mapping with renamed keys. Values that are strings are renamed in the same way."""
    new = {keys.get(key, key): value for key, value in old.items()}
    for key, table in (values or {}).items():
        if isinstance(new.get(key), str):
            new[key] = table.get(new[key], new[key])
    return new


def migrate_config(config: Mapping[str, Any], version: int = 1) -> dict[str, Any]:
    """Migrates the options of a run or a plan that was written in format `version`."""
    new = dict(config)
    if version < 3:
        new = from_version_2(NEW_OPTIONS | (new if version == 2 else renamed(new, CONFIG_KEYS, CONFIG_VALUES)))
    if "held_out" in new and "crop" in new:  # pre-training on images, whose normalisation earlier versions did not record
        new = {"normalisation": "auto"} | new
    if version < 4 and "crop" in new:  # images
        new = {"crop_from": "shrunk"} | new
    if version < 6 and "from" in new:  # fine-tuning
        new = FINETUNE_OPTIONS | (FINETUNE_IMAGE_OPTIONS if "crop" in new and "task" not in new else {}) | new
    if version < 7 and "crop" in new:
        new = {"leave_out_copies": False} | new
    return new


def from_version_2(config: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the options that version 3 introduced, with the values that an earlier version used."""
    added = NEW_METHOD_OPTIONS.get(str(config.get("method")), {}) | NEW_TASK_OPTIONS.get(str(config.get("task")), {})
    if "from" in config and "crop" in config:  # fine-tuning on images
        added = added | {"image_size": []}
    if "crop" in config:  # images
        added = added | {"max_unreadable": 0.01}
    new = {**added, **config}
    if config.get("method") == "mae" and config.get("decoder_heads") is None and config.get("decoder_width"):
        heads = default_heads(config["decoder_width"])
        new["decoder_heads"] = None if heads == decoder_heads(config["decoder_width"]) else heads
    return new


def migrate_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Migrates a line of log.jsonl. A line of this version does not change."""
    return renamed(record, RECORD_KEYS)


def migrate_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Migrates the content of results.json. Results of this version do not change."""
    new = renamed(results, RESULT_KEYS, RESULT_VALUES)
    if isinstance(new.get("held_out"), dict):
        new["held_out"] = migrate_record(new["held_out"])
    return new
