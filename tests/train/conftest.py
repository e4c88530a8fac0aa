"""A small folder of images, and the command line in other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import Command

OPTIONS = (
    "--model vit-nano --image-size 16 --patch-size 4 --batch-size 16 --base-lr 2e-3 --log-every 1 --precision float32 "
    "--num-evals 1 --held-out 4 --device cpu --save-seconds 0"
).split()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    chance = np.random.default_rng(0)
    for i in range(64):
        np.save(folder / f"{i:03d}.npy", chance.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return folder


def start(images: Path, out: Path, *more: str, processes: int = 1) -> Command:
    """Starts `unveil pretrain`."""
    return Command(["pretrain", str(images), *OPTIONS, "--out", str(out), *more], processes)


def start_torchrun(images: Path, out: Path, *more: str, processes: int, restarts: int) -> "subprocess.Popen[str]":
    """Starts `unveil pretrain` by torchrun, which restarts all processes up to `restarts` times when one dies."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    torchrun += ["--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "unveil", "pretrain", str(images), *OPTIONS, "--out", str(out), *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "Command | subprocess.Popen[str]") -> str:
    """Waits for the end of a run, which must succeed; returns its output."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def records(out: Path) -> list[dict[str, Any]]:
    """The complete lines of the log of a run."""
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
