"""Converts run folders of earlier versions of unveil to the names of this version, when they are read.

A run folder records its format in `run.json`; the first format has no such entry. Files are migrated when they are read, and never
rewritten: a resumed run keeps its old `run.json`, and its log may contain lines of both formats.
"""

from collections.abc import Mapping
from typing import Any

RUN_FORMAT = 2
"""The format that this version writes. Version 2 renamed options and results."""

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
NEW_OPTIONS: dict[str, Any] = {"warmup_epochs": None}
"""Options that the first format does not have, with the values that correspond to it."""
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
    return dict(config) if version >= 2 else NEW_OPTIONS | renamed(config, CONFIG_KEYS, CONFIG_VALUES)


def migrate_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Migrates a line of log.jsonl. A line of this version does not change."""
    return renamed(record, RECORD_KEYS)


def migrate_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Migrates the content of results.json. Results of this version do not change."""
    new = renamed(results, RESULT_KEYS, RESULT_VALUES)
    if isinstance(new.get("held_out"), dict):
        new["held_out"] = migrate_record(new["held_out"])
    return new
