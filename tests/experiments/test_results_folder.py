"""Results in a folder that a smaller call would replace."""

import json
from pathlib import Path

import pytest

from unveil.errors import UnveilError
from unveil.experiments.results_folder import refuse_fewer_results, scope_of


@pytest.mark.parametrize(
    ("recorded", "seeds", "lost"),
    [
        ({"finished_seeds": [0, 2]}, [0, 2], ""),
        ({"finished_seeds": [0, 2]}, [0, 1], "seed 2"),
        ({"finished_seeds": [0, 2]}, [1], "seeds 0, 2"),
        ({}, [0, 1], ""),  # by an earlier version
        ({}, [1, 2], "seed 0"),
    ],
)
def test_seeds_without_results_may_be_left_out(recorded: dict[str, list[int]], seeds: list[int], lost: str, tmp_path: Path) -> None:
    """If the runs of seed 1 had failed, the results of seed 2 could be replaced, and those of seed 1 were missed."""
    content = {"config": {"seeds": [0, 1, 2]}, "rows": [{"name": "mae", "figures": {"linear": [0.3, 0.2]}}], **recorded}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    asked = scope_of("method", ["mae"], seeds, [])
    if lost:
        with pytest.raises(UnveilError, match=f"would be lost: {lost}\\. Ask"):
            refuse_fewer_results(tmp_path, "comparison", asked)
    else:
        refuse_fewer_results(tmp_path, "comparison", asked)
