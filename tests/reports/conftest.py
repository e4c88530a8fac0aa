import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unveil.data.augment import AugmentConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import ViTConfig
from unveil.train.run_folder import Run

FEATURES = {
    "encoder": {"knn": 0.413, "linear": 0.71},
    "untrained": {"knn": 0.19, "linear": 0.432},
    "raw pixels": {"knn": 0.705, "linear": 0.34},
}
RESULTS = {
    "features": FEATURES,
    "judged_on": {"train": 10000, "test": 2000, "classes": 10},
    "held_out": {"held_out_error": 0.121, "patch_mean_error": 0.242, "image_mean_error": 0.847},
    "seconds": 3661.2,
    "images_seen": 70000,
}
TASK_RESULTS = {
    "task": "finetune",
    "primary": "top1",
    "score": {
        "top1": 0.6,
        "top5": 1.0,
        "per_class": [0.75, 0.5, None],
        "confusion": [[3, 1, 0], [2, 3, 1], [0, 0, 0]],
        "count": 10,
    },
    "classes": ["cat", "<img onerror=alert(1)>", "ship & sea"],
}


def make_mae(channels: int = 3, size: tuple[int, int] = (16, 16), **options: Any) -> MAE:
    torch.manual_seed(0)
    vit = ViTConfig(
        width=48,
        depth=2,
        heads=3,
        image_size=size,
        patch_size=(4, 4),
        channels=channels,
        mean=(0.4,) * channels,
        std=(0.2,) * channels,
    )
    config = MAEConfig(decoder_width=48, decoder_depth=1, decoder_heads=3, **options)
    return MAE.build(vit, config, AugmentConfig()).eval()


def write_samples(path: Path, channels: int = 3, names: tuple[str, ...] = ("<img onerror=x>", "$x$")) -> None:
    images = np.random.default_rng(0).normal(size=(2, channels, 16, 16)).astype(np.float32)
    np.savez(path / "samples.npz", images=images, names=np.array(names))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder with everything in it."""
    path = tmp_path / "run"
    path.mkdir()
    facts = {
        "kind": "pretrain",
        "config": {"method": "mae", "model": "vit-nano", "epochs": 20.0, "seed": 7, "decoder_depth": None},
        "data": {"name": "pets <b>&</b>", "fingerprint": "abc123", "count": 9000, "size": [16, 16], "channels": 3},
        "command": "unveil pretrain 'pets <b>' --seed 7",
        "started": "2026-01-02T03:04:05+0000",
        "versions": {"python": "3.11", "unveil": "0.1.0", "torch": "2.11"},
        "hardware": {"host": "box", "platform": "Linux", "cores": 2, "gpus": ["H100", "H100"]},
        "world_size": 1,
    }
    (path / "run.json").write_text(json.dumps(facts))
    lines = []
    for step in range(1, 41):
        record = {"step": step * 50, "epoch": step / 2, "learning_rate": 1e-4, "loss": 1.0 / step, "gradient_norm": 0.7}
        if step % 10 == 0:
            record |= {"knn": step / 100} | {key: value * 40 / step for key, value in RESULTS["held_out"].items()}  # type: ignore[attr-defined]
        lines.append(json.dumps(record))
    (path / "log.jsonl").write_text("\n".join(lines))
    (path / "results.json").write_text(json.dumps(RESULTS | TASK_RESULTS))
    (path / "skipped.txt").write_text("x/<script>.jpg\ttruncated\n" + "".join(f"y/{i}.heic\tno image\n" for i in range(80)))
    write_samples(path)
    return Run(path)
