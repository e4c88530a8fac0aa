"""A run that is killed, or moved to another number of processes, ends with the same result."""

import fcntl
import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import OPTIONS, finish, records, start

KILLS = int(os.environ.get("UNVEIL_TEST_KILLS", "3"))


def wait_for_step(process: object, out: Path, step: int) -> None:
    """Waits until the log has this step, or the run has ended."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:  # type: ignore[attr-defined]
        lines = records(out)
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_runs_end_bit_identical(images: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, the same command again each time: the same weights, and every step logged once."""
    options = ("--epochs", f"{7 * KILLS}.01")
    whole = start(images, tmp_path / "whole", *options)
    chance = random.Random(1)
    killed = 0
    while killed < KILLS:
        process = start(images, tmp_path / "killed", *options)
        lines = records(tmp_path / "killed")
        wait_for_step(process, tmp_path / "killed", (lines[-1]["step"] if lines else 0) + chance.randint(1, 6))
        time.sleep(chance.random() * 0.2)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed: make it longer"
        killed += 1
    finish(start(images, tmp_path / "killed", *options))
    finish(whole)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert [line["step"] for line in records(tmp_path / "killed")] == [line["step"] for line in records(tmp_path / "whole")]


@pytest.mark.slow
def test_a_run_moves_between_one_process_and_two(images: Path, tmp_path: Path) -> None:
    """SIGTERM saves first. Then one process resumes the checkpoint of two (DDP), and two (FSDP2) resume that of one."""
    whole = start(images, tmp_path / "whole", "--epochs", "8.01")
    first = start(images, tmp_path / "moved", "--epochs", "8.01", processes=2)
    wait_for_step(first, tmp_path / "moved", 5)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    at = [max(int(path.name[5:]) for path in (tmp_path / "moved" / "checkpoints").glob("step-*"))]
    second = start(images, tmp_path / "moved", "--epochs", "8.01")
    wait_for_step(second, tmp_path / "moved", at[0] + 5)
    second.send_signal(signal.SIGTERM)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 143, said
    assert "run the same command to resume" in said
    assert f"resuming from step {at[0]}" in said
    said = finish(start(images, tmp_path / "moved", "--epochs", "8.01", "--parallel", "fsdp", processes=2))
    assert "resuming from step" in said
    finish(whole)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "moved"))
    for name, tensor in expected.items():
        other = found[name]
        if name.endswith("query_key_value.bias"):  # softmax does not see a key's bias: its gradient is
            tensor, other = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (tensor, other))  # rounding, which Adam blows up
        torch.testing.assert_close(other, tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert [line["step"] for line in records(tmp_path / "moved")] == [line["step"] for line in records(tmp_path / "whole")]


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_run(images: Path, tmp_path: Path) -> None:
    """As when the connection of ssh is lost: SIGHUP, and nothing can be written to the terminal any more."""
    out = tmp_path / "run"
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "unveil", "pretrain", str(images), *OPTIONS, "--save-seconds", "1000", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--epochs", "4000"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    while process.poll() is None and (not (lines := records(out)) or lines[-1]["step"] < 5):
        if select.select([main], [], [], 0.1)[0]:
            os.read(main, 10_000)
    assert not (out / "checkpoints").exists()
    os.close(main)
    assert process.wait(timeout=120) == 129
    assert len(list((out / "checkpoints").glob("step-*"))) == 1
