"""One process, two under DDP and two under FSDP2 learn the same."""

from pathlib import Path

import numpy as np
import pytest

from tests.train.conftest import finish, records, start


@pytest.mark.slow
def test_one_process_ddp_and_fsdp_log_the_same_loss(pictures: Path, tmp_path: Path) -> None:
    """Losses to five digits over 20 steps; accumulation counts as well."""
    ways = {
        "single": start(pictures, tmp_path / "single", "--epochs", "5.5"),
        "ddp": start(pictures, tmp_path / "ddp", "--epochs", "5.5", processes=2),
    }
    for process in ways.values():
        finish(process)
    finish(start(pictures, tmp_path / "fsdp", "--epochs", "5.5", "--parallel", "fsdp", processes=2))
    finish(start(pictures, tmp_path / "parts", "--epochs", "5.5", "--accumulate", "4"))
    losses = {way: [line["loss"] for line in records(tmp_path / way)] for way in ("single", "ddp", "fsdp", "parts")}
    assert len(losses["single"]) >= 20
    assert losses["single"][0] > 1.01 * losses["single"][-1]
    for way in ("ddp", "fsdp", "parts"):
        np.testing.assert_allclose(losses[way], losses["single"], rtol=1e-5, err_msg=way)
