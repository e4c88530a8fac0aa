"""The one place that chooses fast paths, and the environment variable that turns them off."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unveil.blocks.fast import choose

SOURCE = Path(choose.__file__).parent.parent


def test_the_environment_is_read_at_import() -> None:
    code = "from unveil.blocks.fast import choose; print(*sorted(n for n in choose.NAMES if not choose.enabled(n)))"
    environment = os.environ | {"UNVEIL_PLAIN": "recompute", "UNVEIL_TRY": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted({"recompute"} | choose.UNTRIED)


@pytest.mark.parametrize(
    ("variables", "off"),
    [
        ({}, choose.UNTRIED),
        ({"UNVEIL_PLAIN": "1", "UNVEIL_TRY": "cast_together"}, choose.NAMES),
        ({"UNVEIL_PLAIN": "recompute"}, {"recompute"} | choose.UNTRIED),
        ({"UNVEIL_PLAIN": "recompute", "UNVEIL_TRY": "cast_together"}, {"recompute"}),
    ],
)
def test_the_environment_turns_fast_paths_off_and_on(
    variables: dict[str, str], off: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNVEIL_PLAIN", "UNVEIL_TRY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose.off_by_environment() == off


def test_each_path_has_a_condition_and_a_row_in_the_table() -> None:
    text = (SOURCE / "fast" / "choose.py").read_text()
    rows = dict(re.findall(r"^\| (\w+) +\| (\w+\.py)", text, re.MULTILINE))
    assert set(rows) == choose.NAMES
    assert all((SOURCE / "fast" / file).is_file() for file in rows.values())
    for name in choose.NAMES:
        used = sum(path.read_text().count(f'enabled("{name}")') for path in SOURCE.rglob("*.py"))
        assert used, name


def test_conditions() -> None:
    half, exact = torch.zeros(2, 2, dtype=torch.bfloat16), torch.zeros(2, 2)
    assert choose.half_norm(half, exact)
    assert not choose.half_norm(exact, exact)
    assert choose.half_attention(half)
    assert not choose.half_attention(exact)
    large = torch.zeros(choose.RECOMPUTE_FROM)
    assert not choose.recompute(large)
    with torch.autocast("cpu", torch.bfloat16):
        assert choose.recompute(large)
        assert not choose.recompute(large[1:])
        with torch.no_grad():
            assert not choose.recompute(large)
        with choose.turned_off("recompute"):
            assert not choose.recompute(large)
    with choose.turned_off(*choose.NAMES):
        assert not any(
            [choose.half_norm(half, exact), choose.half_attention(half), choose.byte_dropout(exact), choose.fast_block()]
        )
