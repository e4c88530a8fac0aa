"""A comparison: its table says what the run folders say, nothing is trained twice, and mistakes are told before hours go by."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

import unveil
from tests.recipes.test_end_to_end import write_images
from unveil.cli import parse, set_apart
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.experiments import runner as contests
from unveil.experiments.compare import contest_of
from unveil.experiments.runner import Comparison, ComparisonConfig, Entry
from unveil.methods import base_of
from unveil.planning.dry_run import DryRun
from unveil.reports.comparison import Row, bars, figures_of, grid_of, row_of, sentence
from unveil.reports.table import markdown_grid
from unveil.train.run_folder import Run

TINY: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "batch_size": 8,
    "held_out": 4,
    "device": "cpu",
    "precision": "float32",
    "monitor_times": 1,
    "finetune": {"epochs": 1.0, "batch_size": 8},
}


@pytest.fixture(scope="module", autouse=True)
def no_pages() -> Iterator[None]:
    """A page takes as long as a run this small, and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for recipe in ("pretrain", "tuning"):
            patch.setattr(f"unveil.recipes.{recipe}.write_page", lambda run, learner: (run.path / "report.html").write_text(""))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def rows(images: str, folder: Path) -> list[Row]:
    apart = {"mae-pixel": {"target": "pixel", "decoder_depth": 1}}
    return unveil.compare("mae,mae-pixel", images, out=folder, seeds=(0, 1), epochs=1.0, **TINY, **apart)


def test_the_table_says_what_the_run_folders_say(rows: list[Row], folder: Path) -> None:
    assert [row.name for row in rows] == ["mae", "mae-pixel", "untrained", "raw pixels"]
    for row in rows[:2]:
        for seed in (0, 1):
            run, tuned = Run(folder / f"{row.name}-seed{seed}"), Run(folder / f"{row.name}-seed{seed}-finetune")
            assert run.config["seed"] == tuned.config["seed"] == seed
            assert {key: row.figures[key][seed] for key in ("knn", "linear")} == run.results["features"]["encoder"]
            assert row.figures["finetune"][seed] == tuned.results["score"]["top1"]
            assert row.figures["seconds"][seed] == run.results["seconds"]
            assert row.figures["samples"][seed] == 24  # 22 images, and batches of 8
            gain = row.figures["linear"][seed] - run.results["features"]["untrained"]["linear"]
            assert row.figures["ahead"][seed] == gain
    scratch = [Run(folder / f"untrained-seed{seed}-finetune") for seed in (0, 1)]
    assert rows[2].figures["finetune"] == [run.results["score"]["top1"] for run in scratch]
    assert all(run.config["from"] == "scratch" for run in scratch)
    assert Run(folder / "mae-pixel-seed1").config["target"] == "pixel"
    assert Run(folder / "mae-seed1").config["target"] == "normalised"
    rate = 2.4e-3 * (8 / 4096) ** 0.5 * 8**0.75 * 256 / 8  # what plan would take for vit-nano and batches of 8
    assert Run(folder / "mae-seed0").config["base_lr"] == pytest.approx(rate, rel=0.05)
    facts = json.loads((folder / "compare.json").read_text())
    assert [Row(**row) for row in facts["rows"]] == rows
    assert facts["config"]["mae-pixel.target"] == "pixel"
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="([^"#]+)"', page)
    assert len(links) == 8
    assert all((folder / link).is_file() for link in links)


