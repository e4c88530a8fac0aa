"""Warnings on tables and pages: fine-tuning behind linear probes, images without detail, findings without an answer yet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unveil.reports.comparison import behind_note, caution_note, comparison_table, results_of, row_of
from unveil.reports.findings import Judgement
from unveil.reports.paper_study_page import PaperStudyResult, findings_summary
from unveil.reports.run_summary import error_sentences
from unveil.train.run_folder import Run, command_name


def tuned(folder: Path, name: str, accuracy: float, probe: float, count: int = 1000, **more: Any) -> Path:
    """The folder of a fine-tuning run with these accuracies."""
    path = folder / name
    path.mkdir()
    (path / "run.json").write_text("{}")
    score = {"top1": accuracy, "count": count}
    Run(path).write_results({"seconds": 1.0, "primary": "top1", "score": score, "probe": {"top1": probe}, **more})
    return path


def test_fine_tuning_behind_linear_probes_is_said_once(tmp_path: Path) -> None:
    ahead = tuned(tmp_path, "ahead", 0.6, 0.5)
    level = tuned(tmp_path, "level", 0.499, 0.5)  # by chance
    behind = tuned(tmp_path, "behind", 0.3, 0.5)
    few = tuned(tmp_path, "few", 0.3, 0.5, count=20)
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    (pretrained / "run.json").write_text("{}")
    Run(pretrained).write_results({"seconds": 1.0})
    assert caution_note([ahead, level, few, pretrained]) == ""
    note = caution_note([ahead, level, few, pretrained, behind])
    assert note.startswith(
        "Warning: in 1 of 4 fine-tuning runs, the accuracy is lower than that of a linear probe of the same encoder"
    )
    seen = tuned(tmp_path, "seen", 0.3, 0.5, cautions=["2 test images were trained on"])
    assert caution_note([ahead, seen]) == f"Warning: 2 test images were trained on. {behind_note(results_of([ahead, seen]))}"


def test_the_table_says_whose_encoder_is_untrained() -> None:
    rows = [row_of("mae", [{"linear": 0.5}]), row_of("simmim", [{"linear": 0.45}]), row_of("untrained", [{"linear": 0.4}], True)]
    sentence = 'The row "untrained" is the untrained encoder of mae.'
    assert sentence in comparison_table(rows, "title", {}, untrained="the untrained encoder of mae").sentences
    assert sentence not in comparison_table(rows[:2], "title", {}, untrained="the untrained encoder of mae").sentences
    assert not any("untrained" in each for each in comparison_table(rows, "title", {}).sentences)


def test_images_without_detail_have_no_percentages() -> None:
    (sentence,) = error_sentences({"held_out_error": 0.0328, "patch_mean_error": 2e-15, "image_mean_error": 3.2e-15})
    assert sentence == (
        "On masked patches of held-out images its mean squared error is 0.0328. There is nothing to learn from these images: "
        "each of them has one colour only, without any detail."
    )
    usual = error_sentences({"held_out_error": 0.2, "patch_mean_error": 0.1, "image_mean_error": 0.8})
    assert "100 % higher than" in usual[0]
    assert "75 % lower than" in usual[0]


def found(name: str, answer: Any) -> PaperStudyResult:
    result: Any = SimpleNamespace(name=name, judgement=Judgement(answer, ""))
    return result


def test_findings_are_counted_as_open_when_their_study_has_finished() -> None:
    results = [found("a", "holds"), found("b", "open"), found("c", "open")]
    assert findings_summary(results, 3, ()) == "Of 3 findings of the paper, 1 holds here, 0 do not, and 2 cannot be told."
    early = findings_summary(results, 12, ("a", "c"))
    assert early == "Of 12 findings of the paper, 1 holds here, 0 do not, 1 cannot be told, and 10 cannot be told yet."
    assert (
        findings_summary([found("a", "fails")], 1, ())
        == "Of 1 finding of the paper, 0 hold here, 1 does not, and 0 cannot be told."
    )


def test_the_recorded_command_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    for first, words in {
        "/usr/bin/unveil": ["unveil"],
        "/site/unveil/__main__.py": ["python", "-m", "unveil"],
        "train.py": ["train.py"],
        "-c": ["-c"],
        "": [""],
    }.items():
        monkeypatch.setattr("sys.argv", [first, "study"])
        assert command_name() == words
