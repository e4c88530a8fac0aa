"""The one place that chooses fast paths, and the environment variable that turns them off."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unveil.blocks.fast import choose
from unveil.errors import UnveilError

SOURCE = Path(choose.__file__).parent.parent


def test_names_from_the_environment() -> None:
    assert choose.names_in("") == choose.names_in("0") == frozenset()
    assert choose.names_in("1") == choose.NAMES
    assert choose.names_in("recompute,half_norm") == {"recompute", "half_norm"}
    with pytest.raises(UnveilError, match="UNVEIL_PLAIN is 'yes': use 1, or names from byte_dropout, half_attention"):
        choose.names_in("yes")


@pytest.mark.parametrize(("value", "off"), [("1", choose.NAMES), ("recompute", {"recompute"})])
def test_the_environment_turns_fast_paths_off(value: str, off: set[str]) -> None:
    code = "from unveil.blocks.fast import choose; print(*sorted(n for n in choose.NAMES if not choose.enabled(n)))"
    environment = os.environ | {"UNVEIL_PLAIN": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(off)


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
