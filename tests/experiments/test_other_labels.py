"""With --labelled-data, pages say on which data an accuracy was measured, and not that pre-training has not seen them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import unveil
from tests.experiments.test_missing_seeds import comparison_of
from tests.recipes.test_end_to_end import TINY, write_images
from unveil.experiments.compare import write_results
from unveil.experiments.paper_studies import STUDIES
from unveil.experiments.run_paper_study import plan_study, result_of
from unveil.experiments.study import SweepSpec
from unveil.reports.comparison import evaluated_images_of
from unveil.reports.paper_study_page import PaperStudyResult, Point, study_table, write_paper_study
from unveil.train.run_folder import ChangedSettingsError, receipt

NOT_KNOWN = (
    "Whether pre-training has seen samples of {} that no warning counts is not known: if it has, accuracies on {} may be too high."
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("data")
    return str(write_images(root / "photos")), str(write_images(root / "labelled", 14))


def page_of(result: PaperStudyResult, folder: Path) -> str:
    write_paper_study(folder, result, {"config": {}, **receipt()}, [])
    return (folder / "report.html").read_text()


def result_with(name: str, data: str, folder: Path, **options: object) -> PaperStudyResult:
    """The result of a study before any of its runs, with a made-up accuracy for each metric of each setting."""
    plan = plan_study(STUDIES[name], "mae", data, folder, {"seeds": (0,), "epochs": 1.0, **options})
    result, points = result_of(plan), []
    for setting in plan.settings:
        figures = {key: [0.5] for key in plan.study.metrics}
        points.append(Point(setting.label, setting.ours, setting.theirs, setting.position, figures, {}))
    return result._replace(points=points)


def test_a_study_of_the_labels_names_the_labelled_data(data: tuple[str, str], tmp_path: Path) -> None:
    photos, labelled = data
    result = result_with("label-fraction", photos, tmp_path, labelled_data=labelled)
    about = f"pre-trained on {photos}, evaluated on {labelled}"
    assert study_table(result).title.endswith(f"with how many labels? ({about})")
    page = page_of(result, tmp_path)
    assert f"study label-fraction, {about}" in page
    assert "label-fraction on photos and labelled</title>" in page
    assert "Our accuracies are those on a part of labelled held out from training with labels. " in page
    assert NOT_KNOWN.format("labelled", "labelled") in page
    alone = result_with("label-fraction", photos, tmp_path, labelled_data=photos + "/")  # the same data
    assert alone.labelled == ""
    assert study_table(alone).title.endswith(f"({photos})")
    assert "Our accuracies are those on samples held out from training. " in page_of(alone, tmp_path)


def test_a_study_of_pre_training_is_fine_tuned_on_them(data: tuple[str, str], tmp_path: Path) -> None:
    photos, labelled = data
    result = result_with("mask-token", photos, tmp_path, labelled_data=labelled)
    assert result.about == f"pre-trained on {photos}, fine-tuned on {labelled}"
    assert (
        f"Our accuracies are those on a part of labelled held out from training with labels, and those of the column linear are on "
        f"samples held out from training on {photos}. {NOT_KNOWN.format('labelled', 'labelled')}"
    ) == result.images
    test = result._replace(evaluated_on="test").images
    assert test.startswith(
        f"Our accuracies are those on the test set of labelled, and those of the column linear are on the test set of {photos}"
    )
    assert result._replace(labelled="", evaluated_on="test").images == ""


def test_comparisons_and_sweeps_name_them(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path, {"mae": {0: 0.4}}, (0,))
    comparison = replace(comparison, config=replace(comparison.config, labelled_data="some/labels"))
    _, table = write_results(comparison)
    assert table.title == "mae on photos, fine-tuned on some/labels, equal epochs"
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Methods compared on photos, fine-tuned on labels</h1>" in page
    assert NOT_KNOWN.format("labels", "labels") in page
    assert "Accuracy on samples held out from training: linear" in page  # which is measured at the end of pre-training
    assert evaluated_images_of("finetune", "held-out", "some/labels") == "a part of labels held out from training with labels"
    spec = SweepSpec(method="mae", data="photos", option="mask_ratio", values=(0.5,))
    assert spec.sweep(comparison).title == "mae on photos, fine-tuned on some/labels"


def test_terminal_and_files_warn_of_test_images_that_were_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run says so once, before and after its training; so do the table at the end, and the file that programs read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_images(Path("photos"))
    write_images(Path("labelled/test"))
    for name in ("warm", "cold"):  # images of their own
        Path("labelled/train", name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (i, 2, 3)).save(Path("labelled/train", name, f"{name}{i}.png"))
    options: dict[str, Any] = {**TINY, "seeds": (0,), "epochs": 0.5, "held_out": 2, "finetune": {"epochs": 0.5}}
    options |= {"labelled_data": "labelled", "evaluate_on": "test"}
    results = unveil.compare("mae", "photos", out="compared", markdown=True, **options)
    clause = "compared/mae-seed0 was trained on 22 of 24 test images: its results are too good"
    assert json.loads(Path("compared/compare.json").read_text())["cautions"] == [clause]
    assert f"Warning: {clause}." in capsys.readouterr().out.split("| mae |")[-1]
    assert f"Warning: {clause}." in results._repr_html_()
    assert f"Warning: {clause}." in Path("compared/report.html").read_text()
    known = {path: path.read_bytes() for path in Path("compared").glob("*.*")}
    for jobs in (None, 2):  # the runs of pre-training fit, and those of fine-tuning do not
        with pytest.raises(ChangedSettingsError, match="epochs"):
            unveil.compare("mae", "photos", out="compared", jobs=jobs, **options | {"finetune": {"epochs": 1.0}})
        assert {path: path.read_bytes() for path in Path("compared").glob("*.*")} == known
    unveil.study("mask_ratio=0.5", "photos", out="swept", **options)
    clause = clause.replace("compared/mae", "swept/mae-mask_ratio-0.5")
    assert json.loads(Path("swept/study.json").read_text())["cautions"] == [clause]
    assert capsys.readouterr().out.rindex(f"Warning: {clause}.") > 0
    unveil.study("mask-token", "photos", out="tokens", **options)
    cautions = json.loads(Path("tokens/study.json").read_text())["cautions"]
    assert len(cautions) == 2
    assert f"Warning: {cautions[0]}. Such a warning is on the pages of 2 of 4 runs." in capsys.readouterr().out
