"""`unveil pack` of whole sets, killed half-way by SIGKILL: minutes, so only where it is asked for.

UNVEIL_TEST_WHOLE=/data/photos:/data/cifar10/train.tar.gz pytest tests/recipes/test_pack_whole.py -s
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unveil.data.dataset import ImageDataset
from unveil.data.pack_reader import FACTS, UNFINISHED
from unveil.data.sources import open_source

WHOLE = [each for each in os.environ.get("UNVEIL_TEST_WHOLE", "").split(":") if each]
SHARD = 500_000
"""Bytes of a shard: small, so that there are some before half-way."""


def command(data: str, out: Path, store: str) -> list[str]:
    return [sys.executable, "-m", "unveil", "pack", data, str(out), "--store", store, "--shard-bytes", str(SHARD)]


def seconds_of(argv: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


@pytest.mark.skipif(not WHOLE, reason="UNVEIL_TEST_WHOLE is not set to paths of images, with colons between them")
@pytest.mark.parametrize("store", ["jpeg", "raw"])
@pytest.mark.parametrize("data", WHOLE or [""])
def test_killed_half_way_and_flipped(data: str, store: str, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    count = len(open_source(data))
    in_one_go = seconds_of(command(data, whole, store))
    shards = sorted(path.name for path in whole.glob("shard-*"))
    assert len(shards) > 2, f"{data} makes {len(shards)} shards of {SHARD:,} bytes: give more images"

    start = time.perf_counter()
    process = subprocess.Popen(command(data, out, store), stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / shards[len(shards) // 2 - 1]).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = time.perf_counter() - start
    assert (out / UNFINISHED).exists()
    assert not (out / FACTS).exists()
    done = sorted(path.name for path in out.glob("shard-*"))
    assert len(shards) // 2 <= len(done) < len(shards)
    second = seconds_of(command(data, out, store))
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    size = sum(path.stat().st_size for path in whole.iterdir())
    print(
        f"\n{data}, {store}: {count:,} images, {len(shards)} shards, {size / 1e6:.1f} MB; "
        f"in one go {in_one_go:.1f} s ({count / in_one_go:,.0f} images/s); killed after {first:.1f} s with {len(done)} shards, "
        f"the rest in {second:.1f} s; the same {len(shards)} shards, index and facts"
    )
    shutil.rmtree(whole)

    shard = out / shards[-1]
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shard.write_bytes(flipped)
    verify = [sys.executable, "-m", "unveil", "pack", str(out), "--verify"]
    told = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    (sentence,) = told.stderr.splitlines()
    images = ImageDataset(open_source(out), side=256)  # as training reads them: the others go on
    ((name, reason),) = images.skipped.items()
    assert reason == "damaged in the pack: its checksum does not match"
    assert len(images) == count - 1
    assert f"{out} is damaged: {shard.name}, with 1 image ({name})" in sentence
    print(sentence)
