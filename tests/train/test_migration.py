"""Run folders of the first format are read, and resumed, under the names of this version."""

import json
from pathlib import Path

import pytest
import torch

from unveil.errors import UnveilError
from unveil.train.migration import NEW_OPTIONS, RUN_FORMAT, migrate_config, migrate_record, migrate_results
from unveil.train.parallel import World
from unveil.train.run_cost import machine, plan_of
from unveil.train.run_folder import Run, open_run

OLD = {
    "method": "mae",
    "image_size": [16, 16],
    "pixel_limit": 64_000_000,
    "recompute": False,
    "tokenizer": "kmeans",
    "codebook": 512,
    "jitter": 0.0,
    "accumulate": 0,
    "monitor_times": 4,
    "keep": 3,
    "schedule": "root",
    "warmup": 0.05,
    "last_weight_decay": None,
    "epsilon": 1e-08,
    "clip": 0.0,
}
NEW = {
    "method": "mae",
    "image_size": [16, 16],
    "max_pixels": 64_000_000,
    "grad_checkpointing": False,
    "visual_tokenizer": "kmeans",
    "codebook_size": 512,
    "color_jitter": 0.0,
    "accum_steps": 0,
    "num_evals": 4,
    "keep_checkpoints": 3,
    "schedule": "inverse_sqrt",
    "warmup_ratio": 0.05,
    "warmup_epochs": None,
    "weight_decay_end": None,
    "eps": 1e-08,
    "clip_grad": 0.0,
    "max_skipped_steps": 10,
    "min_lr": 0.0,
    "clip_mode": "global",
}
DATA = {"name": "digits", "count": 10_000, "fingerprint": "11bd"}


def old_run(folder: Path, config: dict = OLD) -> Path:
    """A stopped run as version 0.1 wrote it, at commit d98af96."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": "pretrain", "config": config, "data": DATA, "world_size": 1}))
    return folder


def test_options_and_their_values_are_renamed():
    assert migrate_config(OLD) == NEW
    assert migrate_config({"schedule": "line"})["schedule"] == "linear"
    assert migrate_config({"longest": 9}) == NEW_OPTIONS | {"max_length": 9}  # of a translator
    assert migrate_config({"length": 9}) == NEW_OPTIONS | {"max_length": 9}  # of pre-training on text
    assert migrate_config(NEW, 2) == NEW
    foreign = {"length": 3, "keep": 1, "schedule": "line"}  # a plug-in may use these names today
    assert migrate_config(foreign, 2) == NEW_OPTIONS | foreign
    assert migrate_config(foreign, RUN_FORMAT) == foreign
    assert migrate_config({"crop": "resized"}, 3) == {"crop": "resized", "crop_from": "shrunk", "leave_out_copies": False}  # images
    assert migrate_config({"crop": "resized", "crop_from": "original"}, RUN_FORMAT)["crop_from"] == "original"
    assert migrate_config({"crop": "none"})["crop_from"] == "shrunk"


def test_an_old_run_is_resumed_by_the_same_command(tmp_path):
    said = []
    run = open_run(old_run(tmp_path / "run"), "pretrain", NEW, DATA, write=True, say=said.append)
    assert run.config == NEW
    assert not said
    with pytest.raises(UnveilError) as caught:
        open_run(run.path, "pretrain", NEW | {"warmup_epochs": 2.0, "clip_grad": 1.0}, DATA, write=True, say=said.append)
    assert str(caught.value).splitlines()[1:-1] == [
        "  config clip_grad: was 0.0, is 1.0",
        "  config warmup_epochs: was None, is 2.0",
    ]
    open_run(run.path, "pretrain", NEW | {"keep_checkpoints": 9}, DATA, write=True, say=said.append)
    assert "  config keep_checkpoints: was 3, is 9" in said[0]


def test_log_and_results_are_renamed(tmp_path):
    run = Run(old_run(tmp_path / "run"))
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "picture_mean_error": 0.8}, {"step": 3, "image_mean_error": 0.7}]
    (run.path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.log == [lines[0], {"step": 2, "image_mean_error": 0.8}, lines[2]]
    held_out = {"held_out_error": 0.6, "picture_mean_error": 0.8}
    run.write_results({"pictures": 10, "pictures_seen": 99, "held_out": held_out, "samples": "pictures", "seconds": 1.0})
    expected = {"images": 10, "images_seen": 99, "samples": "images", "seconds": 1.0}
    assert run.results == expected | {"held_out": {"held_out_error": 0.6, "image_mean_error": 0.8}}
    assert migrate_results(run.results) == run.results
    assert migrate_record(run.log[1]) == run.log[1]


def test_an_old_plan_belongs_to_the_run_of_the_same_settings(tmp_path):
    world = World(torch.device("cpu"))
    plan = {"config": OLD, "data": DATA, "machine": machine(world), "predicted": {"seconds": 3.0, "memory": 5}}
    run = Run(old_run(tmp_path / "run"))
    (run.path / "plan.json").write_text(json.dumps(plan))
    assert plan_of(run, world) == plan
    assert plan_of(Run(old_run(tmp_path / "other", OLD | {"epsilon": 1e-6})), world) is None
    (run.path / "plan.json").write_text(json.dumps(plan | {"config": OLD | {"clip": 1.0}}))
    assert plan_of(run, world) is None
    (run.path / "plan.json").write_text(json.dumps(plan | {"format": 2, "config": NEW}))
    assert plan_of(run, world) == plan | {"format": 2, "config": NEW}
    (run.path / "plan.json").write_text("[")
    assert plan_of(run, world) is None


def test_a_newer_format_is_refused(tmp_path):
    folder = old_run(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"format": RUN_FORMAT + 1, "kind": "pretrain", "config": {}, "data": {}}))
    says = f"has format {RUN_FORMAT + 1}, but this version of unveil reads formats up to {RUN_FORMAT}: .*upgrade unveil"
    with pytest.raises(UnveilError, match=says):
        Run(folder)
