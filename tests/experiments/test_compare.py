"""A comparison: its table agrees with the run folders, nothing is trained twice, and mistakes are found before training."""

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
from unveil.command_line import parse_options, split_per_method
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.experiments import runner
from unveil.experiments.compare import build_comparison, entry_of, evaluated_images
from unveil.experiments.runner import Comparison, ComparisonConfig, Entry
from unveil.methods import base_of
from unveil.planning.dry_run import DryRun
from unveil.reports.comparison import ComparisonRow, comparison_table, comparison_verdict, figures_of, row_of
from unveil.reports.comparison_page import bar_figure
from unveil.reports.table import to_markdown
from unveil.train.run_folder import Run

TINY: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "batch_size": 8,
    "held_out": 4,
    "device": "cpu",
    "precision": "float32",
    "num_evals": 1,
    "finetune": {"epochs": 1.0, "batch_size": 8},
}


@pytest.fixture(scope="module", autouse=True)
def no_pages() -> Iterator[None]:
    """A page takes as long as a run this small, and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unveil.runs.session.write_page", lambda run, learner: (run.path / "report.html").write_text(""))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def rows(images: str, folder: Path) -> list[ComparisonRow]:
    separate = {"mae-pixel": {"target": "pixel", "decoder_depth": 1}}
    return unveil.compare("mae,mae-pixel", images, out=folder, seeds=(0, 1), epochs=1.0, **TINY, **separate)


def test_the_table_agrees_with_the_run_folders(rows: list[ComparisonRow], folder: Path) -> None:
    assert [row.name for row in rows] == ["mae", "mae-pixel", "untrained", "raw pixels"]
    for row in rows[:2]:
        for seed in (0, 1):
            run, finetuned = Run(folder / f"{row.name}-seed{seed}"), Run(folder / f"{row.name}-seed{seed}-finetune")
            assert run.config["seed"] == finetuned.config["seed"] == seed
            assert {key: row.figures[key][seed] for key in ("knn", "whitened", "linear")} == run.results["features"]["encoder"]
            assert row.figures["finetune"][seed] == finetuned.results["score"]["top1"]
            assert row.figures["seconds"][seed] == run.results["seconds"]
            assert row.figures["samples"][seed] == 24  # 22 images, and batches of 8
            gain = row.figures["linear"][seed] - run.results["features"]["untrained"]["linear"]
            assert row.figures["ahead"][seed] == gain
    scratch = [Run(folder / f"untrained-seed{seed}-finetune") for seed in (0, 1)]
    assert rows[2].figures["finetune"] == [run.results["score"]["top1"] for run in scratch]
    assert all(run.config["from"] == "scratch" for run in scratch)
    assert Run(folder / "mae-pixel-seed1").config["target"] == "pixel"
    assert Run(folder / "mae-seed1").config["target"] == "normalised"
    rate = 2.4e-3 * (8 / 4096) ** 0.5 * 8**0.75 * 256 / 8  # the rate of `unveil plan` for vit-nano and batches of 8
    assert Run(folder / "mae-seed0").config["base_lr"] == pytest.approx(rate, rel=0.05)
    facts = json.loads((folder / "compare.json").read_text())
    assert facts["rows"] == [{"name": row.name, "figures": row.figures, "yardstick": row.baseline} for row in rows]
    assert facts["config"]["mae-pixel.target"] == "pixel"
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="([^"#]+)"', page)
    assert len(links) == 10  # with the two from scratch
    assert all((folder / link).is_file() for link in links)


def test_a_second_call_trains_only_what_is_missing(
    rows: list[ComparisonRow], images: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*/**/*")}
    assert len(before) > 100
    others = {"epochs": 1.0, "with_finetune": False, "markdown": True, "mae-half": {"mask_ratio": 0.5}}
    pretraining = {key: value for key, value in TINY.items() if key != "finetune"}
    known = (folder / "compare.json").read_bytes()
    with pytest.raises(UnveilError, match=r"would be lost: method mae-pixel; seed 1; fine-tuning\. Ask for them as well, choose"):
        unveil.compare(["mae", "mae-half"], images, out=folder, seeds=(0,), **pretraining, **others)
    assert (folder / "compare.json").read_bytes() == known
    (folder / "compare.json").unlink()
    again = unveil.compare(["mae", "mae-half"], images, out=folder, seeds=(0,), **pretraining, **others)
    assert again[0].figures == {key: values[:1] for key, values in rows[0].figures.items() if key != "finetune"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Run(folder / "mae-half-seed0").config["mask_ratio"] == 0.5
    assert "| mae-half |" in capsys.readouterr().out
    with pytest.raises(UnveilError, match=r"epochs: was 1\.0, is 2\.0"):
        unveil.compare("mae,mae-half", images, out=folder, seeds=(0,), epochs=2.0, **TINY)


def trial(steps: tuple[float, ...], train: int) -> DryRun:
    costs = dict.fromkeys(("reading", "waiting", "checkpoint", "monitor", "evaluation"), 0.0)
    return DryRun(steps=steps, accum_steps=1, memory=None, train=train, read=1.0, **costs)


def test_a_tokenizer_is_evaluated_and_drawn_but_not_finetuned(images: str, tmp_path: Path) -> None:
    rows = unveil.compare("dvae,mae", images, out=tmp_path, seeds=(0,), epochs=1.0, with_partial=True, **TINY)
    assert [row.name for row in rows] == ["dvae", "mae", "untrained", "raw pixels"]
    assert "linear" in rows[0].figures
    assert not {"finetune", "partial"} & rows[0].figures.keys()
    for row, name in zip(rows[1:3], ("mae", "untrained"), strict=True):  # both as the whole encoder, but for the frozen blocks
        partial, whole = Run(tmp_path / f"{name}-seed0-partial"), Run(tmp_path / f"{name}-seed0-finetune")
        assert partial.config == whole.config | {"blocks": 1.0}
        assert row.figures["partial"] == [partial.results["score"]["top1"]]
    assert "last block, %" in comparison_table(rows, "title", {}).heads
    assert rows[2].figures["linear"] == [Run(tmp_path / "mae-seed0").results["features"]["untrained"]["linear"]]
    assert "finetune" in rows[2].figures
    with pytest.raises(UnveilError, match="DVAE has no Transformer encoder"):
        unveil.finetune(tmp_path / "dvae-seed0", out=tmp_path / "finetuned")
    assert unveil.reconstruct(tmp_path / "dvae-seed0", count=2).stat().st_size > 1000


def test_equal_seconds_become_epochs_by_the_speed_of_a_trial() -> None:
    measured = trial((0.9, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), 1000)  # two are a warm-up
    for seconds in (0.1, 1.2, 1.35, 60.0, 61.04):
        steps = measured.steps_within(seconds)
        assert measured.training(steps) <= seconds + 1e-6 or steps == 0
        assert measured.training(steps + 1) > seconds - 1e-6
    assert measured.steps_within(60.0) == pytest.approx(2 + (60 - 1.2) / 0.1, abs=1)


def comparison_of(data: str, folder: Path, *entries: Entry, seconds: float) -> Comparison:
    shared = {key: value for key, value in TINY.items() if key != "finetune"}
    config = ComparisonConfig(seeds=(0,), seconds=seconds)
    return Comparison(folder=folder, data=data, config=config, shared_options=shared, finetune_options={}, entries=entries)


def test_the_speed_is_measured_once_and_first_stages_count(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def dry_run(plan: Any, path: Path, listing: float, seconds: float) -> DryRun:
        tried.append(path)
        return trial((0.1,) * 20, 1280)

    monkeypatch.setattr(runner, "dry_run", dry_run)
    # An option that names a run.
    first, second = Entry("mae-first", "mae", {}), Entry("mae", "mae", {"visual_tokenizer": "mae-first"})
    comparison = comparison_of(images, tmp_path, first, second, seconds=20.0)
    assert comparison.first_stages == {"mae-first"}
    assert comparison.options(second, 0)["visual_tokenizer"] == str(tmp_path / "mae-first-seed0")
    assert comparison.epochs(first, 0) == pytest.approx(50 * 8 / 1280)  # a quarter of 20 seconds
    (tmp_path / "mae-first-seed0").mkdir()
    (tmp_path / "mae-first-seed0" / "run.json").write_text('{"config": {}}')
    Run(tmp_path / "mae-first-seed0").write_results({"seconds": 6.0, "images_seen": 640})
    assert comparison.epochs(second, 0) == pytest.approx(140 * 8 / 1280)  # the other 14
    assert len(tried) == 2
    assert comparison.epochs(second, 1) == comparison.epochs(second, 0)
    assert len(tried) == 2
    with pytest.raises(UnveilError, match=r"mae has -4 seconds, but its first steps, in which everything is set up, take 0\.4"):
        comparison_of(images, tmp_path, first, second, seconds=2.0).epochs(second, 0)
    other = comparison_of(images, tmp_path, Entry("mae", "mae", {"epochs": 3.0}), seconds=20.0)
    assert other.epochs(other.entries[0], 0) == 3.0


def test_codebook_usage_is_shown_for_the_dvae_and_for_what_learns_from_it(tmp_path: Path) -> None:
    common = {"seconds": 2.0, "images_seen": 5}
    for name, more in {"dvae": {"held_out": {"codebook_usage": 0.75}}, "beit": {"held_out": {"held_out_loss": 1.0}}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        Run(tmp_path / name).write_results(common | more)
    dvae, beit = Run(tmp_path / "dvae"), Run(tmp_path / "beit")
    assert figures_of(beit, [dvae]) == {"seconds": 4.0, "samples": 10, "codebook_usage": 0.75}
    rows = [row_of("dvae", [figures_of(dvae, [])]), row_of("beit", [figures_of(beit, [])])]
    table = comparison_table(rows, "title", {})
    assert table.heads[-1] == "codebook used, %"
    assert [row[-1] for row in table.rows] == ["75.0", ""]


def test_mean_and_spread() -> None:
    values = [0.5, 0.6, 0.4]
    rows = [row_of("mae", [{"linear": value, "seconds": 61.0} for value in values]), row_of("untrained", [{"linear": 0.3}], True)]
    table = comparison_table(rows, "title", {"linear": 1000, "finetune": 1000})
    assert table.heads == ["", "time", "linear, %"]
    assert table.rows == [["mae", "1 min 1 s", f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"], ["untrained", "", "30.0"]]
    assert table.sentences[0] == "Mean and standard deviation over 3 seeds."
    assert to_markdown(table).splitlines()[2] == "| mae | 1 min 1 s | 50.0 ± 10.0 |"
    close = "mae reaches a linear accuracy of 50.0 ± 10.0 %, within chance (+20.0 points) of an untrained encoder."
    assert comparison_verdict(rows, {"linear": 1000}) == close
    assert not any("collapsed" in sentence for sentence in table.sentences)
    spread = [
        row_of(name, [{"feature_deviation": value, "rank_me": 9.0} for value in values])
        for name, values in {"dino": [0.5, 0.01], "mae": [0.5, 0.4]}.items()
    ]
    assert "No method has collapsed." in comparison_table(spread[1:], "title", {}).sentences
    (sentence,) = [each for each in comparison_table(spread, "title", {}).sentences if "ollapsed" in each]
    assert sentence.endswith("(features that are nearly the same for every image): dino.")
    drawn = bar_figure(rows, "linear").axes[0]
    assert [bar.get_width() for bar in drawn.patches] == pytest.approx([0.3, 0.5])
    assert np.sort(drawn.lines[1].get_xdata()) == pytest.approx(sorted(values))


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("mae,mea", {}, "there is no method 'mea'; did you mean mae"),
        ("mae,mae", {}, "a method occurs twice in mae, mae: give it two names"),
        ("mae", {"mae": {"mask_ratoi": 0.5}}, "there is no option 'mask_ratoi'; did you mean mask_ratio?"),
        ("mae", {"seed": 3}, "use --seeds in place of seed"),
        ("mae", {"mae": {"seed": 3}}, "use --seeds in place of seed"),
        ("mae", {"finetune": {"seed": 3}}, "use --seeds in place of seed"),
        ("mae", {"finetune": {"scratch": True}}, "leave finetune.scratch out"),
        ("mae", {"finetune": {"test": "others"}}, "leave finetune.test out"),
        ("mae", {"finetune": {"test_split": "test"}}, "evaluated on the same images: leave finetune.test_split out"),
        ("mae", {"finetune": {"split": "test"}}, "evaluated on the same images: leave finetune.split out"),
        ("mae", {"mae": {"split": "test"}}, "give --split for all of them, and not for mae alone"),
        ("mae", {"mae": {"test_split": "test"}}, "give --test-split for all of them, and not for mae alone"),
        ("mae", {"mae": {"held_out": 5}}, "give --held-out for all of them, and not for mae alone"),
        ("mae", {"with_finetune": False, "finetune": {"labels": 20}}, "there are options of fine-tuning, but --no-with-finetune"),
        ("mae", {"with_finetune": False, "labelled_data": "others"}, "--labelled-data is for fine-tuning, but --no-with-finetune"),
        ("mae", {"finetune": {"task": "regression"}}, "the task regression has no accuracy, which a comparison needs"),
        ("mae", {"finetune": {"task": "linear"}, "with_partial": True}, "last blocks alone, which the task linear cannot"),
        ("mae", {"finetune": {"epoch": 3}}, "there is no option 'epoch'; did you mean epochs?"),
        ("mae", {"seeds": ()}, "give at least one seed"),
        ("mae", {"seeds": (0, 1, 0)}, "a seed occurs twice in --seeds 0 1 0"),
        ("mae", {"beit": {"epochs": 3}}, "there are options for beit, expected one of mae, finetune"),
        ("mae,mae-late", {"mae": {"visual_tokenizer": "mae-late"}}, "name mae-late before it"),
    ],
)
def test_mistakes_are_found_at_once(methods: str, options: dict[str, Any], message: str, images: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=re.escape(message)):
        unveil.compare(methods, images, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_refused(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = str(Path(images) / "warm")
    for data, labelled, advice in (
        (warm, None, "or give --labelled-data"),
        (images, warm, "or give other data with --labelled-data"),
    ):
        with pytest.raises(UnveilError, match=f"warm has no images of two classes or more to evaluate with.*, {advice}$"):
            unveil.compare("mae", data, out=tmp_path / "out", labelled_data=labelled)
    comparison = build_comparison([entry_of("mae")], str(Path(images) / "warm"), tmp_path, {"labelled_data": images})
    assert comparison.config.labelled_data == images
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnveilError, match="without torchrun"):
        unveil.compare("mae", images, out=tmp_path / "out")


def test_too_few_labels_are_found_before_training(images: str, tmp_path: Path) -> None:
    """They were found after the first run of pre-training, and labelled data that did not exist as well."""
    others = str(write_images(tmp_path / "others", 4))
    for labelled, count in ((None, 24), (others, 8)):
        message = f"--finetune.labels is 1,000, but {labelled or images} has only {count} labelled images to train on"
        with pytest.raises(UnveilError, match=re.escape(message)):
            unveil.compare("mae", images, out=tmp_path / "out", labelled_data=labelled, finetune={"labels": 1000})
    with pytest.raises(UnveilError, match="nowhere"):
        unveil.compare("mae", images, out=tmp_path / "out", labelled_data=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_the_accuracies_on_other_labelled_images_have_their_own_margin(images: str, tmp_path: Path) -> None:
    """Of images without labels, there was no margin at all, and a winner by three of 24 images."""
    others = str(write_images(tmp_path / "others", 8))
    pretraining = {key: value for key, value in TINY.items() if key != "held_out"}
    unlabelled = str(Path(images) / "warm")
    options = {"seeds": (0,), "epochs": 1.0, "labelled_data": others}
    unveil.compare("mae,mae-b", unlabelled, out=tmp_path / "unlabelled", **pretraining, **options)
    comparison = build_comparison([entry_of("mae")], unlabelled, tmp_path / "unlabelled", pretraining | options)
    counts = evaluated_images(comparison)
    tested = Run(tmp_path / "unlabelled" / "mae-seed0-finetune").results["score"]["count"]
    assert counts == {"partial": tested, "finetune": tested, "scratch": tested}
    rows = comparison.rows()
    assert f"the choice of {tested} samples to evaluate on" in "".join(comparison_table(rows, "title", counts).sentences)
    rows = [row_of("a", [{"linear": 0.9, "finetune": 0.9}]), row_of("b", [{"linear": 0.6, "finetune": 0.6}])]
    notes = comparison_table(rows, "title", {"linear": 100, "finetune": 8}).sentences
    assert any(re.search(r"points \(linear\) can be due to chance: the choice of 100 samples", note) for note in notes)
    assert any(re.search(r"points \(fine-tuned\) can be due to chance: the choice of 8 samples", note) for note in notes)


def test_options_for_one_method() -> None:
    assert [base_of(name) for name in ("mae", "mae-pixel", "maes", "other-x")] == ["mae", "mae", "maes", "other-x"]
    words = "mae,mae-x digits --seeds 0 1 --mae-x.target pixel --mae-x.no-flip --base-lr=0.1 --finetune.epochs=3 --mae.flip"
    shared, separate = split_per_method(words.split())
    assert shared == "mae,mae-x digits --seeds 0 1 --base-lr=0.1".split()
    assert separate == {"mae-x": ["--target", "pixel", "--no-flip"], "finetune": ["--epochs=3"], "mae": ["--flip"]}
    assert parse_options("compare", VERBS["compare"], words.split()) == {
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


PLUGIN = """
from unveil.methods.mae import MAE, MAEConfig

class Half(MAE):
    Config = MAEConfig
    DEFAULTS = {"mask_ratio": 0.5}
"""


def test_a_method_from_a_file_takes_part_under_its_label(images: str, tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(PLUGIN)
    entry = entry_of(f"{tmp_path / 'half.py'}:Half")
    assert entry == ("half", f"{tmp_path / 'half.py'}:Half", {})
    assert entry_of(entry.kind) == entry
    options = {"seeds": (0,), "half": {"decoder_depth": 1}}
    comparison = build_comparison([entry_of("mae"), entry], images, tmp_path, TINY | options)
    assert comparison.names == ["mae", "half"]
    assert comparison.options(comparison.entries[1], 0)["decoder_depth"] == 1
    assert "base_lr" in comparison.entries[1].options  # the rule of `unveil plan` holds for every method for images
    with pytest.raises(UnveilError, match="there is no option 'mask_ratoi'; did you mean mask_ratio"):
        build_comparison([entry], images, tmp_path, {"half": {"mask_ratoi": 0.5}})
