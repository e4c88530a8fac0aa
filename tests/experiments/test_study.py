"""A study: each point of a curve agrees with its run folders, and nothing is trained twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

import unveil
from tests.experiments.test_compare import TINY, no_pages
from tests.recipes.test_end_to_end import write_images
from unveil.command_line import parse_options
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.experiments.study import SweepSpec, parse_values, run_study
from unveil.reports.comparison import row_of
from unveil.reports.study_page import Sweep, best_value, sweep_figure, sweep_table
from unveil.train.run_folder import ChangedSettingsError, Run

__all__ = ["no_pages"]


def test_a_sweep_agrees_with_its_runs(tmp_path: Path) -> None:
    data, folder = str(write_images(tmp_path / "images")), tmp_path / "study"
    pretraining = {key: value for key, value in TINY.items() if key != "finetune"}
    options = {"epochs": 0.5, "seeds": (0,), "with_finetune": False, **pretraining}
    (sweep,) = unveil.study("mask_ratio=0.5,0.75", data, out=folder, **options)
    assert (sweep.option, sweep.values) == ("mask_ratio", [0.5, 0.75])
    for value, row in zip(sweep.values, sweep.rows, strict=True):
        run = Run(folder / f"mae-mask_ratio-{value}-seed0")
        assert run.config["mask_ratio"] == value
        assert row.figures["linear"] == [run.results["features"]["encoder"]["linear"]]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*/**/*")}
    with pytest.raises(UnveilError, match=r"study\.json has results that .* would be lost: setting mae-mask_ratio-0\.75; seed 0\."):
        unveil.study("mask_ratio=0.5", data, out=folder, **options | {"seeds": (1,)})
    assert len(json.loads((folder / "study.json").read_text())["sweeps"]["mask ratio"][0]["rows"]) == 2
    specs = {
        "": SweepSpec(method="mae", data=data, option="mask_ratio", values=(0.5, 0.75)),
        "depth": SweepSpec(method="mae", data=data, option="decoder_depth", values=(1,), fixed={"target": "pixel"}),
    }
    both = run_study({"ratio and depth": specs}, folder, "two curves", ("option", "mask_ratio"), options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [each.option for each in both] == ["mask_ratio", "decoder_depth"]
    assert Run(folder / "depth" / "mae-decoder_depth-1-seed0").config["target"] == "pixel"
    content = json.loads((folder / "study.json").read_text())["sweeps"]["ratio and depth"]
    assert content[1]["rows"][0]["figures"] == both[1].rows[0].figures
    assert "points below the best of each line" in (folder / "report.html").read_text()

    # Settings of a later curve that have changed are refused before an earlier one trains what it lacks.
    shutil.rmtree(folder / "mae-mask_ratio-0.75-seed0")
    specs["depth"] = replace(specs["depth"], fixed={"target": "pixel", "epochs": 1.0})
    with pytest.raises(ChangedSettingsError, match=r"epochs: was 0\.5, is 1\.0"):
        run_study({"ratio and depth": specs}, folder, "two curves", ("option", "mask_ratio"), options)
    assert not (folder / "mae-mask_ratio-0.75-seed0").exists()


def swept(*scores: list[float]) -> Sweep:
    rows = [row_of(f"mae-mask_ratio-{i}", [{"linear": score} for score in each]) for i, each in enumerate(scores)]
    return Sweep("mae", "mask_ratio", [0.25, 0.5, 0.75][: len(rows)], rows, [row_of("untrained", [{"linear": 0.2}], True)], {})


def test_curve_and_table() -> None:
    sweep = swept([0.5, 0.51], [0.7, 0.71], [0.4, 0.41])
    assert best_value(sweep, "linear") == "linear: best at mask ratio 0.5, with 70.5 %; the worst value is 30.0 points lower."
    assert [row[0] for row in sweep_table(sweep).rows] == ["0.25", "0.5", "0.75", "untrained"]
    axes = sweep_figure([sweep], "linear").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.25, 0.5, 0.75]
    assert axes.lines[0].get_ydata() == pytest.approx([mean(x) for x in ([0.5, 0.51], [0.7, 0.71], [0.4, 0.41])])
    assert axes.lines[1].get_ydata() == pytest.approx([0.5, 0.51])
    assert list(axes.lines[-1].get_ydata()) == [0.2, 0.2]  # the untrained encoder
    both = sweep_figure([sweep, swept([0.1], [0.3])], "linear", below_best=True).axes[0]
    assert max(both.lines[0].get_ydata()) == max(both.lines[4].get_ydata()) == 0.0


def test_options_and_values() -> None:
    assert parse_values("mask-ratio=0.5, 1,pixel,True") == ("mask_ratio", (0.5, 1, "pixel", True))
    for wrong in ("mask_ratio", "mask_ratio=", "why"):
        with pytest.raises(UnveilError, match="is not an option with values: expected for example mask_ratio="):
            parse_values(wrong)
    with pytest.raises(UnveilError, match="there is no option 'mask_ratoi'; did you mean mask_ratio"):
        unveil.study("mask_ratoi=0.5")
    words = "mask_ratio=0.5 digits --seeds 3 --target pixel --finetune.epochs 2".split()
    assert parse_options("study", VERBS["study"], words) == {
        "what": "mask_ratio=0.5",
        "data": "digits",
        "method": "mae",
        "model": None,
        "out": None,
        "seeds": (3,),
        "target": "pixel",
        "finetune": {"epochs": 2.0},
    }


def test_which_untrained_encoder_is_drawn() -> None:
    """The dashed line of a study of models is that of the first one."""
    sweep = swept([0.5, 0.51], [0.7, 0.71])
    assert sweep.untrained == "the same encoder untrained"
    models = sweep._replace(option="model", values=["vit-nano", "vit-tiny"])
    assert models.untrained == "the untrained encoder of model vit-nano"
    assert 'The row "untrained" is the untrained encoder of model vit-nano.' in sweep_table(models).sentences
    assert sweep._replace(option="patch_size", values=[4, 8]).untrained == "the untrained encoder of patch size 4"
