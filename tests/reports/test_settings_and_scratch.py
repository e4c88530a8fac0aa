"""Options that a run chose by itself, and fine-tuning beside training from scratch."""

import json
from pathlib import Path

import pytest

from unveil.models.last_blocks import trained_blocks
from unveil.reports.page import headline, scratch_sentence
from unveil.reports.run_info import resolved_options, settings_section
from unveil.train.run_folder import Run


def write_run(
    path: Path,
    *,
    top1: float,
    scratch: bool = False,
    epochs: float = 10.0,
    fingerprint: str = "2:a",
    shape: str = "nano",
    blocks: object = None,
) -> Run:
    path.mkdir()
    config = {
        "from": "scratch" if scratch else "runs/cells",
        "scratch": scratch,
        "epochs": epochs,
        "channels": 0,
        "decoder_width": None,
        "blocks": blocks,
    }
    data = {"name": "cells", "count": 80, "fingerprint": fingerprint, "test_fingerprint": "2:b"}
    (path / "run.json").write_text(json.dumps({"kind": "finetune", "config": config, "data": data, "encoder": {"shape": shape}}))
    score = {"top1": top1, "count": 400, "per_class": [top1, top1]}
    (path / "results.json").write_text(json.dumps({"score": score, "primary": "top1"}))
    (path / "log.jsonl").write_text('{"step": 1, "learning_rate": 1e-4}\n{"step": 2, "learning_rate": 5e-05}\n')
    (path / "config.json").write_text('{"encoder": {"channels": 3, "width": 96}, "options": {"decoder_width": 96, "epochs": 3}}')
    return Run(path)


def test_options_that_were_left_open_are_resolved(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", top1=0.5)
    assert resolved_options(run) == {"channels": 3, "decoder_width": 96, "learning_rate": 1e-4}
    page = settings_section(run.config, resolved_options(run))
    for text in ("3 (automatic)", "96 (automatic)", "learning rate, largest", "0.0001"):
        assert text in page
    assert "10.0 (automatic)" not in page


def test_a_damaged_config_leaves_options_open(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", top1=0.5)
    (run.path / "config.json").write_text("[[[")
    assert resolved_options(run) == {"learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("scratch", "phrase"), [(0.55, "25.0 points ahead of"), (0.79, "within chance (+1.0 points) of"), (0.95, "15.0 points behind")]
)
def test_the_run_from_scratch_is_compared(tmp_path: Path, scratch: float, phrase: str) -> None:
    run = write_run(tmp_path / "cells-finetune", top1=0.8)
    assert scratch_sentence(run) == ""
    write_run(tmp_path / "cells-scratch", top1=scratch, scratch=True)
    assert scratch_sentence(run) == f"It is {phrase} the same model from scratch ({100 * scratch:.1f} %)."
    heading, title = headline(run)
    assert title == "The encoder of cells, fine-tuned on cells"
    assert "from scratch" in heading


@pytest.mark.parametrize(
    ("blocks", "start"),
    [(0.0, "The classifier of"), (0.5, "The last MLP of"), (1.0, "The last block of"), (3.0, "The last 3 blocks of")],
)
def test_the_title_says_what_partial_fine_tuning_trains(tmp_path: Path, blocks: float, start: str) -> None:
    run = write_run(tmp_path / "cells-finetune", top1=0.8, blocks=blocks)
    assert headline(run)[1] == f"{start} the encoder of cells, fine-tuned on cells"
    alone = write_run(tmp_path / "cells-scratch", top1=0.5, scratch=True, blocks=blocks)
    assert headline(alone)[1] == f"{start} a model, trained from scratch on cells"


@pytest.mark.parametrize("blocks", ["four", [1.0], {"a": 1}])
def test_an_option_of_the_same_name_of_a_plug_in_is_not_in_the_title(tmp_path: Path, blocks: object) -> None:
    run = write_run(tmp_path / "cells-finetune", top1=0.8, blocks=blocks)
    assert headline(run)[1] == "The encoder of cells, fine-tuned on cells"
    assert trained_blocks("my_task.py:Task", 3.0) == ""


@pytest.mark.parametrize("change", [{"epochs": 20.0}, {"fingerprint": "2:c"}, {"shape": "tiny"}])
def test_another_budget_model_or_other_data_are_not_compared(tmp_path: Path, change: dict[str, object]) -> None:
    run = write_run(tmp_path / "cells-finetune", top1=0.8)
    write_run(tmp_path / "cells-scratch", top1=0.5, scratch=True, **change)
    assert scratch_sentence(run) == ""
    assert headline(Run(tmp_path / "cells-scratch"))[1] == "A model, trained from scratch on cells"