def test_a_second_call_trains_only_what_is_missing(
    rows: list[Row], images: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*/**/*")}
    assert len(before) > 100
    others = {"epochs": 1.0, "tuned": False, "markdown": True, "mae-half": {"mask_ratio": 0.5}}
    again = unveil.compare(["mae", "mae-half"], images, out=folder, seeds=(0,), **TINY, **others)
    assert again[0].figures == {key: values[:1] for key, values in rows[0].figures.items() if key != "finetune"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Run(folder / "mae-half-seed0").config["mask_ratio"] == 0.5
    assert "| mae-half |" in capsys.readouterr().out
    with pytest.raises(UnveilError, match=r"epochs: was 1\.0, is 2\.0"):
        unveil.compare("mae", images, out=folder, seeds=(0,), epochs=2.0, **TINY)


def trial(steps: tuple[float, ...], train: int) -> DryRun:
    return DryRun(
        reading=0.0, steps=steps, waiting=0.0, parts=1, save=0.0, look=0.0, judging=0.0, memory=None, train=train, read=1.0
    )


def test_a_tokenizer_is_judged_and_drawn_but_not_tuned(images: str, tmp_path: Path) -> None:
    rows = unveil.compare("dvae,mae", images, out=tmp_path, seeds=(0,), epochs=1.0, **TINY)
    assert [row.name for row in rows] == ["dvae", "mae", "untrained", "raw pixels"]
    assert "linear" in rows[0].figures
    assert "finetune" not in rows[0].figures
    assert rows[2].figures["linear"] == [Run(tmp_path / "mae-seed0").results["features"]["untrained"]["linear"]]
    assert "finetune" in rows[2].figures
    with pytest.raises(UnveilError, match="a DVAE has no Transformer to use further"):
        unveil.finetune(tmp_path / "dvae-seed0", out=tmp_path / "tuned")
    assert unveil.reconstruct(tmp_path / "dvae-seed0", count=2).stat().st_size > 1000


def test_equal_seconds_are_epochs_by_the_pace_of_a_trial() -> None:
    tried = trial((0.9, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), 1000)  # two warm up
    for seconds in (0.1, 1.2, 1.35, 60.0, 61.04):
        steps = tried.steps_within(seconds)
        assert tried.training(steps) <= seconds + 1e-6 or steps == 0
        assert tried.training(steps + 1) > seconds - 1e-6
    assert tried.steps_within(60.0) == pytest.approx(2 + (60 - 1.2) / 0.1, abs=1)


def made(data: str, folder: Path, *who: Entry, seconds: float) -> Comparison:
    shared = {key: value for key, value in TINY.items() if key != "finetune"}
    own = ComparisonConfig(seeds=(0,), seconds=seconds)
    return Comparison(folder=folder, data=data, own=own, shared=shared, tuning={}, entries=who)


def test_the_pace_is_tried_once_and_first_stages_are_paid_for(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def rehearse(setting: Any, path: Path, listing: float, seconds: float) -> DryRun:
        tried.append(path)
        return trial((0.1,) * 20, 1280)

    monkeypatch.setattr(contests, "rehearse", rehearse)
    first, second = Entry("mae-first", {}), Entry("mae", {"tracker": "mae-first"})  # an option that names a run
    comparison = made(images, tmp_path, first, second, seconds=20.0)
    assert comparison.stages == {"mae-first"}
    assert comparison.options(second, 0)["tracker"] == str(tmp_path / "mae-first-seed0")
    assert comparison.epochs(first, 0) == pytest.approx(50 * 8 / 1280)  # a quarter of 20 seconds
    (tmp_path / "mae-first-seed0").mkdir()
    (tmp_path / "mae-first-seed0" / "run.json").write_text('{"config": {}}')
    Run(tmp_path / "mae-first-seed0").write_results({"seconds": 6.0, "images_seen": 640})
    assert comparison.epochs(second, 0) == pytest.approx(140 * 8 / 1280)  # the other 14
    assert len(tried) == 2
    assert comparison.epochs(second, 1) == comparison.epochs(second, 0)
    assert len(tried) == 2
    with pytest.raises(UnveilError, match=r"mae has -4 seconds, and a step takes 0\.1: give more --seconds"):
        made(images, tmp_path, first, second, seconds=2.0).epochs(second, 0)
    other = made(images, tmp_path, Entry("mae", {"epochs": 3.0}), seconds=20.0)
    assert other.epochs(other.entries[0], 0) == 3.0


def test_a_codebook_is_told_with_its_dvae_and_with_who_learns_from_it(tmp_path: Path) -> None:
    common = {"seconds": 2.0, "images_seen": 5}
    for name, more in {"dvae": {"held_out": {"codebook_usage": 0.75}}, "beit": {"held_out": {"held_out_loss": 1.0}}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        Run(tmp_path / name).write_results(common | more)
    dvae, beit = Run(tmp_path / "dvae"), Run(tmp_path / "beit")
    assert figures_of(beit, [dvae], None) == {"seconds": 4.0, "samples": 10, "codebook_usage": 0.75}
    rows = [row_of("dvae", [figures_of(dvae, [], None)]), row_of("beit", [figures_of(beit, [], None)])]
    grid = grid_of(rows, "title", None)
    assert grid.heads[-1] == "codebook used, %"
    assert [row[-1] for row in grid.rows] == ["75.0", ""]


def test_mean_and_spread() -> None:
    values = [0.5, 0.6, 0.4]
    rows = [row_of("mae", [{"linear": value, "seconds": 61.0} for value in values]), row_of("untrained", [{"linear": 0.3}], True)]
    grid = grid_of(rows, "title", 1000)
    assert grid.heads == ["", "time", "linear, %"]
    assert grid.rows == [["mae", "1 min 1 s", f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"], ["untrained", "", "30.0"]]
    assert grid.sentences[0] == "Mean and standard deviation over 3 seeds."
    assert markdown_grid(grid).splitlines()[2] == "| mae | 1 min 1 s | 50.0 ± 10.0 |"
    assert sentence(rows) == "Best by linear accuracy: mae with 50.0 ± 10.0 % (20.0 points ahead of an untrained encoder)."
    assert not any("collapsed" in said for said in grid.sentences)
    spread = [
        row_of(name, [{"feature_deviation": value, "rank_me": 9.0} for value in values])
        for name, values in {"dino": [0.5, 0.01], "mae": [0.5, 0.4]}.items()
    ]
    assert "None has collapsed." in grid_of(spread[1:], "title", None).sentences
    (told,) = [said for said in grid_of(spread, "title", None).sentences if "collapsed" in said]
    assert "dino collapsed" in told
    assert "mae" not in told
    drawn = bars(rows, "linear").axes[0]
    assert [bar.get_width() for bar in drawn.patches] == pytest.approx([0.3, 0.5])
    assert np.sort(drawn.lines[1].get_xdata()) == pytest.approx(sorted(values))


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        ("mae,mea", {}, "there is no method 'mea': use one of mae"),
        ("mae,mae", {}, "name each once"),
        ("mae", {"mae": {"mask_ratoi": 0.5}}, "there is no option 'mask_ratoi'; did you mean mask_ratio?"),
        ("mae", {"seed": 3}, "give --seeds"),
        ("mae", {"beit": {"epochs": 3}}, "there are options for beit, which is none of mae, finetune"),
        ("mae,mae-late", {"mae": {"tracker": "mae-late"}}, "name mae-late first"),
    ],
)
def test_mistakes_are_told_at_once(methods: str, options: dict[str, Any], said: str, images: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=re.escape(said)):
        unveil.compare(methods, images, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_refused(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnveilError, match="has no labelled images to judge with"):
        unveil.compare("mae", str(Path(images) / "warm"), out=tmp_path / "out")
    assert contest_of([("mae", {})], str(Path(images) / "warm"), tmp_path, {"labelled": images}).own.labelled == images
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnveilError, match="without torchrun"):
        unveil.compare("mae", images, out=tmp_path / "out")


def test_options_for_one_alone() -> None:
    assert [base_of(name) for name in ("mae", "mae-pixel", "maes", "other-x")] == ["mae", "mae", "maes", "other-x"]
    words = "mae,mae-x digits --seeds 0 1 --mae-x.target pixel --mae-x.no-flip --base-lr=0.1 --finetune.epochs=3 --mae.flip"
    shared, apart = set_apart(words.split())
    assert shared == "mae,mae-x digits --seeds 0 1 --base-lr=0.1".split()
    assert apart == {"mae-x": ["--target", "pixel", "--no-flip"], "finetune": ["--epochs=3"], "mae": ["--flip"]}
    assert parse("compare", VERBS["compare"], words.split()) == {
        "methods": "mae,mae-x",
        "data": "digits",
        "model": None,
        "out": None,
        "seeds": (0, 1),
        "base_lr": 0.1,
        "mae-x": {"target": "pixel", "flip": False},
        "finetune": {"epochs": 3.0},
        "mae": {"flip": True},
    }
